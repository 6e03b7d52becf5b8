"""The tier runner: what counts as good, and what is said of each tier."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests import run
from tests.parts.machine import MachineError
from tests.run import Outcome, Tier


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


def test_counts_are_those_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "def test_broken(missing): pass\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
    )
    outcome = run.run(Tier("some", [str(tmp_path), "-p", "no:cacheprovider"]))
    assert (outcome.passed, outcome.failed, outcome.skipped) == (1, 2, 1)


def test_a_run_that_breaks_off_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("import nothing_of_that_name\n")
    assert run.run(Tier("some", [str(tmp_path)])).failed == 1


def test_a_tier_that_cannot_run_says_why() -> None:
    def needs() -> AbstractContextManager[None]:
        raise MachineError("there is no docker command")

    assert str(run.run(Tier("docker", [], needs))) == "docker   not run: there is no docker command"


def test_a_browser_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tier,) = run.tiers(["browser"])
    assert str(run.run(tier)) == "browser  not run: there is no chromium command: install the package chromium"


def test_what_no_test_can_tell_is_said(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_good(): pass\n")
    outcome = run.run(Tier("some", [str(tmp_path), "-p", "no:cacheprovider"], gap="the weather"))
    assert str(outcome).splitlines()[1].strip() == "not tested: the weather"
    (cluster,) = run.tiers(["cluster"])
    assert "NetworkPolicies" in str(cluster.gap)


def test_an_unknown_tier_is_named() -> None:
    with pytest.raises(SystemExit, match="no tier typo; there is unit"):
        run.tiers(["typo"])
