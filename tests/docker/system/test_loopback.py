"""A Dockerfile on the machine of an installation whose `KILN_AUTH` is unset: from this machine is not from its owner.

The daemon itself fetches what an `ADD` names, so it reaches web on loopback. A `RUN` step has a network of its own,
unless the daemon's owner lets steps use the machine's.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from pathlib import Path

import pytest

from tests.parts.system import System

READ = ("", "api/v1/builds", "builds/none", "api/v1/builds/none/log")
ASKED = "https://github.com/octo/asked-by-add"
COMMIT = "1" * 40


def added(system: System, address: str) -> tuple[str, str]:
    """The state of a build that adds the content of that address, and its log."""
    commit = system.commit("ada/adds", {"Dockerfile": f"FROM scratch\nADD {address} /found\n"})
    name = system.build("ada/adds", commit)
    return system.ended(name)["state"], system.log(name)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", READ)
def test_what_is_added_from_web_is_refused(system: System, path: str) -> None:
    state, log = added(system, f"{system.url}{path}")
    assert state == "failed"
    assert "invalid response status 401" in log


@pytest.mark.timeout(180)
def test_nothing_is_asked_for_by_adding_it(system: System) -> None:
    """BinderHub's API answers in events, a refusal too: an `ADD` gets that, and no build is begun."""
    added(system, f"{system.url}build/gh/octo/asked-by-add/{COMMIT}")
    assert ASKED not in {build["repository"] for build in system.listed()}
    lines = [line for one in system.web for line in one.lines if "asked-by-add" in line.get("message", "")]
    assert lines, "it did reach web"
    assert all(line["refused"].startswith("401") for line in lines), lines


RUNS = "FROM python:3.13-slim\nCOPY asks.py /\nENV UNIQUE={unique}\nRUN python3 /asks.py {addresses}\n"
ASKS = """\
import http.client, sys
for address in sys.argv[1:]:
    connection = http.client.HTTPConnection(address, timeout=5)
    for path in PATHS:
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            print("asked", address, answer.status, path, flush=True)
        except OSError as error:
            print("asked", address, "unreachable", path, flush=True)
            connection.close()
"""
PATHS = [*(f"/{path}" for path in READ), f"/build/gh/octo/asked-by-run/{COMMIT}"]


def step(*addresses: str) -> dict[str, str]:
    asks = ASKS.replace("PATHS", repr(PATHS))
    dockerfile = RUNS.format(unique=secrets.token_hex(8), addresses=" ".join(addresses))
    return {"Dockerfile": dockerfile, "asks.py": asks}


def outcomes(log: str) -> list[str]:
    return re.findall(r"asked \S+ (unreachable|\d{3}) /", log)


@pytest.mark.timeout(180)
def test_what_a_step_asks_of_web_is_refused(system: System) -> None:
    port = system.url.split(":")[2].strip("/")
    addresses = [f"{host}:{port}" for host in ("127.0.0.1", "[::1]", "172.17.0.1", "localhost")]
    commit = system.commit("ada/runs", step(*addresses))
    name = system.build("ada/runs", commit)
    assert system.ended(name)["state"] == "succeeded", system.log(name)
    seen = outcomes(system.log(name))
    assert len(seen) == len(addresses) * len(PATHS)
    assert {*seen} <= {"unreachable", "401", "403"}
    assert "https://github.com/octo/asked-by-run" not in {build["repository"] for build in system.listed()}


@pytest.mark.timeout(180)
def test_what_a_step_with_the_machines_network_asks_of_web_is_refused(system: System, tmp_path: Path) -> None:
    """As a daemon builds it whose owner lets steps do that."""
    for name, content in step(system.url.split("/")[2]).items():
        (tmp_path / name).write_text(content)
    command = ["docker", "build", "--network=host", "--progress=plain", "--output=type=cacheonly", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *read, asked = outcomes(done.stderr)
    assert read == ["401"] * len(READ)
    assert asked == "200", "a refusal in events"
    assert "https://github.com/octo/asked-by-run" not in {build["repository"] for build in system.listed()}
