"""What an engine is: it keeps the records and runs the attempts. Policy is not here but in `builds.plan`.

Web holds the narrow half (`Records`), the controller the whole (`Engine`). `local` is this machine's Docker.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from builds.build import Attempt, Build, Cause, Node, Request, Sighting, State

UNREADABLE = (ValueError, RecursionError)
"""What msgspec raises for JSON that is not what was expected: DecodeError, UnicodeDecodeError, or for deep nesting."""


class EngineError(Exception):
    """Root of what engines raise.

    EngineError
     ├── NotFound       no such build
     ├── AlreadyEnded   it has ended, so there is nothing to cancel
     ├── QueueFull      KILN_MAX_QUEUED, or the asker's share of it, is reached (.per_user)
     ├── Conflict       the record has changed since the revision that the write was decided on
     └── Unavailable    the store cannot be reached, or did not answer in time: try again
          └── Refused   the store works, and does not take this one: others it may
    """


class NotFound(EngineError):
    pass


class AlreadyEnded(EngineError):
    pass


class QueueFull(EngineError):
    def __init__(self, message: str, *, per_user: bool = False) -> None:
        super().__init__(message)
        self.per_user = per_user


class Conflict(EngineError):
    pass


class Unavailable(EngineError):
    pass


class Refused(Unavailable):
    pass


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A request and the event that made it."""

    name: str
    request: Request
    cause: Cause


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Part of a list, newest first. `cursor` continues it; `None` at the end."""

    builds: tuple[Build, ...]
    cursor: str | None


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an attempt's log. `number` counts from 1 and is the builder's, so it is the same for every reader."""

    attempt: int
    number: int
    text: str
    phase: str | None = None


class World(msgspec.Struct, frozen=True, kw_only=True):
    """All that a plan is made from: open builds, what is seen of their live attempts, and the nodes."""

    builds: tuple[Build, ...]
    sightings: tuple[Sighting, ...]
    """Also of attempts under way whose record has gone: they have their slot until they end."""
    nodes: tuple[Node, ...]
    deleted: tuple[Build, ...] = ()
    """As they last were: open builds whose record somebody has deleted by hand. Each is told once."""
    unreadable: Mapping[str, str] = {}
    """Why, by name: records that are open and not among `builds`, because they, or what is there of their attempts,
    cannot be read."""
    scalable: bool = False
    """An attempt that no node has yet can bring one: an autoscaler sees that it waits."""


class Records(Protocol):
    """The durable records: what web may do. Safe to call from many threads and processes."""

    def accept(self, submissions: Sequence[Submission]) -> list[Build]:
        """Writes all that is asked, or nothing: creates records, or adds the causes to those that exist.

        Idempotent: a known cause changes nothing. Raises QueueFull, Unavailable.
        """

    def get(self, name: str) -> Build:
        """Raises NotFound, Unavailable."""

    def list(
        self, *, repository: str | None = None, state: State | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page:
        """Newest first. Raises ValueError for a cursor that is not ours, Unavailable."""

    def cancel(self, name: str, by: str | None) -> Build:
        """Leaves the cancel mark. Raises NotFound, AlreadyEnded, Unavailable."""

    def withdraw(self, name: str, ref: str) -> Build:
        """Takes back what the pull request of that ref has asked for. Raises NotFound, Unavailable."""

    def nodes(self) -> tuple[Node, ...]:
        """The nodes where attempts can run, as they are now, by name. Raises Unavailable."""

    def log(self, name: str, attempt: int, after: int = 0) -> Iterator[LogLine]:
        """The lines of one attempt that exist now and come after line `after`; none where there is no log."""

    def changed(self, name: str, since: str, timeout: float) -> Build | None:
        """Waits at most `timeout` seconds for a record whose revision is not `since`; `None` if none came.

        Raises NotFound, Unavailable.
        """

    def close(self) -> None:
        """Lets go of files and connections. Attempts go on."""


class Engine(Records, Protocol):
    """Records, and the attempts at them: what the one controller may do."""

    def observe(self, in_flight: Collection[str] = ()) -> World:
        """What is, now. Raises Unavailable.

        `in_flight` names builds for which another call of this process is under way: of their attempts nothing is seen,
        and if their record has gone that is told by a later call.
        """

    def write(self, build: Build) -> Build:
        """Replaces the controller's part (`status`, `open`) of the record and returns it with its new revision.

        Raises Conflict if it has changed since `build.revision`, NotFound, Unavailable.
        """

    def start(self, build: Build, attempt: Attempt) -> None:
        """Runs the attempt, which the record already names. Doing so twice starts it once. Raises Unavailable."""

    def stop(self, build: Build, attempt: Attempt) -> None:
        """Asks the attempt to end (SIGTERM; its log and result stay). Raises Unavailable."""

    def forget(self, build: Build) -> None:
        """Deletes the record and all that belongs to it. Raises Unavailable."""

    def keep_log(self, build: Build, attempt: int) -> None:
        """Makes the log of an attempt that has ended outlive what the attempt ran in. Raises Unavailable."""

    def clear_attempts(self, build: Build) -> None:
        """Deletes what its attempts ran in; the record and the logs stay. Raises Unavailable."""

    def closed(self, before: datetime) -> Iterator[Build | None]:
        """Builds that are settled and ended until then, for housekeeping: as they are read, in whatever order.

        They may be forgotten as they come. Nothing is held that grows with how many there are. `None` comes wherever
        much had to be read: the caller may have something urgent to do.
        """

    def wait(self, timeout: float) -> None:
        """Returns when something may have changed, or after `timeout` seconds."""

    def wake(self) -> None:
        """Makes `wait` return, from any thread."""
