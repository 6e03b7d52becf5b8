"""The content of a provenance statement about an image, and its verification.

A statement is SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance) in an in-toto Statement v1
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md). An unsigned statement is stored in the registry
as it is, and is as trustworthy as the registry's access rules; a signed one is in a DSSE envelope (`builds.dsse`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from builds.build import Image, Request
from builds.dsse import PAYLOAD_TYPE, PublicKey, opened
from builds.errors import ProvenanceError
from builds.options import Options

STATEMENT = PAYLOAD_TYPE
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
"""Media types of an unsigned and of a signed statement."""

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://kiln.dev/repo2docker/v1"
"""Defines the parameters below: `docs/provenance.md`."""


class CausingEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A CloudEvent that requested the build, and its ref."""

    source: str
    id: str
    type: str
    ref: str | None = None


class Builder(msgspec.Struct, frozen=True, kw_only=True):
    """The builder: a URI, the image that it runs from (`None`: none), and versions by name."""

    id: str
    image: str | None = None
    versions: Mapping[str, str] = {}


class _Camel(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    pass


class Resource(_Camel, frozen=True, kw_only=True):
    """in-toto's ResourceDescriptor."""

    uri: str = ""
    name: str = ""
    digest: Mapping[str, str] = {}


class Definition(_Camel, frozen=True, kw_only=True):
    build_type: str
    external_parameters: Mapping[str, Any] = {}
    internal_parameters: Mapping[str, Any] = {}
    resolved_dependencies: tuple[Resource, ...] = ()


class RanBy(_Camel, frozen=True, kw_only=True):
    id: str
    version: Mapping[str, str] = {}
    builder_dependencies: tuple[Resource, ...] = ()


class BuildMetadata(_Camel, frozen=True, kw_only=True):
    invocation_id: str = ""
    started_on: datetime | None = None
    finished_on: datetime | None = None


class RunDetails(_Camel, frozen=True, kw_only=True):
    builder: RanBy
    metadata: BuildMetadata = BuildMetadata()


class Predicate(_Camel, frozen=True, kw_only=True):
    build_definition: Definition
    run_details: RunDetails


class Statement(_Camel, frozen=True, kw_only=True):
    type: str = msgspec.field(name="_type", default="")
    subject: tuple[Resource, ...]
    predicate_type: str
    predicate: Predicate

    @property
    def external(self) -> Mapping[str, Any]:
        return self.predicate.build_definition.external_parameters

    @property
    def internal(self) -> Mapping[str, Any]:
        return self.predicate.build_definition.internal_parameters

    def same_origin(self, other: Statement) -> bool:
        """Whether both describe the same sources and parameters, regardless of time and requester."""
        own, its = self.predicate.build_definition, other.predicate.build_definition
        same = (own.external_parameters, own.resolved_dependencies) == (
            its.external_parameters,
            its.resolved_dependencies,
        )
        return same and {*_digests(self)} == {*_digests(other)}


class _Kind(_Camel, frozen=True, kw_only=True):
    """The part of a statement that identifies it as Kiln's."""

    predicate_type: str = ""
    predicate: Any = None

    @property
    def ours(self) -> bool:
        definition = self.predicate.get("buildDefinition") if isinstance(self.predicate, dict) else None
        build_type = definition.get("buildType") if isinstance(definition, dict) else None
        return self.predicate_type == PREDICATE_TYPE and build_type == BUILD_TYPE


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Requirements for a statement: the image's digest (`sha256:…`), and further values (`None`: any)."""

    digest: str
    repository: str | None = None
    """Canonical (`builds.repository.canonical`)."""
    commit: str | None = None
    builder: str | None = None


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """A valid statement. `signed`: by the given key."""

    statement: Statement
    signed: bool


def statement_for(
    *,
    image: Image,
    request: Request,
    build: str,
    attempt: str,
    events: Sequence[CausingEvent],
    options: Options,
    builder: Builder,
    started: datetime,
    finished: datetime,
) -> Statement:
    """The statement about a pushed image. `build` is the build's name, `attempt` the attempt's label."""
    source = {"uri": f"git+{request.clone_url}", "digest": {"gitCommit": request.commit}}
    definition = Definition(
        build_type=BUILD_TYPE,
        external_parameters={
            "repository": request.repository,
            "commit": request.commit,
            "subdir": request.subdir,
            "buildArgs": _hashed(request.build_args),
            "image": image.repository,
        },
        internal_parameters={
            "build": build,
            "events": msgspec.to_builtins([*events]),
            "options": _stated_options(options),
        },
        resolved_dependencies=(msgspec.convert(source, Resource),),
    )
    details = RunDetails(
        builder=RanBy(
            id=builder.id,
            version=builder.versions,
            builder_dependencies=(_image(builder.image),) if builder.image else (),
        ),
        metadata=BuildMetadata(invocation_id=attempt, started_on=started, finished_on=finished),
    )
    algorithm, _, digits = image.digest.partition(":")
    return Statement(
        type=STATEMENT_TYPE,
        subject=(Resource(name=image.repository, digest={algorithm: digits}),),
        predicate_type=PREDICATE_TYPE,
        predicate=Predicate(build_definition=definition, run_details=details),
    )


def verified(found: Sequence[tuple[str, bytes]], expected: Expected, key: PublicKey | None = None) -> Verified:
    """The statement about an image, among the attachments in its registry: media types and contents.

    With a key, only statements that it signed count, and all of them must be valid. Without a key the image may have
    only one statement, as several could not be distinguished. Raises ProvenanceError with the reason.
    """
    read = [one for one in (_read(media_type, content, key) for media_type, content in found) if one is not None]
    if not read:
        raise ProvenanceError("The image has no provenance statement from Kiln.")
    if key is not None:
        return _signed(read, expected)
    if len(read) > 1:
        raise ProvenanceError(
            f"The image has {len(read)} provenance statements. Give a key, so that one of them can be trusted."
        )
    return Verified(statement=_held(read[0].content, expected), signed=False)


def has(found: Sequence[tuple[str, bytes]], statement: Statement, key: PublicKey | None = None) -> bool:
    """Whether the attachments include a statement of the same origin, signed by the key if one is given."""
    for one in (_read(media_type, content, key) for media_type, content in found):
        if one is None or (key is not None and one.signed is not True):
            continue
        try:
            if _decoded(one.content).same_origin(statement):
                return True
        except ProvenanceError:
            continue
    return False


class _Found(msgspec.Struct, frozen=True):
    content: bytes
    signed: bool | None
    """Whether the key signed it: `None` without a signature or without a key."""


def _signed(found: Sequence[_Found], expected: Expected) -> Verified:
    good = [one for one in found if one.signed]
    if not good and all(one.signed is None for one in found):
        raise ProvenanceError("The image's provenance statement is not signed.")
    if not good:
        raise ProvenanceError(
            "The signature of the image's provenance statement does not match this key and statement."
        )
    *_, last = [_held(one.content, expected) for one in good]
    return Verified(statement=last, signed=True)


def _read(media_type: str, content: bytes, key: PublicKey | None) -> _Found | None:
    """`None` for an attachment that is not Kiln's statement. An unreadable statement counts as invalid."""
    signed = None
    if media_type == ENVELOPE:
        try:
            content, signed = opened(content, key)
        except ProvenanceError:
            return _Found(content, False)
    elif media_type != STATEMENT:
        return None
    try:
        kind = msgspec.json.decode(content, type=_Kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Found(content, signed)
    return _Found(content, signed) if kind.ours else None


def _held(content: bytes, expected: Expected) -> Statement:
    """Raises ProvenanceError if the statement does not meet the expectations."""
    statement = _decoded(content)
    if problems := list(_problems(statement, expected)):
        raise ProvenanceError(" ".join(problems))
    return statement


def _decoded(content: bytes) -> Statement:
    try:
        statement = msgspec.json.decode(content, type=Statement)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ProvenanceError("The image's provenance statement cannot be read.") from None
    if statement.type != STATEMENT_TYPE:
        raise ProvenanceError(f"The image's provenance statement is not of in-toto's version 1 ({STATEMENT_TYPE}).")
    return statement


def _problems(statement: Statement, expected: Expected) -> Iterator[str]:
    if expected.digest not in _digests(statement):
        yield f"The provenance statement is about another image ({', '.join(_digests(statement)) or 'none'})."
    claims = {
        "repository": (expected.repository, statement.external.get("repository")),
        "commit": (expected.commit, statement.external.get("commit")),
        "builder": (expected.builder, statement.predicate.run_details.builder.id),
    }
    for name, (wanted, said) in claims.items():
        if wanted is not None and said != wanted:
            yield f"The image's {name} is {said}, not {wanted}."
    commits = [one.digest.get("gitCommit") for one in statement.predicate.build_definition.resolved_dependencies]
    if commits != [statement.external.get("commit")]:
        yield "The provenance statement contradicts itself about the commit."


def _digests(statement: Statement) -> tuple[str, ...]:
    return tuple(f"{name}:{digits}" for subject in statement.subject for name, digits in subject.digest.items())


def _image(reference: str) -> Resource:
    """An image in in-toto's form: with `digest` only if the reference has one, as a tag may have moved since."""
    name, _, digest = reference.partition("@")
    algorithm, _, digits = digest.partition(":")
    return Resource(uri=f"docker://{name}", digest={algorithm: digits} if digits else {})


def _stated_options(options: Options) -> dict[str, Any]:
    """The installation's options, with digests for long texts and values of arguments."""
    stated: dict[str, Any] = msgspec.to_builtins(options)
    if options.build_args:
        stated["build_args"] = _hashed(options.build_args)
    if options.appendix:
        stated["appendix"] = _digest(options.appendix)
    return stated


def _hashed(arguments: Mapping[str, str]) -> dict[str, str]:
    """Names, and digests instead of values, which logs do not show either."""
    return {name: _digest(value) for name, value in sorted(arguments.items())}


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
