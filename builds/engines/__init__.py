"""The engine interface: an engine stores the records and runs the attempts. The policy is in `builds.plan`.

Web uses the narrow half (`Records`), the controller all of it (`Engine`). `local` is this machine's Docker.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from builds.build import Attempt, Build, Cause, Node, Request, Sighting, State

UNREADABLE = (ValueError, RecursionError)
"""Exceptions of msgspec for unexpected JSON: DecodeError, UnicodeDecodeError, and RecursionError for deep nesting."""


class EngineError(Exception):
    """Root of the engines' exceptions.

    EngineError
     ├── NotFound       no such build
     ├── AlreadyEnded   the build has ended, so it cannot be cancelled
     ├── NothingToSend  the build has sent that sink no terminal event, so none can be sent again
     ├── QueueFull      KILN_MAX_QUEUED, or the requester's share of it, is exhausted (.per_user)
     ├── Conflict       the record has changed since the revision that the write was based on
     └── Unavailable    the store cannot be reached, or did not answer in time: try again
          └── Refused   the store works, but refuses this record; it may accept others
    """


class NotFound(EngineError):
    pass


class AlreadyEnded(EngineError):
    pass


class NothingToSend(EngineError):
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
    """A request with its build's name, and the cause that made it."""

    name: str
    request: Request
    cause: Cause


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a list, newest first. `cursor` continues it; `None` at the end."""

    builds: tuple[Build, ...]
    cursor: str | None


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an attempt's log. The builder numbers lines from 1, so all readers see the same numbers."""

    attempt: int
    number: int
    text: str
    phase: str | None = None


class World(msgspec.Struct, frozen=True, kw_only=True):
    """All inputs of a plan: open builds, the observed state of their live attempts, and the nodes."""

    builds: tuple[Build, ...]
    sightings: tuple[Sighting, ...]
    """Includes running attempts without a record, which occupy their slots until they end."""
    nodes: tuple[Node, ...]
    deleted: tuple[Build, ...] = ()
    """The last state of open builds whose record was deleted by hand. Each is reported once."""
    unreadable: Mapping[str, str] = {}
    """Reasons by name for open records that are missing from `builds`, because the record or its attempts cannot be
    read."""
    scalable: bool = False
    """An attempt without a node can bring one, because an autoscaler sees it wait."""


class Records(Protocol):
    """The durable records, as far as web may use them. Safe for many threads and processes."""

    def accept(self, submissions: Sequence[Submission]) -> list[Build]:
        """Stores all submissions or none: creates records, or adds the causes to existing ones.

        Idempotent: a known cause changes nothing. Raises QueueFull, Unavailable.
        """

    def get(self, name: str) -> Build:
        """Raises NotFound, Unavailable."""

    def list(
        self, *, repository: str | None = None, state: State | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page:
        """Builds, newest first. Raises ValueError for an invalid cursor, Unavailable."""

    def cancel(self, name: str, by: str | None) -> Build:
        """Sets the cancel mark. Raises NotFound, AlreadyEnded, Unavailable."""

    def resend(self, name: str, sink: str, by: str | None) -> Build:
        """Sets the mark to send the terminal event to the sink once more. Raises NotFound, NothingToSend,
        Unavailable."""

    def withdraw(self, name: str, ref: str) -> Build:
        """Withdraws the causes of that ref's pull request. Raises NotFound, Unavailable."""

    def nodes(self) -> tuple[Node, ...]:
        """The nodes where attempts can run, as they are now, by name. Raises Unavailable."""

    def log(self, name: str, attempt: int, after: int = 0) -> Iterator[LogLine]:
        """The present lines of one attempt after line `after`; none without a log."""

    def changed(self, name: str, since: str, timeout: float) -> Build | None:
        """Waits up to `timeout` seconds for a record with another revision than `since`; `None` if none came.

        Raises NotFound, Unavailable.
        """

    def close(self) -> None:
        """Closes files and connections. Attempts continue."""


class Engine(Records, Protocol):
    """Records and their attempts, for the leading controller."""

    def observe(self, in_flight: Collection[str] = ()) -> World:
        """The present state of the world. Raises Unavailable.

        `in_flight` names builds with another call of this process in progress. Their attempts are not observed, and a
        later call reports the deletion of such a record.
        """

    def write(self, build: Build) -> Build:
        """Replaces the controller's part (`status`, `open`) of the record and returns it with its new revision.

        Raises Conflict if the record has changed since `build.revision`, NotFound, Unavailable.
        """

    def start(self, build: Build, attempt: Attempt) -> None:
        """Runs the attempt, which the record already contains. Idempotent. Raises Unavailable."""

    def stop(self, build: Build, attempt: Attempt) -> None:
        """Stops the attempt (SIGTERM); its log and result remain. Raises Unavailable."""

    def forget(self, build: Build) -> None:
        """Deletes the record and everything that belongs to it. Raises Unavailable."""

    def keep_log(self, build: Build, attempt: int) -> None:
        """Saves the log of an ended attempt beyond the life of the attempt's pod or folder. Raises Unavailable."""

    def clear_attempts(self, build: Build) -> None:
        """Deletes the pods or folders of its attempts; record and logs remain. Raises Unavailable."""

    def closed(self, before: datetime) -> Iterator[Build | None]:
        """Settled builds that ended before the given time, for housekeeping, in any order.

        The caller may forget them as they come, and memory use is bounded. `None` comes after each large read, so that
        the caller can attend to more urgent work.
        """

    def wait(self, timeout: float) -> None:
        """Returns when something may have changed, or after `timeout` seconds."""

    def wake(self) -> None:
        """Makes `wait` return. May be called from any thread."""
