"""Factories of submissions, builds and local engines for tests of engines.

The module imports little, because the processes that tests start import it, too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from builds.build import Attempt, Build, Cause, Kind, Request, State
from builds.builder.spec import Surroundings
from builds.engines import Engine, Submission
from builds.engines.local import LocalEngine

BUILDER = Path(__file__).parent / "programs" / "builder.py"
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def cause(id_: str = "1", *, by: str | None = None, force: bool = False) -> Cause:
    return Cause(source="/test", id=id_, type="test", by=by, at=AT, kind=Kind.PERSON, force=force)


def new_submission(
    name: str = "b",
    id_: str = "1",
    *,
    by: str | None = None,
    force: bool = False,
    repository: str = "https://example.org/a",
    args: Mapping[str, str] = {},
) -> Submission:
    request = Request(
        repository=repository, clone_url=repository, commit="c" * 40, image="r.example/x", build_args=args
    )
    return Submission(name=name, request=request, cause=cause(id_, by=by, force=force))


def settled_build(build: Build, state: State = State.FAILED, at: datetime = AT) -> Build:
    """The record as the controller leaves it: every cause answered, the build settled."""
    keys = tuple(one.key for one in build.causes)
    status = replace(
        build.status, state=state, round=max(build.status.round, 1), answered=keys, outbox=(), finished_at=at
    )
    return replace(build, status=status, open=False)


def local_engine(state: Path, kind: type[LocalEngine] = LocalEngine, **more: Any) -> LocalEngine:
    fields = {
        "surroundings": Surroundings(docker_host=f"unix://{state}/docker.sock"),
        "command": (sys.executable, str(BUILDER)),
        **more,
    }
    return kind(state, **fields)


def started_build(engine: Engine, name: str, do: str = "succeed", number: int = 1) -> Build:
    """A build whose record has the start of an attempt, as a controller leaves it before it calls `start`."""
    (build,) = engine.accept([new_submission(name, args={"do": do})])
    attempt = Attempt(number=number, node="local", written_at=datetime.now(UTC))
    attempts = (*build.status.attempts, attempt)
    return engine.write(
        replace(build, status=replace(build.status, round=1, attempt=number, state=State.RUNNING, attempts=attempts))
    )


def start_build(engine: LocalEngine, name: str = "b", do: str = "succeed") -> Build:
    build = started_build(engine, name, do)
    assert build.live is not None
    engine.start(build, build.live)
    return build
