"""Liveness: a blocked or ended thread ends its process, and `/livez` fails before."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.pulse import ROUND, Pulse
from kiln.ops import Ops
from kiln.vitals import LATE_CHECKS, STATUS
from tests.parts.kiln import ROOT, Kiln, Process, get, until

pytestmark = pytest.mark.timeout(120)

IN_TIME = 30.0
"""Seconds within which `/livez` must fail."""
seconds = st.floats(0, 1000)


@given(st.lists(st.tuples(seconds, seconds), min_size=1), seconds)
def test_a_pulse_is_late_by_what_it_said_last(beats: list[tuple[float, float]], passed: float) -> None:
    now = 0.0
    pulse = Pulse("x", monotonic=lambda: now)
    for pause, promised in beats:
        now += pause
        pulse.beat(promised)
    promised = beats[-1][1]
    now += passed
    assert pulse.late == pytest.approx(max(passed - promised, 0), abs=1e-6)
    pulse.rest()
    assert pulse.late == 0


def test_livez_names_the_threads_that_are_late() -> None:
    now = 0.0
    fine, blocked, unborn = (Pulse(name, monotonic=lambda: now) for name in ("fine", "blocked", "unborn"))
    ops = Ops("127.0.0.1", 0)
    ops.serve()
    ops.pulses = (fine, blocked, unborn)
    url = f"http://127.0.0.1:{ops.address[1]}/livez"
    blocked.beat()
    now += ROUND + 3
    fine.beat()
    assert get(url) == (503, b"blocked is 3 s late\n")
    blocked.beat()
    assert get(url) == (200, b"alive\n")


@pytest.fixture(scope="module", autouse=True)
def paused(tmp_path_factory: pytest.TempPathFactory, pause: Pulse) -> Iterator[Process]:
    """A controller that stays paused while the other tests run."""
    with Kiln(tmp_path_factory.mktemp("paused")) as kiln:
        process = kiln.start("controller")
        process.popen.send_signal(signal.SIGSTOP)
        pause.beat(ROUND + 2)
        yield process


@pytest.fixture(scope="module")
def pause() -> Pulse:
    """A pulse that is late once the controller has been paused for long enough."""
    return Pulse("pause")


@pytest.fixture
def stuck(tmp_path: Path) -> Path:
    folder = tmp_path / "stuck"
    folder.mkdir()
    return folder


@pytest.fixture
def kiln(tmp_path: Path, stuck: Path) -> Kiln:
    return Kiln(tmp_path, PYTHONPATH=str(ROOT / "tests" / "parts" / "stuck"), STUCK_THREADS=str(stuck))


def said(process: Process, text: str) -> bool:
    return any(line["level"] == "critical" and text in line["message"] for line in process.lines)


def test_a_loop_that_is_blocked_fails_livez_and_then_ends_the_process(kiln: Kiln, stuck: Path) -> None:
    with kiln:
        process = kiln.start("controller")
        (stuck / "loop").write_text("block")
        until(lambda: get(f"{process.ops}/livez")[0] == 503, IN_TIME)
        assert get(f"{process.ops}/livez")[1].startswith(b"controller is ")
        assert process.popen.wait(LATE_CHECKS + 20) == STATUS
        assert said(process, "controller")
        assert "stuck/sitecustomize.py" in process.log.read_text(), "the stacks say where"


@pytest.mark.parametrize(("thread", "how"), [("own", "raise"), ("own", "exit"), ("sender", "exit")])
def test_a_thread_that_ends_ends_the_controller(kiln: Kiln, stuck: Path, thread: str, how: str) -> None:
    with kiln:
        process = kiln.start("controller")
        (stuck / thread).write_text(how)
        assert process.popen.wait(30) == STATUS
        assert said(process, "The thread ")


def test_a_thread_that_ends_ends_webs_worker(kiln: Kiln, stuck: Path) -> None:
    with kiln:
        process = kiln.start("web")
        (stuck / "own").write_text("raise")
        until(lambda: said(process, "The thread stuck has ended"))
        until(lambda: get(f"{process.ops}/readyz")[0] == 200)


def test_a_process_that_was_paused_goes_on(paused: Process, pause: Pulse) -> None:
    """All its threads are late at the same time, and catch up within a moment."""
    until(lambda: pause.late, ROUND + 10)
    paused.popen.send_signal(signal.SIGCONT)
    until(lambda: get(f"{paused.ops}/livez")[0] == 200)
    assert paused.stop() == 0
