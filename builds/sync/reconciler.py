"""Reconciles listed repositories with the records: `kiln sync` runs one round, the poller runs it periodically.

It needs only the records, so it works with any engine and in any process. It may be interrupted at any point and
repeated: the next round finds earlier submissions in the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Protocol

import msgspec

from builds.build import SYNC, Build, Kind, State
from builds.engines import NotFound, QueueFull, Records, Submission
from builds.errors import RequestError, TryAgain
from builds.intake import Intake, merge
from builds.repository import Refs, Repository
from builds.sync.missing import Listed, Ref, Seen, due, moved, pushes
from builds.triggers import Trigger, requested_builds
from eventing.errors import EventError

PAGE = 200
"""Records per page when the waiting builds are counted."""


class Lister(Protocol):
    """Lists all refs of a repository at its Git host."""

    def refs(self, repository: Repository) -> Refs:
        """Raises RequestError of `builds.errors`."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A repository's refs, compared with the records.

    `known` counts the requests that exist already. `refused` has sentences about requests that will never be built.
    `unanswered` has sentences about requests that may be built later, because the host did not answer.
    """

    repository: str
    missing: tuple[Submission, ...]
    known: int
    refused: tuple[str, ...]
    unanswered: tuple[str, ...]
    seen: Mapping[str, Seen]


class SyncReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a round. `left` counts the submissions that were postponed because too many builds wait."""

    comparison: Comparison
    asked: tuple[Submission, ...] = ()
    left: int = 0

    @property
    def complete(self) -> bool:
        return not self.left and not self.comparison.unanswered


class Sync:
    """`max_waiting`: how many builds may wait, for any requester, before this class stops submitting. The rest of the
    queue is reserved for clients that cannot retry.

    It remembers the refs of its last complete round, to detect that they have moved. Not thread-safe.
    """

    def __init__(
        self,
        *,
        records: Records,
        intake: Intake,
        lister: Lister,
        triggers: Sequence[Trigger],
        max_waiting: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._intake = intake
        self._lister = lister
        self._triggers = triggers
        self._max_waiting = max_waiting
        self._clock = clock
        self._seen: dict[str, Mapping[str, Seen]] = {}

    def reconcile(self, listed: Listed) -> SyncReport:
        """Compares, and submits what is missing. Raises RequestError if the repository cannot be listed,
        Unavailable."""
        return self.submit(self.compare(listed))

    def compare(self, listed: Listed) -> Comparison:
        """Raises RequestError if the repository cannot be listed, Unavailable."""
        at = self._clock()
        repository = self._intake.repository(listed.url)
        found = self._lister.refs(repository)
        before = self._seen.get(repository.url, {})
        missing: list[Submission] = []
        refused: list[str] = []
        unanswered: list[str] = []
        known, seen = 0, {}
        for ref in pushes(listed.url, repository, found):
            submissions = list(self._submissions(ref, refused, unanswered))
            if submissions:
                seen[ref.name] = Seen(commit=ref.commit, at=at)
            for ask in merge(submissions):
                requested = due(ask, self._build(ask.name), moved(ref, before.get(ref.name)))
                known += requested is None
                missing += [] if requested is None else [requested]
        return Comparison(
            repository=repository.url,
            missing=tuple(missing),
            known=known,
            refused=tuple(refused),
            unanswered=tuple(unanswered),
            seen=seen,
        )

    def submit(self, comparison: Comparison) -> SyncReport:
        """Submits the missing requests, as far as the queue permits. Raises Unavailable."""
        builds: dict[str, list[Submission]] = {}
        for ask in comparison.missing:
            builds.setdefault(ask.name, []).append(ask)
        asked: list[Submission] = []
        for submissions in islice(builds.values(), self._room() if builds else 0):
            with suppress(QueueFull):  # other clients were faster, or this build's events wait for a sink
                self._records.accept(submissions)
                asked += submissions
        report = SyncReport(comparison=comparison, asked=tuple(asked), left=len(comparison.missing) - len(asked))
        if report.complete:
            self._seen[comparison.repository] = comparison.seen
        return report

    def _submissions(self, ref: Ref, refused: list[str], unanswered: list[str]) -> Iterator[Submission]:
        """The submissions that the triggers produce for a ref. Notes those that are refused or unanswered."""
        event = ref.push
        try:
            requested = requested_builds(self._triggers, event)
        except (RequestError, EventError) as error:
            refused.append(f"{ref.name}: {error}")
            return
        for each in requested:
            try:
                yield self._intake.submission(
                    each,
                    source=event.source,
                    id=event.id,
                    type=event.type,
                    by=SYNC,
                    kind=Kind.SYNC,
                    now=self._clock(),
                )
            except TryAgain as error:
                unanswered.append(f"{ref.name}: {error}")
            except RequestError as error:
                refused.append(f"{ref.name}: {error}")

    def _build(self, name: str) -> Build | None:
        try:
            return self._records.get(name)
        except NotFound:
            return None

    def _room(self) -> int:
        """How many more builds may wait."""
        waiting, cursor = 0, None
        while waiting < self._max_waiting:
            page = self._records.list(state=State.QUEUED, limit=PAGE, cursor=cursor)
            waiting, cursor = waiting + len(page.builds), page.cursor
            if cursor is None:
                break
        return max(0, self._max_waiting - waiting)
