"""A round of a build as stages of a trace. `test_chain` tests the properties of every history."""

from __future__ import annotations

from datetime import timedelta

from builds.build import Reason, State, Timings
from builds.timeline import phases, timeline
from eventing.spans import Stage
from tests.builds.plan_factories import IMAGE, NOW, ago, attempt, build, failed


def drawn(stage: Stage, depth: int = 0) -> list[str]:
    """Return a line for each stage: its name, its start and its end in seconds before noon."""
    start, end = ((NOW - at).total_seconds() for at in (stage.start, stage.end))
    line = f"{'  ' * depth}{stage.name} {start:g} {end:g}{f' ({stage.error})' if stage.error else ''}"
    return [line, *(each for part in stage.parts for each in drawn(part, depth + 1))]


def test_success_after_a_retry() -> None:
    first = failed(1, written_at=ago(95), started_at=ago(90), finished_at=ago(80))
    second = attempt(
        2,
        "n2",
        started_at=ago(60),
        finished_at=ago(10),
        state=State.SUCCEEDED,
        timings=Timings(fetch=5, build=30, push=10),
    )
    done = build(
        created=100,
        state=State.SUCCEEDED,
        attempt=2,
        attempts=(first, second),
        image=IMAGE,
        started_at=ago(60),
        finished_at=ago(10),
    )
    assert drawn(timeline(done)) == [
        "build 100 10",
        "  queue 100 90",
        "  attempt 90 80 (gone)",
        "  queue 80 60",
        "  attempt 60 10",
        "    fetch 60 55",
        "    build 55 25",
        "    push 25 15",
    ]
    assert timeline(done).attributes == {
        "kiln.build": "b",
        "kiln.state": "succeeded",
        "vcs.repository.url.full": "https://github.com/a/b",
        "vcs.ref.head.revision": "c" * 40,
        "container.image.name": "r/x",
        "oci.manifest.digest": IMAGE.digest,
    }
    assert timeline(done).parts[3].attributes == {"kiln.attempt": 2, "kiln.node": "n2"}
    parts = [("queue", 10), ("queue", 20), ("fetch", 5), ("build", 30), ("push", 10)]
    assert [*phases(timeline(done))] == parts


def test_cancelled_while_it_waited_for_another_attempt() -> None:
    first = failed(1, started_at=ago(90), finished_at=ago(80))
    end = {"state": State.CANCELLED, "reason": Reason.REQUESTED, "finished_at": ago(5), "message": "On request."}
    gone = build(created=100, attempt=2, attempts=(first,), **end)  # type: ignore[arg-type]
    assert drawn(timeline(gone)) == ["build 100 5", "  queue 100 90", "  attempt 90 80 (gone)", "  queue 80 5"]


def test_an_attempt_that_never_ran_is_time_in_the_queue() -> None:
    lost = failed(1, finished_at=ago(40))
    end = {"state": State.FAILED, "reason": Reason.INFRASTRUCTURE, "finished_at": ago(40), "message": "Disk full."}
    never = build(created=100, attempts=(lost,), **end)  # type: ignore[arg-type]
    assert drawn(timeline(never)) == ["build 100 40 (Disk full.)", "  queue 100 40"]


def test_a_round_before_is_no_part_of_it() -> None:
    first = failed(1, started_at=ago(900), finished_at=ago(800))
    second = attempt(2, started_at=ago(60), finished_at=ago(10), state=State.SUCCEEDED)
    done = build(
        state=State.SUCCEEDED,
        round=2,
        round_began_with=2,
        attempt=2,
        attempts=(first, second),
        image=IMAGE,
        queued_at=ago(70),
        finished_at=ago(10),
    )
    assert timeline(done).start == NOW - timedelta(seconds=70)
    assert [part.name for part in timeline(done).parts] == ["queue", "attempt"]
