"""The retention policy for images: facts in, a verdict for each image out.

An image is deleted only if Kiln pushed it for a build that still has a record, and if none of the following keeps it:

- a tag other than its commit's
- an index that refers to it
- a build that waits, runs or is being announced
- a request within the rule's period
- a place among the newest images of a ref

So unknown facts keep an image: without a record, the refs that it was built for are unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from builds.build import Build
from builds.image import tag_for

FOREIGN = "Kiln did not push it"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """`keep:` of the configuration: how many images of each ref are kept, and for how long all of them are."""

    per_ref: int
    period: timedelta


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest in the registry. `build` is its label `dev.kiln.build`; for an index, that of its first part. `parts`
    are the digests that an index refers to, directly or through another index."""

    repository: str
    digest: str
    media_type: str = ""
    tags: tuple[str, ...] = ()
    build: str | None = None
    parts: tuple[str, ...] = ()


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """The facts in a build's record about its image. `digest` is `None` unless the last round succeeded. `variant` is
    the part of the tag after the commit: a ref has one image for each subdir and set of build arguments."""

    build: str
    tag: str
    digest: str | None
    variant: str
    refs: frozenset[str]
    ended_at: datetime
    used_at: datetime
    """The time of the last request for the image, or of its build."""
    waits: bool


class RetentionDecision(msgspec.Struct, frozen=True, kw_only=True):
    """`kept` is the reason to keep the image, as the end of a sentence; `None`: nothing needs it. `record` is that of
    the build which pushed it."""

    image: Pushed
    record: Recorded | None
    kept: str | None

    @property
    def by_kiln(self) -> bool:
        return self.kept != FOREIGN


def recorded(build: Build) -> Recorded:
    request, status = build.request, build.status
    tag = tag_for(request.commit, request.subdir, request.build_args)
    ended_at = status.finished_at or build.created_at
    return Recorded(
        build=build.name,
        tag=tag,
        digest=status.image.digest if status.image else None,
        variant=tag.removeprefix(request.commit),
        refs=frozenset(ref for cause in build.causes for ref in (cause.ref, cause.head) if ref),
        ended_at=ended_at,
        used_at=max(ended_at, *(cause.at for cause in build.causes)),
        waits=waits(build),
    )


def waits(build: Build) -> bool:
    """Whether a request may still be answered with the build's image."""
    return bool(build.open or not build.state.ended or build.unanswered)


def judge(
    images: Sequence[Pushed],
    records: Iterable[Recorded],
    rule: Rule,
    now: datetime,
    *,
    allowed: bool = True,
) -> list[RetentionDecision]:
    """A verdict for each image of a repository, in the given order. `allowed`: Kiln may push to the repository."""
    known = {record.build: record for record in records}
    pairs = [(image, _record(image, known)) for image in images]
    newest = _newest([record for _, record in pairs if record], rule.per_ref)
    holders = {part: image for image in images for part in image.parts}

    def kept(image: Pushed, record: Recorded | None) -> str | None:
        if image.build is None or (record is None and image.parts):
            return FOREIGN
        if record is None:
            return "its build has no record here"
        if not allowed:
            return "its name is not one that Kiln may push to"
        return _held(image, record, holders) or _used(record, rule, now) or _among(newest, record)

    return [RetentionDecision(image=image, record=record, kept=kept(image, record)) for image, record in pairs]


def _record(image: Pushed, known: Mapping[str, Recorded]) -> Recorded | None:
    """An index has no label of its own: it shows that of its first part, which any writer may have added to it."""
    record = known.get(image.build or "")
    return record if record and (not image.parts or record.digest == image.digest) else None


def _newest(records: Sequence[Recorded], per_ref: int) -> dict[str, str]:
    """By build, a ref for which its image is among the newest in the registry."""
    groups: dict[tuple[str, str], list[Recorded]] = {}
    for record in {record.build: record for record in records}.values():
        for ref in record.refs:
            groups.setdefault((ref, record.variant), []).append(record)
    found: dict[str, str] = {}
    for (ref, _), group in sorted(groups.items()):
        group.sort(key=lambda record: (record.ended_at, record.build), reverse=True)
        for record in group[:per_ref]:
            found.setdefault(record.build, ref)
    return found


def _held(image: Pushed, record: Recorded, holders: Mapping[str, Pushed]) -> str | None:
    """Whether a further tag or an index keeps the image."""
    others = [tag for tag in image.tags if tag != record.tag]
    if others:
        return f"it is tagged {others[0]}"
    holder = holders.get(image.digest)
    if holder is None:
        return None
    return f"the index {holder.tags[0] if holder.tags else holder.digest} refers to it"


def _used(record: Recorded, rule: Rule, now: datetime) -> str | None:
    if record.waits:
        return "its build waits, runs or is being announced"
    if now - record.used_at < rule.period:
        return f"it was asked for at {record.used_at:%Y-%m-%d %H:%M} UTC"
    return None


def _among(newest: Mapping[str, str], record: Recorded) -> str | None:
    ref = newest.get(record.build)
    return None if ref is None else f"it is one of the newest of {ref}"
