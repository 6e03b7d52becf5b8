"""The tier runner: the conditions for success, and the report on each tier."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import run
from tests.parts.kiln import until
from tests.parts.machine import MachineError
from tests.run import Outcome, Tier

pytestmark = pytest.mark.timeout(240)
"""Most start pytest several times, which takes seconds each on a machine that does much else."""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no plug-in but those that the tests here use: to import the others is half of pytest's start."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p xdist.plugin -p pytest_timeout")


@pytest.mark.parametrize(
    ("outcome", "lenient", "strict"),
    [
        (Outcome("a", passed=1), True, True),
        (Outcome("a", passed=1, skipped=1), True, False),
        (Outcome("a"), True, False),
        (Outcome("a", not_run="no daemon"), True, False),
        (Outcome("a", passed=1, failed=1), False, False),
    ],
)
def test_in_ci_nothing_goes_untested(outcome: Outcome, lenient: bool, strict: bool) -> None:
    assert (outcome.good(strict=False), outcome.good(strict=True)) == (lenient, strict)


def alone(tier: Tier) -> Outcome:
    (outcome,) = run.run([tier])
    return outcome


def test_counts_are_those_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "def test_broken(missing): pass\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
        "@pytest.mark.alone\ndef test_good_alone(): pass\n"
        "@pytest.mark.disruptive\ndef test_good_by_itself(): pass\n"
    )
    outcome = alone(Tier("some", [str(tmp_path)]))
    assert (outcome.passed, outcome.failed, outcome.skipped) == (3, 2, 1)


def test_a_quick_run_leaves_out_what_is_slow(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_one(): pass\n"
        "@pytest.mark.slow\ndef test_slow(): pass\n"
        "@pytest.mark.slow\n@pytest.mark.alone\ndef test_slow_alone(): pass\n"
    )
    assert (alone(Tier("some", [str(tmp_path)])).passed, alone(Tier("some", [str(tmp_path)], quick=True)).passed) == (
        3,
        1,
    )


def test_a_run_that_breaks_off_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("import nothing_of_that_name\n")
    assert alone(Tier("some", [str(tmp_path)])).failed >= 1


def test_a_tier_that_cannot_run_says_why() -> None:
    def needs() -> AbstractContextManager[Mapping[str, str]]:
        raise MachineError("there is no docker command")

    assert str(alone(Tier("docker", [], [needs]))) == "docker   not run: there is no docker command"


def test_a_browser_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tier,) = run.tiers(["browser"])
    assert str(alone(tier)) == "browser  not run: there is no chromium command: install the package chromium"


def test_an_unknown_tier_is_named() -> None:
    with pytest.raises(SystemExit, match=r"Unknown tier: typo\. Known: unit"):
        run.tiers(["typo"])


def test_what_two_tiers_need_is_made_once_and_kept_until_all_have_ended(tmp_path: Path) -> None:
    """Those marked `alone` have it, too, and its values are in their environment."""
    told: list[str] = []

    @contextmanager
    def shared() -> Iterator[Mapping[str, str]]:
        told.append("made")
        yield {"SHARED": "here"}
        told.append("gone")

    tiers = []
    for name in ("hub", "cluster"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_some.py").write_text(
            "import os, pytest\n"
            "def test_beside(): assert os.environ['SHARED'] == 'here'\n"
            "@pytest.mark.alone\ndef test_alone(): assert os.environ['SHARED'] == 'here'\n"
        )
        tiers.append(Tier(name, [str(tmp_path / name)], [shared]))
    assert [(one.passed, one.failed) for one in run.run(tiers)] == [(2, 0), (2, 0)]
    assert told == ["made", "gone"]


def test_who_disrupts_waits_for_its_tier_and_who_is_alone_for_all(tmp_path: Path) -> None:
    came = tmp_path / "came"
    told = f"def came(who):\n    with open({str(came)!r}, 'a') as file:\n        print(who, file=file)\n"
    for name in ("hub", "cluster"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_some.py").write_text(
            f"import pytest\n{told}"
            f"@pytest.mark.alone\ndef test_alone(): came('{name} alone')\n"
            f"@pytest.mark.disruptive\ndef test_disruptive(): came('{name} disruptive')\n"
            f"def test_beside(): came('{name}')\n"
        )
    run.run([Tier(name, [str(tmp_path / name)]) for name in ("hub", "cluster")])
    order = came.read_text().splitlines()
    assert sorted(order[-2:]) == ["cluster alone", "hub alone"]
    for name in ("hub", "cluster"):
        assert order.index(name) < order.index(f"{name} disruptive")


MEET = """
from pathlib import Path
import time

def test_both_are_there():
    Path({own!r}).touch()
    while not Path({other!r}).exists():
        time.sleep(0.02)
"""


@pytest.mark.parametrize("pair", [("docker", "cluster"), ("unit", "docker"), ("hub", "browser")])
def test_tiers_of_two_lanes_run_at_the_same_time(tmp_path: Path, pair: tuple[str, str]) -> None:
    here = {name: tmp_path / name for name in pair}
    for name, other in (pair, pair[::-1]):
        here[name].mkdir()
        meeting = MEET.format(own=str(tmp_path / f"{name}.came"), other=str(tmp_path / f"{other}.came"))
        (here[name] / "test_some.py").write_text(meeting)
    outcomes = run.run([Tier(name, [str(folder)]) for name, folder in here.items()])
    assert [(one.passed, one.failed) for one in outcomes] == [(1, 0), (1, 0)]


LASTING = """
import subprocess, sys
from pathlib import Path

import pytest

@pytest.fixture
def left():
    yield
    Path({gone!r}).touch()

def test_lasts(left):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path({started!r}).write_text(str(child.pid))
    child.wait()
"""


@pytest.fixture
def lasting(tmp_path: Path) -> SimpleNamespace:
    """A tier of one test that would not end; its fixture notes that it was taken away."""
    found = SimpleNamespace(folder=tmp_path / "tests", started=tmp_path / "started", gone=tmp_path / "gone")
    found.folder.mkdir()
    (found.folder / "test_some.py").write_text(LASTING.format(started=str(found.started), gone=str(found.gone)))
    return found


def left_nothing(lasting: SimpleNamespace) -> None:
    """Checks that the process has ended: a zombie, whose parent has not collected its status, has no command line."""
    command = Path(f"/proc/{lasting.started.read_text()}/cmdline")
    assert not (command.exists() and command.read_bytes())
    assert lasting.gone.exists()


def test_tiers_that_take_too_long_have_failed(lasting: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PROGRESS", 0.2)
    tiers = [Tier(name, [str(lasting.folder)]) for name in ("unit", "docker", "hub")]
    *stopped, next_one = run.run(tiers, lambda: lasting.started.exists() and bool(lasting.started.read_text()))
    assert [one.failed for one in stopped] == [1, 1]
    assert (next_one.failed, next_one.not_run) == (1, "all tiers together took too long")
    left_nothing(lasting)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(lasting: SimpleNamespace, number: signal.Signals) -> None:
    script = (
        "import signal, sys\n"
        "from tests import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"run.tiers = lambda wanted: [run.Tier('docker', [{str(lasting.folder)!r}])]\n"
        "run.main([])\n"
    )
    whole = subprocess.Popen([sys.executable, "-c", script], cwd=run.HERE.parent, start_new_session=True)
    try:
        until(lambda: lasting.started.exists() and lasting.started.read_text(), 30)
        whole.send_signal(number)
        assert whole.wait(50) != 0
    finally:
        whole.kill()
        whole.wait()
    left_nothing(lasting)
