"""Artifacts of an image in its registry: manifests whose `subject` is the image (OCI Distribution 1.1, "Referrers").

Registries that support subjects list them by the referrers API. For other registries, clients that attach an artifact
maintain the list themselves, as an index under the tag `sha256-<hex of the image>`. Registries have no conditional
write in common, so two concurrent writers may undo each other's change. Therefore the index is read again after some
time, and written again if the entry is missing.
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
"""An artifact's substitute for an image configuration (OCI image-spec 1.1, manifest.md, "Guidance for an empty
descriptor")."""

TRIES = 6
SETTLED = 0.03
"""Minimum seconds before the index is read again; more if the registry is slow."""
RETRY_WITHIN = 5.0
"""A failed attempt is repeated only if it took at most so many seconds."""
MAX_ARTIFACTS = 50
"""Artifacts of one image that are read."""


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One file to attach. `annotations` belong to the artifact, `noted` to the file itself."""

    media_type: str
    content: bytes
    annotations: Mapping[str, str] = {}
    noted: Mapping[str, str] = {}


def fallback_tag(digest: str) -> str:
    """The tag of the index of an image's artifacts, for registries that do not list them."""
    return digest.replace(":", "-")


def referrers(registry: Registry, image: str, digest: str) -> tuple[Descriptor, ...]:
    """The artifacts of an image. Raises RegistryError."""
    listed = registry.referrers(image, digest)
    if listed is None:
        listed = [msgspec.convert(one, Descriptor) for one in _entries(registry, image, fallback_tag(digest))]
    return tuple(listed)


def contents(registry: Registry, image: str, digest: str, kinds: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Media type and content of each attached file of these media types. Raises RegistryError.

    Every part is compared with the digest that names it: neither the registry nor its headers are trusted.
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

    `subject` includes its body. Raises RegistryError, and RegistryRefused if other clients keep changing the index.
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
        with suppress(RegistryError):  # if deletion is forbidden, the artifact stays
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
    """Adds an entry to the index under the tag, and checks that it stays. Raises RegistryError.

    The CNCF's registry 2.8 answers with status 500 to concurrent writes of a tag.
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
        time.sleep(max(SETTLED, 3 * took) * (1 + number * random.random()))  # noqa: S311 (avoids a new collision)
    raise RegistryRefused(f"The list of what belongs to the image (tag {tag}) is changed by others all the time.")


def _is_entered(registry: Registry, image: str, tag: str, entry: Mapping[str, Any], replaced: Collection[str]) -> bool:
    """Whether the index already contained the entry; if not, the entry is added. Raises RegistryError."""
    known = _entries(registry, image, tag)
    digests = [one.get("digest") for one in known]
    if entry["digest"] in digests and not {*digests} & {*replaced}:
        return True
    others = [one for one in known if one.get("digest") not in (entry["digest"], *replaced)]
    content = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*others, entry]}
    registry.put(image, tag, INDEX, msgspec.json.encode(content))
    return False


def _entries(registry: Registry, image: str, tag: str) -> list[dict[str, Any]]:
    """The entries of the index under a tag, unchanged: other clients may add members that Kiln does not know."""
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
