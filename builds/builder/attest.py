"""The provenance of a pushed image: a statement beside it in the registry, signed if a key is configured.

An image without a statement is still the requested image. So a failure to make or attach the statement is logged and
does not fail the build; `kiln verify` reports the missing statement.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from builds.build import Image
from builds.builder.spec import LABEL_BUILD, Spec
from builds.clients.errors import RegistryError, RegistryUnreachable
from builds.clients.referrers import Artifact, attach, contents, fallback_tag, referrers
from builds.clients.registry import MANIFEST, Registry
from builds.dsse import SigningKey
from builds.errors import ProvenanceError
from builds.provenance import ENVELOPE, PREDICATE_TYPE, STATEMENT, Statement, has, statement_for

KINDS = (STATEMENT, ENVELOPE)
COSIGN = {"dev.cosignproject.cosign/signature": "", "predicateType": PREDICATE_TYPE}
"""Annotations that cosign expects on a layer of an attestation: its signature is in the envelope."""


def attest(registry: Registry, image: Image, spec: Spec, started: datetime, say: Callable[[str], None]) -> None:
    """Attaches the statement about a pushed image, or logs why the image has none."""
    if not spec.surroundings.provenance:
        return
    try:
        say(_attested(registry, image, spec, started))
    except (RegistryError, ProvenanceError, OSError) as error:
        say(f"The image has no provenance statement. {error}")


def labels(spec: Spec, tag: str, committed_at: datetime | None) -> dict[str, str]:
    """The image's OCI labels (image-spec 1.1, annotations.md), the same for every build of a commit."""
    created = {} if committed_at is None else {"created": committed_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    facts = {"source": spec.request.repository, "revision": spec.request.commit, "version": tag, **created}
    return {f"org.opencontainers.image.{name}": value for name, value in facts.items()}


def _attested(registry: Registry, image: Image, spec: Spec, started: datetime) -> str:
    """Returns the outcome as a sentence. Raises RegistryError, ProvenanceError, OSError."""
    key = _key(spec.surroundings.signing_key)
    subject = registry.manifest(image.repository, image.digest, body=True)
    if subject is None:
        raise RegistryUnreachable("The registry no longer has the image.")
    statement = _statement(image, spec, started)
    known = [one for one in referrers(registry, image.repository, image.digest) if one.artifact_type in KINDS]
    if known and has(
        [*contents(registry, image.repository, image.digest, KINDS)], statement, key.public if key else None
    ):
        return "The image has this provenance statement already."
    before = [one.digest for one in known if LABEL_BUILD in (one.annotations or {})]
    artifact = _artifact(statement, spec.name, key)
    manifest = attach(registry, image.repository, subject, artifact, before)
    if key is not None:
        _tag_for_cosign(registry, image, manifest)
    return f"The image has a provenance statement, {'signed' if key else 'unsigned'}."


def _key(path: str | None) -> SigningKey | None:
    """Raises ProvenanceError, OSError."""
    return None if path is None else SigningKey.read(Path(path).read_bytes())


def _statement(image: Image, spec: Spec, started: datetime) -> Statement:
    builder = spec.surroundings.builder
    return statement_for(
        image=image,
        request=spec.request,
        build=spec.name,
        attempt=spec.attempt_label,
        events=spec.events,
        options=spec.surroundings.options,
        builder=msgspec.structs.replace(builder, versions=_versions()),
        started=started,
        finished=datetime.now(UTC),
    )


def _artifact(statement: Statement, build: str, key: SigningKey | None) -> Artifact:
    payload = msgspec.json.encode(statement)
    return Artifact(
        media_type=STATEMENT if key is None else ENVELOPE,
        content=payload if key is None else key.sealed(payload),
        annotations={LABEL_BUILD: build, "in-toto.io/predicate-type": PREDICATE_TYPE},
        noted={} if key is None else COSIGN,
    )


def _tag_for_cosign(registry: Registry, image: Image, manifest: bytes) -> None:
    """Sets the tag under which cosign looks for statements, unless another statement has it. Raises RegistryError."""
    tag = f"{fallback_tag(image.digest)}.att"
    there = registry.manifest(image.repository, tag, body=True)
    if there is None or LABEL_BUILD in (there.body or b"").decode(errors="replace"):
        registry.put(image.repository, tag, MANIFEST, manifest)


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return {name: found for name in ("kiln-images", "jupyter-repo2docker") if (found := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
