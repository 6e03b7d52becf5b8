"""The engine of one machine: records in SQLite, attempts as processes beside its Docker daemon.

All state that a restart needs is on disk. Web and controller are separate processes that share only the file, and any
process can determine the state of an attempt from its folder. So each of them may be killed at any instant, and its
successor observes the world and continues.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from builds.build import Attempt, Build, Node, Phase, Sighting, State
from builds.builder.spec import Surroundings
from builds.engines import LogLine, Page, Submission, Unavailable, World
from builds.engines.local.attempts import Attempts, Liveness
from builds.engines.local.changes import Changes, Mark
from builds.engines.local.daemon import DaemonProbe
from builds.engines.local.store import Store
from eventing.pulse import Pulse

__all__ = ["LocalEngine"]

POLL_INTERVAL = 0.05
"""Seconds between two checks by a waiting controller: the release of a lock raises no event."""


class LocalEngine:
    """An `Engine` under one folder: `kiln.db` and `attempts/<build>-<number>/`.

    `command` is the builder; its arguments are the paths of the spec and of the result. The few variables that it
    inherits come from `environment` (`attempts.inherited`). `pulse` is that of the observing loop.

    Raises Unavailable if the folder or the file cannot be used, EngineError if a newer Kiln has written them.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        surroundings: Surroundings,
        max_queued: int = 1000,
        max_queued_per_user: int = 20,
        node: str = "local",
        command: Sequence[str] = (sys.executable, "-m", "builds.builder"),
        environment: Mapping[str, str] = os.environ,
        pulse: Pulse | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        root = state_dir.absolute()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            (root / "attempts").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"The folder {root} (KILN_STATE_DIR) cannot be used: {error.strerror}.") from error
        self._store = Store(root / "kiln.db", max_queued=max_queued, max_queued_per_user=max_queued_per_user, now=now)
        self._changes = Changes(self._store.connect)
        self._attempts = Attempts(
            root / "attempts",
            surroundings=surroundings,
            command=command,
            environment=environment,
            ended=self.wake,
            pulse=pulse or Pulse("controller"),
            now=now,
        )
        self._daemon = DaemonProbe(surroundings.docker_host, surroundings.daemon)
        self._node = node
        self._woken = threading.Event()
        self._seen: Mark = (-1, -1)
        self._liveness: dict[tuple[str, int], tuple[Build, Attempt, Liveness]] = {}
        self._open: Mapping[str, Build] = {}
        self._left: dict[str, tuple[Build, Attempt, bool]] = {}

    def close(self) -> None:
        """Closes the file. Attempts continue."""
        self._changes.close()
        self._store.close()

    # ---- Records ----------------------------------------------------------------------------------------------------

    def accept(self, submissions: Sequence[Submission]) -> list[Build]:
        return self._store.accept(submissions)

    def get(self, name: str) -> Build:
        return self._store.get(name)

    def list(
        self, *, repository: str | None = None, state: State | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page:
        return self._store.list(repository=repository, state=state, limit=limit, cursor=cursor)

    def cancel(self, name: str, by: str | None) -> Build:
        return self._store.cancel(name, by)

    def resend(self, name: str, sink: str, by: str | None) -> Build:
        return self._store.resend(name, sink, by)

    def withdraw(self, name: str, ref: str) -> Build:
        return self._store.withdraw(name, ref)

    def nodes(self) -> tuple[Node, ...]:
        why = self._daemon.trouble()
        return (Node(name=self._node, ready=why is None, why=why, disk=None if why else self._daemon.disk()),)

    def log(self, name: str, attempt: int, after: int = 0) -> Iterator[LogLine]:
        return self._attempts.log(name, attempt, after)

    def changed(self, name: str, since: str, timeout: float) -> Build | None:
        return self._store.get(name) if self._changes.wait(name, int(since or -1), timeout) else None

    # ---- Engine -----------------------------------------------------------------------------------------------------

    def observe(self, in_flight: Collection[str] = ()) -> World:
        self._seen = self._changes.mark()
        stored, unreadable = self._store.open()
        self._liveness = {}
        seen: dict[str, Sighting] = {}
        for build in stored:
            try:
                if build.live is not None and build.name not in in_flight:
                    seen[build.name] = self._sighting(build, build.live)
            except Unavailable as error:
                unreadable[build.name] = str(error)
        builds = {build.name: build for build in stored if build.name not in unreadable}
        deleted = self._deleted(builds, unreadable, in_flight)
        why = self._daemon.trouble()
        return World(
            builds=tuple(builds.values()),
            sightings=(*seen.values(), *self._left_over()),
            nodes=(Node(name=self._node, ready=why is None, why=why),),
            deleted=deleted,
            unreadable=unreadable,
        )

    def write(self, build: Build) -> Build:
        return self._store.write(build)

    def start(self, build: Build, attempt: Attempt) -> None:
        self._attempts.start(build, attempt)
        self._liveness[build.name, attempt.number] = (build, attempt, Liveness.NEVER)

    def stop(self, build: Build, attempt: Attempt) -> None:
        self._attempts.stop(build, attempt)

    def forget(self, build: Build) -> None:
        """Deletes the folders first, without locking the file. After a crash in between, the next sweep repeats it."""
        self._attempts.remove(build)
        self._store.forget(build)

    def keep_log(self, build: Build, attempt: int) -> None:
        """Nothing to do: the log is a file already."""

    def clear_attempts(self, build: Build) -> None:
        self._attempts.pack(build)

    def closed(self, before: datetime) -> Iterator[Build | None]:
        """First deletes the folders whose record was deleted while no controller ran."""
        yield from self._attempts.sweep(self._store.has)
        yield from self._store.closed(before)

    def wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if self._woken.wait(min(POLL_INTERVAL, left)) or self._changes.mark() != self._seen or self._moved():
                break
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def _sighting(self, build: Build, attempt: Attempt) -> Sighting:
        """Raises Unavailable if the folder cannot be read."""
        liveness = self._attempts.supervise(build, attempt)
        self._liveness[build.name, attempt.number] = (build, attempt, liveness)
        return self._attempts.sighting(build, attempt, liveness, self._node)

    def _deleted(
        self, builds: Mapping[str, Build], unreadable: Mapping[str, str], in_flight: Collection[str]
    ) -> tuple[Build, ...]:
        """The builds that were open at the last observation and whose record is gone, or belongs to a new build."""
        known = [one for name, one in self._open.items() if name not in unreadable]
        left = [one for one in known if not _same(builds.get(one.name), one)]
        later = {one.name: one for one in left if one.name in in_flight}
        self._open = {**builds, **later}
        left = [one for one in left if one.name not in later]
        gone = tuple(one for one in left if one.name in builds or not self._store.has(one.name))
        self._left |= {one.uid: (one, one.live, False) for one in gone if one.live}
        for one in gone:
            self._attempts.discard(one)
        return gone

    def _left_over(self) -> Iterator[Sighting]:
        """Running attempts without a record: each is stopped once, and deleted after its end."""
        for uid, (build, attempt, stopped) in tuple(self._left.items()):
            with suppress(Unavailable):
                if self._attempts.supervise(build, attempt) in (Liveness.NEVER, Liveness.OVER):
                    del self._left[uid]
                    self._attempts.discard(build)
                    continue
                if not stopped:
                    self._attempts.stop(build, attempt)
                    self._left[uid] = (build, attempt, True)
            name = f"{build.name}-{attempt.number}"
            yield Sighting(build=name, attempt=attempt.number, phase=Phase.RUNNING, node=self._node)

    def _moved(self) -> bool:
        """Whether an attempt's liveness differs from the last observation, or from its start."""
        try:
            seen = [*self._liveness.values()]  # a writer's thread may be adding entries
            return any(self._attempts.liveness(build, attempt) is not liveness for build, attempt, liveness in seen)
        except Unavailable:
            return False  # the next observation reports it


def _same(now: Build | None, before: Build) -> bool:
    return now is not None and now.uid == before.uid
