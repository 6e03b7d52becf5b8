"""What belongs to an image in its registry: artifacts whose `subject` is the image (OCI Distribution 1.1, "Referrers").

Registries that know subjects list them by the referrers API. For others whoever attaches something keeps the list, an
index under the tag `sha256-<hex of the image>`. Registries have no conditional write in common, so two who change that
index at once may undo each other's change: it is read again after some time, and written again where that has happened.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from builds.clients.errors import RegistryError, RegistryRefused, RegistryUnreachable
from builds.clients.registry import INDEX, MANIFEST, Descriptor, Manifest, Registry, digest_of

EMPTY = "application/vnd.oci.empty.v1+json"
NOTHING = b"{}"
"""What an artifact has in place of an image's configuration (OCI image-spec 1.1, manifest.md, "Guidance for an empty
descriptor")."""

TRIES = 6
SETTLED = 0.03
"""Seconds, at least, after which the index is looked at again; more where the registry is slow."""
RETRY_WITHIN = 5.0
"""Seconds that a try may have taken which failed and is repeated."""
MAX_ARTIFACTS = 50
"""Of one image, that are read."""


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One file to attach. `annotations` are the artifact's, `noted` the file's own."""

    media_type: str
    content: bytes
    annotations: Mapping[str, str] = {}
    noted: Mapping[str, str] = {}


def fallback_tag(digest: str) -> str:
    """The tag of the list of what belongs to an image, where the registry keeps none."""
    return digest.replace(":", "-")


def referrers(registry: Registry, image: str, digest: str) -> tuple[Descriptor, ...]:
    """What belongs to an image. Raises RegistryError."""
    listed = registry.referrers(image, digest)
    if listed is None:
        listed = [msgspec.convert(one, Descriptor) for one in _entries(registry, image, fallback_tag(digest))]
    return tuple(listed)


def contents(registry: Registry, image: str, digest: str, kinds: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Media type and content of each attached file of these media types. Raises RegistryError.

    Every part is held against the digest that names it: neither the registry nor its headers are trusted.
    """
    found = [one for one in referrers(registry, image, digest) if one.artifact_type in kinds]
    for descriptor in found[:MAX_ARTIFACTS]:
        manifest = registry.manifest(image, descriptor.digest, body=True)
        if manifest is None or digest_of(manifest.body or b"") != descriptor.digest:
            raise RegistryRefused(
                f"The registry does not have the artifact {descriptor.digest} that it lists for the image."
            )
        for layer in _layers(manifest.body or b""):
            if layer.media_type in kinds:
                yield layer.media_type, registry.blob(image, layer.digest)


def attach(
    registry: Registry, image: str, subject: Manifest, artifact: Artifact, replaced: Collection[str] = ()
) -> bytes:
    """Attaches a file to an image, in place of the artifacts with these digests. Returns the artifact's manifest.

    `subject` has its body. Raises RegistryError, RegistryRefused where others change the list all the time.
    """
    registry.upload(image, NOTHING)
    registry.upload(image, artifact.content)
    manifest = _manifest(subject, artifact)
    entry = {
        "mediaType": MANIFEST,
        "digest": digest_of(manifest),
        "size": len(manifest),
        "artifactType": artifact.media_type,
        "annotations": {**artifact.annotations},
    }
    if registry.put(image, digest_of(manifest), MANIFEST, manifest) != subject.digest:
        _enter(registry, image, fallback_tag(subject.digest), entry, replaced)
    for digest in replaced:
        with suppress(RegistryError):  # where that is forbidden, it stays
            registry.remove(image, digest)
    return manifest


def _manifest(subject: Manifest, artifact: Artifact) -> bytes:
    def described(media_type: str, content: bytes, **more: Any) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content), **more}

    layer = described(artifact.media_type, artifact.content)
    body = subject.body or b""
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact.media_type,
            "config": described(EMPTY, NOTHING),
            "layers": [{**layer, "annotations": {**artifact.noted}} if artifact.noted else layer],
            "subject": described(subject.media_type, body),
            "annotations": {**artifact.annotations},
        }
    )


def _enter(registry: Registry, image: str, tag: str, entry: Mapping[str, Any], replaced: Collection[str]) -> None:
    """Puts an entry into the list under the tag, and sees to it that it stays there. Raises RegistryError.

    The CNCF's registry 2.8 answers with status 500 where two write a tag at once.
    """
    for number in range(TRIES):
        began = time.monotonic()
        try:
            if _is_entered(registry, image, tag, entry, replaced):
                return
        except RegistryUnreachable:
            if number + 1 == TRIES or time.monotonic() - began > RETRY_WITHIN:
                raise
        took = time.monotonic() - began
        time.sleep(max(SETTLED, 3 * took) * (1 + number * random.random()))  # noqa: S311 (so that two do not meet again)
    raise RegistryRefused(f"The list of what belongs to the image (tag {tag}) is changed by others all the time.")


def _is_entered(registry: Registry, image: str, tag: str, entry: Mapping[str, Any], replaced: Collection[str]) -> bool:
    """Whether the entry was in the list already; if not, it is put there. Raises RegistryError."""
    known = _entries(registry, image, tag)
    digests = [one.get("digest") for one in known]
    if entry["digest"] in digests and not {*digests} & {*replaced}:
        return True
    others = [one for one in known if one.get("digest") not in (entry["digest"], *replaced)]
    content = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*others, entry]}
    registry.put(image, tag, INDEX, msgspec.json.encode(content))
    return False


def _entries(registry: Registry, image: str, tag: str) -> list[dict[str, Any]]:
    """Of the list under a tag, as they are: others may have written more into them than is known here."""
    manifest = registry.manifest(image, tag, body=True)
    if manifest is None:
        return []
    try:
        content = msgspec.json.decode(manifest.body or b"", type=dict[str, Any])
        return msgspec.convert(content["manifests"], list[dict[str, Any]])
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        raise RegistryRefused(
            f"The tag {tag}, which is for the list of what belongs to the image, is something else."
        ) from None


class _Layers(msgspec.Struct):
    layers: list[Descriptor] = []


def _layers(manifest: bytes) -> list[Descriptor]:
    try:
        return msgspec.json.decode(manifest, type=_Layers).layers
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []
