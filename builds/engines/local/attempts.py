"""The attempts: each a process in a session of its own and a folder that tells all about it, whoever looks.

    attempts/<build>-<number>/
        lock            locked by the builder and all it starts: held means that something of the attempt is alive
        builder.lock    locked by the builder alone: free while `lock` is held means that it died without the rest
        spec.json       what the builder is to do, and whose attempt this is
        spawned, group  its session, as the one who started it and then the builder itself wrote it down
        stopping        made when it was first told to stop
        log, errors     its standard output and error
        log.gz          after a while, and then nothing else is left but `lock`
        result.json     how it ended, by its own account

Life is told by the locks, which the kernel lets go with the last process that holds them, and never by a process id:
those are used again. What is in the folder is read with `lock` in hand, so nobody can start it meanwhile.
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
"""What a builder has after it was told to stop (it promises ten), before all of it is killed."""

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
"""A builder has this process's environment, because docker's credential helpers look there for the clouds' accounts and
for where their files are. By how they begin: what is only ours, what chooses another builder or daemon, what changes
how Python and git run; and those of them that it gets all the same."""

_CODE = Path(builds.__file__).parents[1]
"""Where `python -m builds.builder` finds the code that starts it, and not what lies in anybody's working directory."""

LOCK, LOG, PACKED = "lock", "log", "log.gz"

MAX_ATTEMPT = 10_000
"""Numbers of attempts whose folders are looked for: no build has had more, and a record may say anything."""

_MAX_RESULT = 64 * 1024
"""A builder writes 4096 bytes at most; whatever is longer has not been written by one."""


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of ours that a builder gets."""
    return {name: value for name, value in environment.items() if name in PASSED_ON or not name.startswith(KEPT_BACK)}


class Liveness(Enum):
    """What the locks and the folder say of an attempt."""

    NEVER = "its builder has never run"
    STARTING = "alive, and its builder has not said so yet"
    RUNNING = "its builder is alive"
    ORPHANED = "its builder is dead, and something it started is alive"
    OVER = "nothing of it is alive any more"


class _Label(msgspec.Struct):
    """The part of a Spec that says whose attempt it is."""

    attempt_label: str


class _Folder:
    """One attempt's folder; `label` is what its spec must say for it to be this attempt's and not an older record's."""

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self._label = label

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    @property
    def ours(self) -> bool:
        """The spec is complete before anything is started with it."""
        try:
            found = msgspec.json.decode(self["spec.json"].read_bytes(), type=_Label)
        except (FileNotFoundError, *UNREADABLE):
            return False
        return found.attempt_label == self._label

    @property
    def began(self) -> bool:
        """Two witnesses, because each may be killed before it writes: a builder does nothing before `group`."""
        return self["spawned"].exists() or self["group"].exists()

    @property
    def session(self) -> int | None:
        """The id of its session and first process group, if anybody has written it down."""
        for name in ("group", "spawned"):
            with suppress(FileNotFoundError, ValueError):
                return int(self[name].read_bytes())
        return None

    @property
    def result(self) -> Result | None:
        """What the builder said at its end; `None` where it said nothing, or nothing that can be understood."""
        try:
            with self["result.json"].open("rb") as file:
                result = msgspec.json.decode(file.read(_MAX_RESULT), type=Result)
        except (OSError, *UNREADABLE):
            return None
        return result if result.state.ended else None

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all."""
        draft = self[f".{name}"]
        draft.write_bytes(content)
        draft.replace(self[name])

    def clean(self) -> None:
        """Takes out the working folder of a builder that was killed: it holds credentials."""
        for path in self.path.glob("kiln-*"):
            remove(path)

    def clear(self) -> None:
        """Takes out everything but the lock, which is in hand."""
        for path in self.path.iterdir():
            if path.name != LOCK:
                remove(path) if path.is_dir() else path.unlink()


class Attempts:
    """All attempts under `root`. `ended` is called, from another thread, when one that was started here ends."""

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
        """Looks, and ends what must not go on: what a dead builder has left, and one that does not stop when told to.

        Raises Unavailable.
        """
        self._pulse.beat()
        with _unavailable("looked at"):
            folder = self._folder(build, attempt)
            liveness = _liveness(folder)
            told = _written(folder["stopping"])
            overdue = told is not None and self._now() - told > STOP_GRACE
            if liveness is Liveness.ORPHANED or (overdue and liveness in (Liveness.STARTING, Liveness.RUNNING)):
                _kill(folder.session)
            if liveness is Liveness.OVER:
                self._clean(folder, build)
            return liveness

    def sighting(self, build: Build, attempt: Attempt, liveness: Liveness, node: str) -> Sighting:
        """What `liveness` means to the plan. Raises Unavailable."""
        seen = Sighting(build=build.name, attempt=attempt.number, phase=Phase.RUNNING, node=node)
        with _unavailable("looked at"):
            folder = self._folder(build, attempt)
            if liveness is Liveness.NEVER:
                gone = attempt.started_at is not None
                why = "What was known of the attempt has been deleted from this machine." if gone else None
                return msgspec.structs.replace(seen, phase=Phase.LOST if gone else Phase.ABSENT, waiting=why)
            if liveness is Liveness.STARTING:
                return msgspec.structs.replace(seen, phase=Phase.PENDING, waiting="Its builder is starting.")
            seen = msgspec.structs.replace(seen, started_at=_written(folder["group"]))
            if liveness is not Liveness.OVER:
                return seen
            result = folder.result
            if result is None:
                log.warning(
                    "No result; the builder's last words may be in %s", folder["errors"], extra={"build": build.name}
                )
            at = _written(folder["result.json"])
            return msgspec.structs.replace(seen, phase=Phase.ENDED, ended_at=at, result=result)

    def start(self, build: Build, attempt: Attempt) -> None:
        """Starts it unless it was started before, by anyone. Raises Unavailable."""
        folder = self._folder(build, attempt)
        with _unavailable("started"):
            folder.path.mkdir(mode=0o700, exist_ok=True)
            with _locked(folder[LOCK], fcntl.LOCK_EX) as lock:
                if folder.ours and (lock is None or folder.began):
                    return
                if lock is None:
                    raise Unavailable(f"Something else is at work in {folder.path}.")
                folder.clear()
                spec = spec_for(build, attempt, self._surroundings)
                folder.write("spec.json", msgspec.json.encode(spec))
                crash_if_armed(Fault.ENGINE_FOLDER_MADE)
                builder = self._spawn(folder, lock, build.status.trace)
                threading.Thread(target=self._reap, args=(builder,), name=folder.path.name, daemon=True).start()
                crash_if_armed(Fault.ENGINE_SPAWNED)
                folder.write("spawned", b"%d" % builder.pid)

    def stop(self, build: Build, attempt: Attempt) -> None:
        """Tells all of it to end (SIGTERM), if it is alive. Raises Unavailable."""
        folder = self._folder(build, attempt)
        with _unavailable("stopped"):
            if _liveness(folder) in (Liveness.NEVER, Liveness.OVER):
                return
            with suppress(FileExistsError):
                folder["stopping"].touch(exist_ok=False)
            session = folder.session
            if session is None:
                raise Unavailable("The attempt has only just been started, and has not said yet how to stop it.")
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
        """Leaves nothing in the folders of all attempts so far but their logs, compressed. Raises Refused."""
        for number in range(1, min(build.status.attempt, MAX_ATTEMPT) + 1):
            try:
                _pack(self._root / f"{build.name}-{number}")
            except OSError as error:
                raise Refused(f"The attempt's folder cannot be emptied: {error}.") from error

    def discard(self, build: Build) -> None:
        """Deletes the folders of a record that has gone, of whose attempts nothing is alive any more: not those of
        another record of that name."""
        for number in range(1, min(build.status.attempt, MAX_ATTEMPT) + 1):
            folder = _Folder(self._root / f"{build.name}-{number}", f"{build.uid}.{number}")
            with suppress(OSError):
                if _liveness(folder) is Liveness.OVER:
                    self._pulse.beat(DELETING)
                    remove(folder.path)

    def log(self, name: str, number: int, after: int) -> Iterator[LogLine]:
        """The lines after line `after`; the file is open only while they are being read. Raises Unavailable."""
        if not re.fullmatch(r"[a-z0-9-]{1,63}", name):
            return
        folder = self._root / f"{name}-{number}"
        with _unavailable("read"), suppress(FileNotFoundError), _opened(folder) as file:
            yield from logfile.lines(file, number, after)

    def sweep(self, known: Callable[[str], bool]) -> Iterator[None]:
        """Deletes the folders of builds that are not `known`, if nothing of the attempt is alive; one at a step."""
        for path in tuple(self._root.iterdir()):
            if known(path.name.rpartition("-")[0]):
                continue
            with suppress(OSError), _locked(path / LOCK, fcntl.LOCK_SH) as lock:
                if lock is not None:
                    self._pulse.beat(DELETING)
                    remove(path)
            yield None

    def _clean(self, folder: _Folder, build: Build) -> None:
        """What cannot be deleted holds up no end: it is tried again with the folder itself."""
        self._pulse.beat(DELETING)
        try:
            folder.clean()
        except OSError as error:
            log.warning("The builder's working folder is left: %s", error, extra={"build": build.name})

    def _folder(self, build: Build, attempt: Attempt) -> _Folder:
        return _Folder(self._root / f"{build.name}-{attempt.number}", f"{build.uid}.{attempt.number}")

    def _spawn(self, folder: _Folder, lock: int, trace: Trace | None) -> subprocess.Popen[bytes]:
        """The child shares our lock and keeps it when our descriptor is closed: at no instant is it free."""
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
    """The file's lock, exclusive or shared, as an open descriptor; `None` where another has it.

    It is given up by closing alone: unlocking would take it from a child that shares it. Raises OSError.
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
    """Shared locks, so that those who look do not see each other."""
    try:
        with _locked(folder[LOCK], fcntl.LOCK_SH) as lock:
            if not folder.ours:
                return Liveness.NEVER
            if lock is not None:
                return Liveness.OVER if folder.began else Liveness.NEVER
    except FileNotFoundError:
        return Liveness.NEVER
    if not folder["group"].exists():  # only then has the builder taken its own lock, and will not meet ours there
        return Liveness.STARTING
    try:
        with _locked(folder["builder.lock"], fcntl.LOCK_SH) as lock:
            return Liveness.RUNNING if lock is None else Liveness.ORPHANED
    except FileNotFoundError:
        return Liveness.ORPHANED


def _kill(session: int | None) -> None:
    """Kills a whole session, whatever process groups are in it. What is forked meanwhile is met at the next look."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and session is not None:
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(int(entry.name)) == session:
                    os.kill(int(entry.name), signal.SIGKILL)


def _written(path: Path) -> datetime | None:
    """When the file was last written; `None` where there is none."""
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
    """The lock stays, by which it is told that nothing of the attempt is alive. Raises OSError."""
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
    """The log, unpacked if need be. Raises FileNotFoundError where there is none, OSError."""
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
