"""Which images in the registry are still needed: facts in, a verdict for each image out.

An image goes only if Kiln pushed it for a build that still has a record, and if nothing of the following holds: it has
a tag beside the one of its commit, whoever set that; an index refers to it; its build waits, runs or is being
announced; somebody asked for it within the rule's period; it is one of the newest images of a ref. So what cannot be
known keeps an image: without a record nobody can say which ref it was built for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from builds.build import Build
from builds.image import tag_for

FOREIGN = "Kiln did not push it"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """`keep:` of the configuration: how many images of each ref stay, and for how long all of them do."""

    per_ref: int
    period: timedelta


class Pushed(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest in the registry. `build` is its label `dev.kiln.build`, of an index that of its first part; `parts`
    are the digests that an index refers to, directly or through another index."""

    repository: str
    digest: str
    media_type: str = ""
    tags: tuple[str, ...] = ()
    build: str | None = None
    parts: tuple[str, ...] = ()


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What a build's record says of its image. `digest` is `None` unless the build's last end was a success. `variant`
    is the part of the tag after the commit: one ref has an image for each subdir and set of build arguments."""

    build: str
    tag: str
    digest: str | None
    variant: str
    refs: frozenset[str]
    ended_at: datetime
    used_at: datetime
    """The last time that somebody asked for it, or that it was built."""
    waits: bool


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`kept` is why the image stays, as the end of a sentence; `None`: nothing needs it. `record` is that of the build
    which pushed it."""

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
    """Whether somebody may yet be answered with the build's image."""
    return bool(build.open or not build.state.ended or build.unanswered)


def judge(
    images: Sequence[Pushed],
    records: Iterable[Recorded],
    rule: Rule,
    now: datetime,
    *,
    allowed: bool = True,
) -> list[Verdict]:
    """A verdict for each image of a repository, in their order. `allowed`: Kiln may push there."""
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

    return [Verdict(image=image, record=record, kept=kept(image, record)) for image, record in pairs]


def _record(image: Pushed, known: Mapping[str, Recorded]) -> Recorded | None:
    """An index has no label: it has the one of its first part, which anybody may have put there."""
    record = known.get(image.build or "")
    return record if record and (not image.parts or record.digest == image.digest) else None


def _newest(records: Sequence[Recorded], per_ref: int) -> dict[str, str]:
    """By build, a ref of which its image is one of the newest in the registry."""
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
    """By a further tag, or by an index."""
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
