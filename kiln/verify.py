"""`kiln verify`: the origin of an image, as far as its provenance statement proves it.

The digest of the manifest identifies the image. The digest that the registry reports is not trusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from builds.clients.errors import RegistryError
from builds.clients.referrers import contents
from builds.clients.registry import Registry, digest_of
from builds.dsse import PublicKey
from builds.errors import ProvenanceError, RepositoryError
from builds.provenance import ENVELOPE, STATEMENT, Expected, Statement, Verified, verified
from builds.repository import canonical
from kiln.errors import CommandError, NotKnown
from kiln.progress import printable

_REFERENCE = re.compile(r"(\[[0-9a-f:]+\]|[\w.-]+)(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@\w+:[0-9a-f]+)?", re.ASCII)


class VerifyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """An image reference, the expected contents of its statement, and a PEM file with the public key."""

    image: str
    repository: str | None = None
    commit: str | None = None
    builder: str | None = None
    key: Path | None = None


def verify(wanted: VerifyOptions, registry: Registry) -> tuple[str, Verified]:
    """Return the image by digest, and its statement. Raises NotKnown, CommandError with the reason."""
    name, reference = _split(wanted.image)
    key = _key(wanted.key)
    repository = _canonical(wanted.repository)
    try:
        digest = _digest(registry, name, reference)
        expected = Expected(digest=digest, repository=repository, commit=wanted.commit, builder=wanted.builder)
        found = [*contents(registry, name, digest, (STATEMENT, ENVELOPE))]
    except RegistryError as error:
        raise NotKnown(str(error)) from None
    try:
        return f"{name}@{digest}", verified(found, expected, key)
    except ProvenanceError as error:
        raise CommandError(f"{name}@{digest}: {error}") from None


def describe(image: str, found: Verified) -> Iterator[str]:
    """Return the facts, one per line. All but the digest is untrusted text."""
    statement = found.statement
    run = statement.predicate.run_details
    yield f"{image} is what Kiln has built{'' if found.signed else ', if its registry can be trusted'}."
    facts = {
        "repository": statement.external.get("repository"),
        "commit": statement.external.get("commit"),
        "subdir": statement.external.get("subdir"),
        "build": f"{statement.internal.get('build')}, attempt {run.metadata.invocation_id}",
        "builder": _builder(statement),
        "built": f"{run.metadata.started_on} to {run.metadata.finished_on}",
        "signed": "by the key"
        if found.signed
        else "not checked: any client with push access to the registry can have written this",
    }
    yield from (f"  {name:<12}{printable(str(value))}" for name, value in facts.items() if value)
    yield from (f"  {'event':<12}{printable(event)}" for event in _events(statement.internal.get("events")))


def _builder(statement: Statement) -> str:
    builder = statement.predicate.run_details.builder
    image = [f"{one.uri}@{_one(one.digest)}" if one.digest else one.uri for one in builder.builder_dependencies]
    return " ".join([builder.id, *image])


def _one(digest: object) -> str:
    return ",".join(f"{name}:{value}" for name, value in digest.items()) if isinstance(digest, dict) else ""


def _events(found: object) -> Iterator[str]:
    for event in found if isinstance(found, Sequence) and not isinstance(found, str) else ():
        if isinstance(event, dict):
            yield " ".join(str(event[name]) for name in ("type", "id", "source", "ref") if name in event)


def _split(image: str) -> tuple[str, str]:
    """Split into repository, and digest or tag; the default is `latest`. Raises NotKnown."""
    if not _REFERENCE.fullmatch(image):
        raise NotKnown(f"{image} is not the name of an image. Give one such as registry.example/org/course:main.")
    name, _, digest = image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        name = repository
    else:
        tag = "latest"
    return name, digest or tag


def _digest(registry: Registry, name: str, reference: str) -> str:
    """Raises RegistryError, CommandError."""
    manifest = registry.manifest(name, reference, body=True)
    if manifest is None:
        raise NotKnown(f"The registry has no image {name} under {reference}.")
    digest = digest_of(manifest.body or b"")
    if reference.startswith("sha256:") and reference != digest:
        raise CommandError(f"{name}@{reference}: The registry gives another image, {digest}.")
    return digest


def _key(path: Path | None) -> PublicKey | None:
    if path is None:
        return None
    try:
        return PublicKey.read(path.read_bytes())
    except OSError as error:
        raise NotKnown(f"--key: {path} cannot be read ({error.strerror})") from None
    except ProvenanceError as error:
        raise NotKnown(f"--key: {path}: {error}") from None


def _canonical(url: str | None) -> str | None:
    try:
        return None if url is None else canonical(url).url
    except RepositoryError as error:
        raise NotKnown(f"--repository: {error}") from None
