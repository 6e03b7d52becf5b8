"""`make test`: every tier that this machine can run, side by side where they can, and the outcome of each.

A tier is a folder here; `unit` is all that is in no other. A tier that cannot run is named with the reason. With
`CI=true` that is a failure, and so is a tier that ran no test or skipped one: there, nothing goes untested unnoticed.

Most tests wait for something most of the time, so tiers run beside each other (`LANES`), and each in several workers
that take whole files (`WORKERS`). With `--quick`, tests marked `slow` are left out. Tests marked `disruptive` change
shared parts of their tier: they run after the others, one after the other. Tests marked `alone` measure time: they run
last of all, when nothing else does. The output of a tier is shown as one block at its end; until then a line says how
far each is.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Self

from tests.parts import chromium, machine, node
from tests.parts import cluster as kind
from tests.parts import hub as jupyterhub

HERE = Path(__file__).resolve().parent

LANES = ("cluster", "unit")
"""The tiers with which the lanes begin, side by side. A lane then takes the next of the rest, and does so immediately
where its own tier is not wanted."""
WORKERS = {"unit": 3, "docker": 2, "cluster": 2, "hub": 2}
"""Workers of a tier, for a machine with two cores; in tiers without an entry, pytest runs the tests itself."""
QUICK = "--quick"
LIMIT = 65 * 60.0
"""Seconds for all tiers together. A tier that still runs then is stopped, and has failed."""
PROGRESS = 60.0
"""Seconds between two lines that say how far each tier is."""
PATIENCE = 45.0
"""Seconds that a stopped tier has for removing the parts that it started; then it is killed."""
KILLED = 15.0
"""Seconds at most until a killed process has ended: the kernel ends it in its own time."""

Need = Callable[[], AbstractContextManager[Mapping[str, str]]]
"""Makes what tests need and keeps it; what it yields is added to their environment. Raises MachineError."""


@dataclass(frozen=True)
class Tier:
    """`needs` are made before its tests, in this order."""

    name: str
    arguments: Sequence[str]
    needs: Sequence[Need] = ()
    quick: bool = False
    """Whether tests marked `slow` are left out."""


@dataclass(frozen=True)
class Outcome:
    tier: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    not_run: str | None = None

    def __add__(self, other: Outcome) -> Outcome:
        """Adds the outcomes of two parts of one tier."""
        counts = (self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)
        reason = self.not_run or other.not_run
        return Outcome(self.tier, *counts, self.seconds + other.seconds, reason)

    def good(self, *, strict: bool) -> bool:
        complete = self.not_run is None and self.passed > 0 and not self.skipped
        return not self.failed and (complete or not strict)

    def __str__(self) -> str:
        if self.not_run is not None:
            return f"{self.tier:<8} not run: {self.not_run}"
        counts = f"{self.passed:>6} passed {self.failed:>4} failed {self.skipped:>4} skipped"
        return f"{self.tier:<8} {counts} {self.seconds:>6.0f} s"


# Requirements of tiers ---------------------------------------------------------------------------------------------


@contextmanager
def docker() -> Iterator[Mapping[str, str]]:
    """A daemon that builds, and the programs that the tests run beside it."""
    reason = machine.problem()
    if reason and reason != machine.NO_DAEMON:
        raise machine.MachineError(f"{reason}; `make demo` offers to install it")
    machine.program("docker-registry", package="docker-registry")
    machine.program("busybox", package="busybox-static")
    with machine.daemon():
        yield {}


@contextmanager
def hub() -> Iterator[Mapping[str, str]]:
    """The packages of JupyterHub's clients and proxy, and an environment with a Hub."""
    node.packages()
    jupyterhub.environment()
    yield {}


@contextmanager
def browser() -> Iterator[Mapping[str, str]]:
    """Chromium."""
    reason = chromium.problem()
    if reason:
        raise machine.MachineError(reason)
    yield {}


@contextmanager
def programs() -> Iterator[Mapping[str, str]]:
    """The programs that make a cluster and install charts."""
    absent = kind.absent()
    if absent:
        raise machine.MachineError(f"there is no {' and no '.join(absent)} command")
    yield {}


@contextmanager
def cluster() -> Iterator[Mapping[str, str]]:
    """One cluster for all workers, with Kiln's image on its nodes."""
    with kind.chosen() as made:
        yield {kind.SHARED: made.name, kind.LOADED: "yes"}


FOLDERS: Mapping[str, Sequence[Need]] = {
    "docker": (docker,),
    "cluster": (programs, docker, cluster),
    "hub": (docker, hub),
    "browser": (browser, docker, hub),
}
"""Tiers with a folder of their own, and what they need."""


class Needs:
    """The requirements of tiers, made once for all of them and kept until the end."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._guards: defaultdict[Need, threading.Lock] = defaultdict(threading.Lock)
        self._made: dict[Need, Mapping[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def make(self, needs: Iterable[Need]) -> dict[str, str]:
        """Returns what they add to the environment. Raises MachineError."""
        added: dict[str, str] = {}
        for need in needs:
            with self._guards[need]:
                if need not in self._made:
                    self._made[need] = self._stack.enter_context(need())
                added |= self._made[need]
        return added


# How they run ------------------------------------------------------------------------------------------------------


IGNORE = "--ignore="
MARKS = ("disruptive", "alone")
"""Marks of tests that do not run beside the others of their tier."""


@dataclass(frozen=True)
class Part:
    """The tests of a tier that carry this mark, or those that carry none of `MARKS`."""

    tier: Tier
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.tier.name}, {self.mark}" if self.mark else self.tier.name

    def command(self, report: Path) -> list[str]:
        workers = 0 if self.mark else WORKERS.get(self.tier.name, 0)
        spread = [f"--numprocesses={workers}", "--dist=loadfile", "--no-loadscope-reorder", "-p", "no:cacheprovider"]
        beside = " and ".join(f"not {mark}" for mark in MARKS)
        chosen = ["-m", (self.mark or beside) + (" and not slow" if self.tier.quick else "")]
        told = ["-q", "--durations=10", f"--junitxml={report}"]
        where = _marked(self.tier, self.mark) if self.mark else self.tier.arguments
        return [sys.executable, "-m", "pytest", *told, *spread, *chosen, *where]


@dataclass
class Running:
    """The processes that run now, so that they can be shown and stopped."""

    processes: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)
    stopped: str | None = None
    """The reason why nothing more may begin."""
    guard: threading.Lock = field(default_factory=threading.Lock)

    def start(self, part: Part, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Runs the command to its end and returns its status."""
        with self.guard, log.open("wb") as output:
            if self.stopped:
                return 1
            process = subprocess.Popen(
                command, cwd=HERE.parent, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            self.processes[str(part)] = process, log
        try:
            return process.wait()
        finally:
            with self.guard:
                del self.processes[str(part)]

    def progress(self) -> str:
        with self.guard:
            return "; ".join(f"{part} {_so_far(log)}" for part, (_, log) in self.processes.items())

    def stop(self, reason: str) -> None:
        """Interrupts all as Ctrl-C would, and kills them with their descendants if they have not ended in time."""
        with self.guard:
            self.stopped = self.stopped or reason
            running = [process for process, _ in self.processes.values()]
        started = _descendants({process.pid for process in running})
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and any(map(_alive, running)):
            started |= _descendants({process.pid for process in running})
            time.sleep(0.2)
        _kill(started)


def _alive(process: subprocess.Popen[bytes]) -> bool:
    return Path(f"/proc/{process.pid}").exists() and process.returncode is None


def _kill(pids: set[int]) -> None:
    """Kills the processes and returns when they have ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILLED
    while time.monotonic() < deadline and any(map(_runs, pids)):
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether the process runs; false for a zombie, whose parent has not collected its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _descendants(pids: set[int]) -> set[int]:
    """The processes and all their descendants that still have their parent."""
    shown = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    parents = {int(pid): int(parent) for pid, parent in map(str.split, shown.splitlines())}
    found: set[int] = set()
    while pids - found:
        found |= pids
        pids = {pid for pid, parent in parents.items() if parent in found}
    return found


def _so_far(log: Path) -> str:
    """The progress of a tier, from pytest's lines of dots."""
    lines = re.findall(r"^([.FEsxX]+) +\[ *(\d+)%\]$", log.read_text(errors="replace"), re.MULTILINE)
    bad = sum(dots.count("F") + dots.count("E") for dots, _ in lines)
    share = f"{lines[-1][1]} %" if lines else "begins"
    return f"{share} ({bad} failed)" if bad else share


def tiers(wanted: Sequence[str]) -> list[Tier]:
    """The existing tiers, or those that are named."""
    ignored = [f"{IGNORE}{HERE / name}" for name in FOLDERS]
    there = [Tier("unit", [str(HERE), *ignored])]
    folders = {name: needs for name, needs in FOLDERS.items() if (HERE / name).is_dir()}
    there += [Tier(name, [str(HERE / name)], needs) for name, needs in folders.items()]
    unknown = {*wanted} - {tier.name for tier in there}
    if unknown:
        sys.exit(f"Unknown tier: {', '.join(sorted(unknown))}. Known: {', '.join(tier.name for tier in there)}.")
    return [tier for tier in there if not wanted or tier.name in wanted]


def _after(seconds: float) -> Callable[[], bool]:
    ends = time.monotonic() + seconds
    return lambda: time.monotonic() > ends


def run(tiers: Sequence[Tier], over: Callable[[], bool] | None = None) -> list[Outcome]:
    """Returns their outcomes, in that order. When time is over (after `LIMIT`, by default) no tier goes on."""
    rest = deque(tier for tier in tiers if tier.name not in LANES)
    beside = [_beside([tier for tier in tiers if tier.name == first], rest) for first in LANES]
    last = iter([Part(tier, "alone") for tier in tiers if _marked(tier, "alone")])
    found: dict[str, Outcome] = {}
    running, over = Running(), over or _after(LIMIT)
    with Needs() as needs:
        for lanes in (beside, [last]):
            with ThreadPoolExecutor(len(lanes)) as threads:
                working = [threads.submit(_lane, lane, needs, running, found) for lane in lanes]
                _watch(working, running, over)
    return [found[tier.name] for tier in tiers]


def _beside(tiers: Iterable[Tier], rest: deque[Tier]) -> Iterator[Part]:
    """Those of a lane's parts that other tiers may run beside, in order; then those of the tiers in `rest`."""
    for tier in chain(tiers, _taken(rest)):
        yield Part(tier)
        if _marked(tier, "disruptive"):
            yield Part(tier, "disruptive")


def _taken(rest: deque[Tier]) -> Iterator[Tier]:
    with suppress(IndexError):
        while True:
            yield rest.popleft()


def _marked(tier: Tier, mark: str) -> list[str]:
    """The files that mark a test with `mark`. To collect all other tests would take pytest seconds."""
    ignored = [Path(option.removeprefix(IGNORE)) for option in tier.arguments if option.startswith(IGNORE)]
    folders = [Path(argument) for argument in tier.arguments if not argument.startswith("-")]
    files = sorted(path for folder in folders for path in folder.rglob("test_*.py"))
    there = [path for path in files if not any(map(path.is_relative_to, ignored))]
    marks = re.compile(rf"^\s*(@|pytestmark\b).*\bmark\.{mark}\b", re.MULTILINE)
    return [str(path) for path in there if marks.search(path.read_text())]


def _watch(working: Sequence[Future[None]], running: Running, over: Callable[[], bool]) -> None:
    """Returns when all have ended. Raises the exception of one that failed."""
    left: set[Future[None]] = {*working}
    try:
        while left:
            done, left = wait(left, PROGRESS, FIRST_EXCEPTION)
            for one in done:
                one.result()
            if left and over() and not running.stopped:
                running.stop("all tiers together took too long")
            elif left and (so_far := running.progress()):
                print(f"{time.strftime('%H:%M:%S')} {so_far}", flush=True)
    except BaseException:
        running.stop("interrupted")
        raise


def _lane(parts: Iterable[Part], needs: Needs, running: Running, found: dict[str, Outcome]) -> None:
    for part in parts:
        name, before = part.tier.name, found.get(part.tier.name)
        if before and (before.not_run is not None or running.stopped):
            continue
        outcome = _outcome(part, needs, running)
        found[name] = before + outcome if before else outcome


def _outcome(part: Part, needs: Needs, running: Running) -> Outcome:
    try:
        environment = os.environ | needs.make(part.tier.needs)
    except machine.MachineError as error:
        return Outcome(part.tier.name, not_run=str(error))
    if running.stopped:
        return Outcome(part.tier.name, failed=1, not_run=running.stopped)
    return _pytest(part, environment, running)


PRINTING = threading.Lock()


def _pytest(part: Part, environment: Mapping[str, str], running: Running) -> Outcome:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.xml", Path(folder) / "log"
        status = running.start(part, part.command(report), environment, log)
        with PRINTING:
            _show(part, status, log)
        counts = ET.parse(report).getroot().find("testsuite") if report.is_file() else None
    number = {} if counts is None else {name: int(counts.get(name, 0)) for name in counts.attrib if name in COUNTS}
    skipped = number.get("skipped", 0)
    failed = number.get("failures", 0) + number.get("errors", 0)
    if status not in (0, NO_TEST):
        failed = max(failed, 1)  # pytest itself ended badly
    passed = max(number.get("tests", 0) - number.get("failures", 0) - number.get("errors", 0) - skipped, 0)
    return Outcome(part.tier.name, passed, failed, skipped, time.monotonic() - began)


COUNTS = ("tests", "failures", "errors", "skipped")
NO_TEST = 5
"""pytest's status where it has found no test."""


def _show(part: Part, status: int, log: Path) -> None:
    if status != NO_TEST:
        print(f"\n== {part} ==\n{log.read_text(errors='replace')}", flush=True)


def main(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = [name for name in arguments if name != QUICK]
    outcomes = run([replace(tier, quick=QUICK in arguments) for tier in tiers(wanted)])
    print()
    for outcome in outcomes:
        print(outcome)
    passed, failed, skipped = (sum(getattr(one, what) for one in outcomes) for what in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    strict = os.environ.get("CI") == "true"
    return 0 if all(outcome.good(strict=strict) for outcome in outcomes) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
