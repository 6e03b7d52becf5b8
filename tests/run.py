"""`make test`: every tier that this machine can run, one after the other, and what came of each.

A tier is a folder here; `unit` is all that is in no other. A tier that cannot run is named with the reason. With
`CI=true` that is a failure, and so is a tier that ran no test or skipped one: there, nothing goes untested unnoticed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from tests.parts import chromium, machine, node
from tests.parts import cluster as kind
from tests.parts import hub as jupyterhub

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Tier:
    """`needs` prepares what its tests need and keeps it until they are done; it raises MachineError with the reason.
    `gap` is what none of them can tell."""

    name: str
    arguments: Sequence[str]
    needs: Callable[[], AbstractContextManager[None]] = nullcontext
    gap: str | None = None


@dataclass(frozen=True)
class Outcome:
    tier: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0
    not_run: str | None = None
    gap: str | None = None

    def good(self, *, strict: bool) -> bool:
        complete = self.not_run is None and self.passed > 0 and not self.skipped
        return not self.failed and (complete or not strict)

    def __str__(self) -> str:
        if self.not_run is not None:
            return f"{self.tier:<8} not run: {self.not_run}"
        counts = f"{self.passed:>6} passed {self.failed:>4} failed {self.skipped:>4} skipped"
        gap = f"\n{'':<8} not tested: {self.gap}" if self.gap else ""
        return f"{self.tier:<8} {counts} {self.seconds:>6.0f} s{gap}"


def docker() -> AbstractContextManager[None]:
    """A daemon that builds, and the programs that the tests run beside it."""
    reason = machine.problem()
    if reason and reason != machine.NO_DAEMON:
        raise machine.MachineError(f"{reason}; `make demo` offers to install it")
    machine.program("docker-registry", package="docker-registry")
    machine.program("busybox", package="busybox-static")
    return machine.daemon()


@contextmanager
def hub() -> Iterator[None]:
    """The same, the packages of JupyterHub's clients and proxy, and an environment with a Hub."""
    with docker():
        node.packages()
        jupyterhub.environment()
        yield


def browser() -> AbstractContextManager[None]:
    """All that the Hub's clients need, and Chromium."""
    reason = chromium.problem()
    if reason:
        raise machine.MachineError(reason)
    return hub()


def cluster() -> AbstractContextManager[None]:
    """Docker, and what makes a cluster on it; the tests make the cluster."""
    absent = kind.absent()
    if absent:
        raise machine.MachineError(f"there is no {' and no '.join(absent)} command")
    return docker()


FOLDERS = {"docker": docker, "cluster": cluster, "hub": hub, "browser": browser}
"""Tiers with a folder of their own, and what they need."""

GAPS = {
    "cluster": "that a network keeps to the NetworkPolicies, only what the chart makes of them",
}
"""kind's own network need not enforce them, so no test can rely on it."""


def tiers(wanted: Sequence[str]) -> list[Tier]:
    """Those that exist, or those asked for by name."""
    ignored = [f"--ignore={HERE / name}" for name in FOLDERS]
    there = [Tier("unit", [str(HERE), *ignored])]
    folders = {name: needs for name, needs in FOLDERS.items() if (HERE / name).is_dir()}
    there += [Tier(name, [str(HERE / name)], needs, GAPS.get(name)) for name, needs in folders.items()]
    unknown = {*wanted} - {tier.name for tier in there}
    if unknown:
        sys.exit(f"There is no tier {', '.join(sorted(unknown))}; there is {', '.join(tier.name for tier in there)}.")
    return [tier for tier in there if not wanted or tier.name in wanted]


def run(tier: Tier) -> Outcome:
    try:
        with tier.needs():
            return replace(_pytest(tier), gap=tier.gap)
    except machine.MachineError as error:
        return Outcome(tier.name, not_run=str(error))


def _pytest(tier: Tier) -> Outcome:
    print(f"== {tier.name} ==", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tier.arguments]
        status = subprocess.run(command, cwd=HERE.parent, check=False).returncode
        counts = ET.parse(report).getroot().find("testsuite") if report.is_file() else None
    number = {} if counts is None else {name: int(counts.get(name, 0)) for name in counts.attrib if name in COUNTS}
    skipped = number.get("skipped", 0)
    failed = number.get("failures", 0) + number.get("errors", 0)
    if status not in (0, 5):  # 5: there was no test
        failed = max(failed, 1)  # pytest itself ended badly
    passed = max(number.get("tests", 0) - number.get("failures", 0) - number.get("errors", 0) - skipped, 0)
    return Outcome(tier.name, passed, failed, skipped, time.monotonic() - began)


COUNTS = ("tests", "failures", "errors", "skipped")


def main(wanted: Sequence[str]) -> int:
    outcomes = [run(tier) for tier in tiers(wanted)]
    print()
    for outcome in outcomes:
        print(outcome)
    passed, failed, skipped = (sum(getattr(one, what) for one in outcomes) for what in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    strict = os.environ.get("CI") == "true"
    return 0 if all(outcome.good(strict=strict) for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
