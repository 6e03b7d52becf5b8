"""Measure what 10,000 stored builds cost a list, a plan and the start of a controller."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

from msgspec.structs import replace

from builds.build import Build, Cause, Kind, Node, Request, State, build_name
from builds.builder.spec import Surroundings
from builds.engines import Submission
from builds.engines.local import LocalEngine
from builds.plan import Facts, Limits, plan
from tests.bench import web
from tests.bench.figures import beside
from tests.parts.kiln import Kiln
from tests.parts.registry import free_port

MANY, FEW = 10_000, 10
OPEN = 1_000
"""As many builds as may wait (`KILN_MAX_QUEUED`)."""


def stored() -> None:
    """Compare 10,000 ended builds with 10."""
    few, many = _measured(FEW), _measured(MANY)
    for what, seconds in many.items():
        beside(what, seconds, few[what], "ms", f"with {FEW} stored", 1000)


def _measured(number: int) -> dict[str, float]:
    """Return the seconds of each operation with `number` ended builds."""
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as name:
        folder, ops = Path(name), free_port()
        kiln = Kiln(folder, KILN_OPS_PORT=str(ops))
        engine = LocalEngine(folder / "state", surroundings=Surroundings(), max_queued=10**6, max_queued_per_user=10**6)
        try:
            _store(engine, number)
            found = {
                "list of 50": _timed(lambda: engine.list(limit=50)),
                "list of one repository": _timed(lambda: engine.list(repository=_request(0).repository)),
                "look of the controller": _timed(engine.observe),
            }
        finally:
            engine.close()
        command, paths = web.command("controller"), {"/readyz": ops}
        started = [web.until_answered(command, kiln.environment, paths)["/readyz"] for _ in range(3)]
        return {**found, "controller: start to ready": median(started)}


def plans() -> None:
    """Time the plan, which sees open builds only."""
    now = datetime.now(UTC)
    for number in (OPEN, MANY):
        builds = tuple(_build(index, now) for index in range(number))
        few = builds[:FEW]
        nodes = (Node(name="local"),)
        all_, some = (_timed(partial(plan, Facts(builds=each, nodes=nodes), Limits(), now)) for each in (builds, few))
        beside(f"plan of {number} that wait", all_, some, "ms", f"of {FEW}", 1000)


def _timed(do: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def _request(number: int) -> Request:
    repository = f"https://github.com/example/course-{number % 100}"
    image = f"registry.example/course-{number % 100}"
    return Request(repository=repository, clone_url=f"{repository}.git", commit=f"{number:040x}", image=image)


def _ask(number: int, now: datetime) -> Submission:
    request = _request(number)
    cause = Cause(
        source="/bench", id=str(number), type="bench", by="bench", at=now, kind=Kind.PUSH, ref="refs/heads/main"
    )
    return Submission(name=build_name("local", request), request=request, cause=cause)


def _build(number: int, now: datetime) -> Build:
    ask = _ask(number, now)
    build = Build(name=ask.name, uid=str(number), request=ask.request, causes=(ask.cause,), created_at=now)
    return replace(build, status=replace(build.status, round=1, queued_at=now))


def _store(engine: LocalEngine, number: int) -> None:
    """Store ended builds whose events have been delivered."""
    now = datetime.now(UTC)
    for start in range(0, number, 1000):
        for build in engine.accept([_ask(index, now) for index in range(start, min(start + 1000, number))]):
            keys = tuple(cause.key for cause in build.causes)
            status = replace(
                build.status, state=State.SUCCEEDED, round=1, answered=keys, queued_at=now, finished_at=now
            )
            engine.write(replace(build, status=status, open=False))
