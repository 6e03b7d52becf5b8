"""Evaluate a saved request without side effects, for `kiln check --event` and the triggers page.

A dry run follows the path of a real request as far as it needs no network: decode or webhook dialect, triggers, policy,
names. It checks no signatures or tokens, resolves no refs and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple

import msgspec

from builds.build import Kind
from builds.engines import Submission
from builds.errors import RequestError
from builds.image import tag_for
from builds.intake import Intake
from builds.repository import Repository, short_name
from builds.triggers import REQUESTED, RequestedBuild, Trigger, Verdict, explain, from_event_data, idle
from eventing.event import Event
from eventing.hops import is_spent
from eventing.hosts import DIALECTS, Ignored, PushFacts
from eventing.http import decode
from eventing.saved import Saved

UNKNOWN = "0" * 40
"""Placeholder for a commit that only the Git host knows."""


class Who(NamedTuple):
    """The sender, as in `Intake.submission`. A webhook is always sent by its Git host."""

    by: str | None = None
    groups: Iterable[str] = ()
    chooses: bool = True


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One build that an event requests, or why it is refused. `trigger` is `None` if the event needs none."""

    trigger: str | None
    submission: Submission | None = None
    refused: RequestError | None = None

    @property
    def facts(self) -> dict[str, str]:
        """The values of the build, by the names that the configuration uses; empty values are left out."""
        return {} if self.submission is None else {name: value for name, value in _facts(self.submission) if value}


class EventEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The result for one event. `why` is the reason why no trigger is evaluated, `notes` lists the look-ups of a real
    request.

    If a matching trigger lacks a value, the whole event is refused and `builds` is empty.
    """

    event: Event
    why: str | None = None
    notes: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    builds: tuple[Planned, ...] = ()


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """The result for a request. `ignored` is the reason why a delivery contains no event."""

    ignored: str | None = None
    outcomes: tuple[EventEvaluation, ...] = ()


def dry_run(request: Saved, triggers: Sequence[Trigger], intake: Intake, who: Who, now: datetime) -> DryRun:
    """Evaluate a request against the triggers and the policy of `intake`.

    Raises EventError if it is not an event, RequestError for a webhook that names a repository of another host.
    """
    found = _events(request)
    if isinstance(found, Ignored):
        return DryRun(ignored=found.reason)
    who = who if request.word is None else Who(by=f"webhook:{request.word}")
    evaluation = _Evaluation(request.word, triggers, intake.with_resolver(Offline()), who, now)
    return DryRun(outcomes=tuple(map(evaluation.outcome, found)))


def _events(request: Saved) -> list[Event] | Ignored:
    if request.word is None:
        return decode(request.headers, request.body)
    return DIALECTS[request.word].parse(request.headers, request.body)


class _Evaluation(NamedTuple):
    """The values that all events of a request share."""

    word: str | None
    triggers: Sequence[Trigger]
    intake: Intake
    who: Who
    now: datetime

    def outcome(self, event: Event) -> EventEvaluation:
        """Raises EventError, RequestError."""
        notes: list[str] = []
        asks_itself = event.type == REQUESTED
        verdicts = explain(self.triggers, event, partial(_default_branch, notes=notes))
        wants = [from_event_data(event.data)] if asks_itself else [each.build for each in verdicts if each.build]
        if self.word is not None:
            self.intake.check_same_host_kind(self.word, event, wants)
        why = self._stopped(event) or (None if asks_itself else idle(event))
        refused = why is not None or any(verdict.lacks for verdict in verdicts)
        return EventEvaluation(
            event=event,
            why=why,
            notes=tuple(notes),
            verdicts=tuple(verdicts),
            builds=() if refused else tuple(self._planned(want, event) for want in wants),
        )

    def _stopped(self, event: Event) -> str | None:
        if self.intake.is_own(event):
            return "Kiln pushed or sent it."
        return "It has passed the maximum number of brokers (knativebrokerttl)." if is_spent(event) else None

    def _planned(self, want: RequestedBuild, event: Event) -> Planned:
        try:
            submission = self.intake.submission(
                want,
                source=event.source,
                id=event.id,
                type=event.type,
                by=self.who.by,
                groups=self.who.groups,
                chooses=self.who.chooses,
                kind=Kind.PUSH,
                now=self.now,
            )
        except RequestError as error:
            return Planned(trigger=want.trigger, refused=error)
        return Planned(trigger=want.trigger, submission=submission)


def _default_branch(push: PushFacts, notes: list[str]) -> str | None:
    """Return the default branch that the push names, or else the branch of the push; the host is not asked."""
    if push.default_branch is None:
        notes.append("A real request looks up the default branch; here this branch counts as the default.")
    return push.default_branch or short_name(push.ref)


def _facts(submission: Submission) -> Iterator[tuple[str, str | None]]:
    request, unknown = submission.request, submission.request.commit == UNKNOWN
    tag = tag_for(request.commit, request.subdir, request.build_args)
    yield "build", None if unknown else submission.name
    yield "repository", request.repository
    yield "ref", submission.cause.ref
    yield "commit", "to be looked up" if unknown else request.commit
    yield "subdir", request.subdir
    yield "build_args", ", ".join(f"{name}={value}" for name, value in request.build_args.items())
    yield "image", request.image if unknown else f"{request.image}:{tag}"
    yield "tags", ", ".join(submission.cause.tags)


class _OfflineRef(NamedTuple):
    ref: str | None
    commit: str


class Offline:
    """A resolver without network: a full ref stays as it is, any other text counts as a branch."""

    def resolve(self, repository: Repository, ref: str | None) -> _OfflineRef:  # noqa: ARG002
        full = ref if ref is None or ref.startswith("refs/") else f"refs/heads/{ref}"
        return _OfflineRef(full, UNKNOWN)

    def commit(self, repository: Repository, digits: str) -> str:  # noqa: ARG002
        return UNKNOWN

    def changed(self, repository: Repository, number: int) -> None:  # noqa: ARG002
        return None
