"""The attempts: each is a process in its own session, with a folder that describes its state to any reader.

    attempts/<build>-<number>/
    ├── lock            locked by the builder and its children: held means that a process of the attempt is alive
    ├── builder.lock    locked by the builder alone: free while `lock` is held means that the builder crashed
    ├── spec.json       the builder's task, and the identity of the attempt
    ├── spawned, group  its session, as recorded by its starter and then by the builder itself
    ├── stopping        created when the attempt is first stopped
    ├── log, errors     its standard output and error
    ├── log.gz          the compressed log, later; then only `lock` remains beside it
    └── result.json     the builder's own result

Liveness is derived from the locks, which the kernel releases with the last process that holds them. Process ids are not
used, because they are reused. The folder is read while holding `lock`, so the attempt cannot start meanwhile.
"""

from __future__ import annotations

import fcntl
import gzip
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import msgspec

import builds
from builds.build import Attempt, Build, Phase, Result, Sighting
from builds.builder.spec import Surroundings, spec_for
from builds.engines import UNREADABLE, LogLine, Refused, Unavailable, logfile
from builds.faults import Fault, crash_if_armed
from builds.removal import DELETING, remove
from eventing.pulse import Pulse
from eventing.tracing import Trace

log = logging.getLogger(__name__)

STOP_GRACE = timedelta(seconds=30)
"""Time for a builder to end after SIGTERM (it promises ten seconds), before its session is killed."""

KEPT_BACK = (
    "KILN_",
    "K_",
    "JUPYTERHUB_",
    "BUILDX_",
    "BUILDKIT_",
    "DOCKER_",
    "CONTAINER",
    "PODMAN_",
    "PYTHON",
    "GIT_",
    "TRACE",
)
PASSED_ON = ("KILN_FAULT", "DOCKER_CONFIG", "GIT_SSL_CAINFO")
"""A builder has this process's environment, because docker's credential helpers find the clouds' accounts and their own
files by it. Removed by prefix: Kiln's own variables, those that choose another builder or daemon, and those that change
how Python and git run. `PASSED_ON` lists the exceptions."""

_CODE = Path(builds.__file__).parents[1]
"""The folder of the running code, so that `python -m builds.builder` does not import from the working directory."""

LOCK, LOG, PACKED = "lock", "log", "log.gz"

MAX_ATTEMPT = 10_000
"""Highest attempt number whose folder is processed: no build has had more, and a record may contain any number."""

_MAX_RESULT = 64 * 1024
"""Bytes: a builder writes at most 4096, so a longer file does not come from one."""


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a builder inherits."""
    return {name: value for name, value in environment.items() if name in PASSED_ON or not name.startswith(KEPT_BACK)}


class Liveness(Enum):
    """The liveness of an attempt, as derived from the locks and the folder."""

    NEVER = "its builder has never run"
    STARTING = "alive, and its builder has not recorded its session yet"
    RUNNING = "its builder is alive"
    ORPHANED = "its builder has crashed, and a child is alive"
    OVER = "all of its processes have ended"


class _SpecLabel(msgspec.Struct):
    """The part of a Spec that identifies the attempt."""

    attempt_label: str


class _Folder:
    """One attempt's folder. Its spec must contain `label`; otherwise it belongs to an older record's attempt."""

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self._label = label

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    @property
    def ours(self) -> bool:
        """Whether the folder belongs to this attempt. The spec is complete before a process is started with it."""
        try:
            found = msgspec.json.decode(self["spec.json"].read_bytes(), type=_SpecLabel)
        except (FileNotFoundError, *UNREADABLE):
            return False
        return found.attempt_label == self._label

    @property
    def began(self) -> bool:
        """Two files, because each writer may be killed before it writes: a builder does nothing before `group`."""
        return self["spawned"].exists() or self["group"].exists()

    @property
    def session(self) -> int | None:
        """The id of its session and first process group, if it was recorded."""
        for name in ("group", "spawned"):
            with suppress(FileNotFoundError, ValueError):
                return int(self[name].read_bytes())
        return None

    @property
    def result(self) -> Result | None:
        """The builder's result; `None` if it is missing or invalid."""
        try:
            with self["result.json"].open("rb") as file:
                result = msgspec.json.decode(file.read(_MAX_RESULT), type=Result)
        except (OSError, *UNREADABLE):
            return None
        return result if result.state.ended else None

    def write(self, name: str, content: bytes) -> None:
        """Writes atomically."""
        draft = self[f".{name}"]
        draft.write_bytes(content)
        draft.replace(self[name])

    def clean(self) -> None:
        """Deletes the working folder of a killed builder, which contains credentials."""
        for path in self.path.glob("kiln-*"):
            remove(path)

    def clear(self) -> None:
        """Deletes everything but the lock, which the caller holds."""
        for path in self.path.iterdir():
            if path.name != LOCK:
                remove(path) if path.is_dir() else path.unlink()


class Attempts:
    """All attempts under `root`. `ended` is called from another thread when an attempt that was started here ends."""

    def __init__(
        self,
        root: Path,
        *,
        surroundings: Surroundings,
        command: Sequence[str],
        environment: Mapping[str, str],
        ended: Callable[[], None],
        pulse: Pulse,
        now: Callable[[], datetime],
    ) -> None:
        self._root = root
        self._surroundings = surroundings
        self._command = tuple(command)
        self._environment = inherited(environment)
        self._ended = ended
        self._pulse = pulse
        self._now = now

    def liveness(self, build: Build, attempt: Attempt) -> Liveness:
        """Raises Unavailable."""
        with _unavailable("looked at"):
            return _liveness(self._folder(build, attempt))

    def supervise(self, build: Build, attempt: Attempt) -> Liveness:
        """Determines the liveness, and kills the children of a crashed builder and a builder that ignores its stop.

        Raises Unavailable.
        """
        self._pulse.beat()
        with _unavailable("looked at"):
            folder = self._folder(build, attempt)
            liveness = _liveness(folder)
            stopping_since = _written(folder["stopping"])
            overdue = stopping_since is not None and self._now() - stopping_since > STOP_GRACE
            if liveness is Liveness.ORPHANED or (overdue and liveness in (Liveness.STARTING, Liveness.RUNNING)):
                _kill(folder.session)
            if liveness is Liveness.OVER:
                self._clean(folder, build)
            return liveness

    def sighting(self, build: Build, attempt: Attempt, liveness: Liveness, node: str) -> Sighting:
        """Translates the liveness for the plan. Raises Unavailable."""
        seen = Sighting(build=build.name, attempt=attempt.number, phase=Phase.RUNNING, node=node)
        with _unavailable("looked at"):
            folder = self._folder(build, attempt)
            if liveness is Liveness.NEVER:
                gone = attempt.started_at is not None
                why = "The attempt's folder has been deleted from this machine." if gone else None
                return msgspec.structs.replace(seen, phase=Phase.LOST if gone else Phase.ABSENT, waiting=why)
            if liveness is Liveness.STARTING:
                return msgspec.structs.replace(seen, phase=Phase.PENDING, waiting="Its builder is starting.")
            seen = msgspec.structs.replace(seen, started_at=_written(folder["group"]))
            if liveness is not Liveness.OVER:
                return seen
            result = folder.result
            if result is None:
                log.warning(
                    "No result; the builder's last output may be in %s", folder["errors"], extra={"build": build.name}
                )
            at = _written(folder["result.json"])
            return msgspec.structs.replace(seen, phase=Phase.ENDED, ended_at=at, result=result)

    def start(self, build: Build, attempt: Attempt) -> None:
        """Starts the attempt unless it was started before, by any process. Raises Unavailable."""
        folder = self._folder(build, attempt)
        with _unavailable("started"):
            folder.path.mkdir(mode=0o700, exist_ok=True)
            with _locked(folder[LOCK], fcntl.LOCK_EX) as lock:
                if folder.ours and (lock is None or folder.began):
                    return
                if lock is None:
                    raise Unavailable(f"Another process is using {folder.path}.")
                folder.clear()
                spec = spec_for(build, attempt, self._surroundings)
                folder.write("spec.json", msgspec.json.encode(spec))
                crash_if_armed(Fault.ENGINE_FOLDER_MADE)
                builder = self._spawn(folder, lock, build.status.trace)
                threading.Thread(target=self._reap, args=(builder,), name=folder.path.name, daemon=True).start()
                crash_if_armed(Fault.ENGINE_SPAWNED)
                folder.write("spawned", b"%d" % builder.pid)

    def stop(self, build: Build, attempt: Attempt) -> None:
        """Sends SIGTERM to all processes of the attempt, if any are alive. Raises Unavailable."""
        folder = self._folder(build, attempt)
        with _unavailable("stopped"):
            if _liveness(folder) in (Liveness.NEVER, Liveness.OVER):
                return
            with suppress(FileExistsError):
                folder["stopping"].touch(exist_ok=False)
            session = folder.session
            if session is None:
                raise Unavailable("The attempt has only just started, and has not recorded its session yet.")
            with suppress(ProcessLookupError):
                os.killpg(session, signal.SIGTERM)

    def remove(self, build: Build) -> None:
        """Deletes the folders of all attempts so far. Raises Refused."""
        for number in range(1, min(build.status.attempt, MAX_ATTEMPT) + 1):
            folder = self._root / f"{build.name}-{number}"
            try:
                if folder.exists():
                    remove(folder)
            except OSError as error:
                raise Refused(f"The attempt's folder cannot be deleted: {error}.") from error

    def pack(self, build: Build) -> None:
        """Reduces the folders of all attempts so far to their logs, compressed. Raises Refused."""
        for number in range(1, min(build.status.attempt, MAX_ATTEMPT) + 1):
            try:
                _pack(self._root / f"{build.name}-{number}")
            except OSError as error:
                raise Refused(f"The attempt's folder cannot be emptied: {error}.") from error

    def discard(self, build: Build) -> None:
        """Deletes the folders of a deleted record's ended attempts, but not those of a new record with that name."""
        for number in range(1, min(build.status.attempt, MAX_ATTEMPT) + 1):
            folder = _Folder(self._root / f"{build.name}-{number}", f"{build.uid}.{number}")
            with suppress(OSError):
                if _liveness(folder) is Liveness.OVER:
                    self._pulse.beat(DELETING)
                    remove(folder.path)

    def log(self, name: str, number: int, after: int) -> Iterator[LogLine]:
        """The lines after line `after`; the file is open only during the reading. Raises Unavailable."""
        if not re.fullmatch(r"[a-z0-9-]{1,63}", name):
            return
        folder = self._root / f"{name}-{number}"
        with _unavailable("read"), suppress(FileNotFoundError), _opened(folder) as file:
            yield from logfile.lines(file, number, after)

    def sweep(self, known: Callable[[str], bool]) -> Iterator[None]:
        """Deletes the folders of builds that are not `known`, if no process of the attempt is alive; one per step."""
        for path in tuple(self._root.iterdir()):
            if known(path.name.rpartition("-")[0]):
                continue
            with suppress(OSError), _locked(path / LOCK, fcntl.LOCK_SH) as lock:
                if lock is not None:
                    self._pulse.beat(DELETING)
                    remove(path)
            yield None

    def _clean(self, folder: _Folder, build: Build) -> None:
        """A failed deletion does not delay the end: it is retried with the folder itself."""
        self._pulse.beat(DELETING)
        try:
            folder.clean()
        except OSError as error:
            log.warning("The builder's working folder is not deleted: %s", error, extra={"build": build.name})

    def _folder(self, build: Build, attempt: Attempt) -> _Folder:
        return _Folder(self._root / f"{build.name}-{attempt.number}", f"{build.uid}.{attempt.number}")

    def _spawn(self, folder: _Folder, lock: int, trace: Trace | None) -> subprocess.Popen[bytes]:
        """The child inherits the lock and keeps it when this process closes its descriptor: it is never free."""
        with folder[LOG].open("ab") as output, folder["errors"].open("ab") as errors:
            return subprocess.Popen(
                [*self._command, str(folder["spec.json"]), str(folder["result.json"])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=_CODE,
                env={**self._environment, "KILN_ATTEMPT_DIR": str(folder.path), **(trace.environment if trace else {})},
                pass_fds=(lock,),
                start_new_session=True,
            )

    def _reap(self, builder: subprocess.Popen[bytes]) -> None:
        builder.wait()
        self._ended()


@contextmanager
def _locked(path: Path, mode: int) -> Iterator[int | None]:
    """The file's lock, exclusive or shared, as an open descriptor; `None` if another process holds it.

    It is released by closing alone: unlocking would also take it from a child that inherited it. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT if mode == fcntl.LOCK_EX else os.O_RDONLY
    descriptor = os.open(path, flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def _liveness(folder: _Folder) -> Liveness:
    """Uses shared locks, so that observers do not block each other."""
    try:
        with _locked(folder[LOCK], fcntl.LOCK_SH) as lock:
            if not folder.ours:
                return Liveness.NEVER
            if lock is not None:
                return Liveness.OVER if folder.began else Liveness.NEVER
    except FileNotFoundError:
        return Liveness.NEVER
    if not folder["group"].exists():  # only after writing it, the builder holds its own lock and does not meet ours
        return Liveness.STARTING
    try:
        with _locked(folder["builder.lock"], fcntl.LOCK_SH) as lock:
            return Liveness.RUNNING if lock is None else Liveness.ORPHANED
    except FileNotFoundError:
        return Liveness.ORPHANED


def _kill(session: int | None) -> None:
    """Kills a complete session with all its process groups. Processes forked meanwhile are killed in the next round."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and session is not None:
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(entry.name)) == session:
                    os.kill(int(entry.name), signal.SIGKILL)


def _written(path: Path) -> datetime | None:
    """Time of the last write to the file; `None` if the file is missing."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None


@contextmanager
def _unavailable(done: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, OverflowError) as error:  # names with NUL, times after the year 9999
        why = getattr(error, "strerror", None) or error
        raise Unavailable(f"The attempt's folder or process cannot be {done}: {why}.") from error


def _pack(folder: Path) -> None:
    """Keeps the lock file, which shows that the attempt has ended. Raises OSError."""
    plain, packed, begun = folder / LOG, folder / PACKED, folder / f"{PACKED}.new"
    if not folder.exists():
        return
    if plain.exists():
        with plain.open("rb") as source, begun.open("wb") as target:
            with gzip.GzipFile(fileobj=target, mode="wb", filename="") as packer:
                shutil.copyfileobj(source, packer)
            target.flush()
            os.fsync(target.fileno())
        begun.replace(packed)
    if not packed.exists():
        remove(folder)
        return
    for entry in folder.iterdir():
        if entry.name not in (PACKED, LOCK):
            remove(entry)


@contextmanager
def _opened(folder: Path) -> Iterator[BinaryIO]:
    """The log, decompressed if necessary. Raises FileNotFoundError without a log, OSError."""
    with ExitStack() as files:
        try:
            file: BinaryIO = files.enter_context((folder / LOG).open("rb"))
        except FileNotFoundError:
            packed = files.enter_context(gzip.open(folder / PACKED))
            file = files.enter_context(tempfile.TemporaryFile())
            try:
                shutil.copyfileobj(packed, file)
            except (EOFError, zlib.error) as error:
                raise OSError(f"{PACKED} is damaged: {error}") from error
            file.seek(0)
        yield file
