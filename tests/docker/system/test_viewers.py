"""Viewers of a build: as many as the limit allows, one more, and a thousand who come and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.parts.githost import GitHost
from tests.parts.installation import PATIENCE, SMALL, http
from tests.parts.kiln import Process, megabytes, until
from tests.parts.registry import Registry
from tests.parts.system import System
from tests.parts.viewers import Viewers

MOST = 300
CROWD = 100
"""Viewers that come and go at the same time."""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory, registry: Registry, host: GitHost) -> Iterator[System]:
    settings = {"KILN_MAX_VIEWERS": str(MOST), "KILN_LOG_LEVEL": "warning"}
    with System(tmp_path_factory.mktemp("crowded"), registry=registry, host=host, sinks=(), **settings) as system:
        system.start("web")
        system.start("controller")
        yield system


@pytest.fixture
def talking(crowded: System) -> Iterator[str]:
    """A build that runs, and says so."""
    name = crowded.talking("ada/talks")
    yield name
    crowded.cancel(name)
    crowded.wait(name, lambda build: build["state"] == "cancelled")
    until(lambda: viewers(crowded) == 0)


def streams(system: System, name: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Both ways to follow a build: address and headers."""
    build = system.one(name)
    binder = f"{system.url}build/git/{quote(build['repository'], safe='')}/{build['commit']}?build_only=true"
    return {
        "log": (f"{system.url}api/v1/builds/{name}/log", system.authorization | {"Accept": "text/event-stream"}),
        "binderhub": (binder, system.authorization),
    }


def viewers(system: System) -> float:
    shown = http("GET", f"{system.web[-1].ops}/metrics").text.splitlines()
    return float(next(line for line in shown if line.startswith("kiln_log_viewers ")).split()[1])


def worker(web: Process) -> Path:
    """The process that answers."""
    (child,) = Path(f"/proc/{web.popen.pid}/task/{web.popen.pid}/children").read_text().split()
    return Path("/proc") / child


@pytest.mark.timeout(180)
def test_three_hundred_look_at_one_build_and_the_next_is_told_to_come_back(crowded: System, talking: str) -> None:
    process = crowded.web[-1].popen.pid
    ways = streams(crowded, talking)
    before = megabytes(process)
    with Viewers(*_half(ways["log"])) as some, Viewers(*_half(ways["binderhub"])) as others:
        until(lambda: some.reading + others.reading == MOST, PATIENCE)
        until(lambda: all(b"still here" in said for said in some.said + others.said), PATIENCE)
        assert viewers(crowded) == MOST
        refused = http("GET", ways["log"][0], headers=ways["log"][1])
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "30")
        (told,) = [
            line for line in http("GET", ways["binderhub"][0], headers=ways["binderhub"][1]).text.splitlines() if line
        ]
        assert '"phase": "failed"' in told
        assert '"status_code": 503' in told
        assert "Too many logs are being followed" in told
        commit = crowded.commit("ada/meanwhile", {"Dockerfile": SMALL})
        assert crowded.deliver(crowded.push("ada/meanwhile", commit)).status_code == 202
        grown = megabytes(process) - before
        print(f"{MOST} viewers: web has {grown:.0f} MB more than {before:.0f}")
        assert grown <= 60
    until(lambda: viewers(crowded) == 0)


def _half(way: tuple[str, dict[str, str]]) -> tuple[str, int, dict[str, str]]:
    address, headers = way
    return address, MOST // 2, headers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_who_come_and_go_leave_nothing_behind(crowded: System, talking: str) -> None:
    process = worker(crowded.web[-1])
    ways = streams(crowded, talking)

    def come_and_go(times: int) -> None:
        for turn in range(times):
            address, headers = ways["log" if turn % 2 else "binderhub"]
            with Viewers(address, CROWD, headers) as crowd:
                until(lambda: crowd.reading == CROWD, PATIENCE)
        until(lambda: viewers(crowded) == 0)

    def held() -> tuple[int, int]:
        """Threads, and open files and sockets."""
        return len([*(process / "task").iterdir()]), len([*(process / "fd").iterdir()])

    come_and_go(1)  # what it asks on connections that stay open
    threads, files = held()
    come_and_go(1000 // CROWD)
    print(f"before: {threads} threads, {files} open files; after: {held()}")
    until(lambda: held()[0] <= threads and held()[1] <= files)
