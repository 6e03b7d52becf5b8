"""A full queue: new requests are asked to come again later, and nothing is left half made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, http
from tests.parts.registry import Registry
from tests.parts.system import System

PLACES = 3


@pytest.fixture
def narrow(tmp_path: Path, registry: Registry, host: GitHost) -> Iterator[System]:
    config = {"triggers": [{"name": subdir, "build": {"subdir": subdir}} for subdir in ("one", "two")]}
    with System(tmp_path, registry=registry, host=host, config=config, KILN_MAX_QUEUED=str(PLACES)) as running:
        running.start("web")
        yield running


def check_busy(answer: requests.Response) -> None:
    assert answer.status_code == 503
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert "KILN_MAX_QUEUED" in answer.json()["detail"]


def event(number: int) -> dict[str, object]:
    data = {"repository": "https://github.com/a/b", "commit": f"{number:040}"}
    return {
        "specversion": "1.0",
        "id": f"{number}",
        "source": "/x",
        "type": "dev.kiln.build.requested.v1",
        "data": data,
    }


def batch(system: System, *numbers: int) -> requests.Response:
    headers = {"Content-Type": "application/cloudevents-batch+json", **system.authorization}
    return http("POST", f"{system.url}events", data=json.dumps([event(number) for number in numbers]), headers=headers)


def test_what_does_not_fit_leaves_nothing(narrow: System) -> None:
    check_busy(batch(narrow, 1, 2, 3, 4))
    assert narrow.listed() == []
    assert batch(narrow, 1, 2).status_code == 202
    check_busy(batch(narrow, 2, 3, 4))
    assert {build["commit"][-1] for build in narrow.listed()} == {"1", "2"}
    assert [len(build["causes"]) for build in narrow.listed()] == [1, 1]
    commit = narrow.commit(
        "ada/two-builds", {f"{one}/{file}": SMALL for one in ("one", "two") for file in ("Dockerfile", "page")}
    )
    webhook = narrow.push("ada/two-builds", commit)
    check_busy(narrow.deliver(webhook))
    assert len(narrow.listed()) == 2
    assert narrow.ask(repository="https://github.com/a/c", commit="5" * 40).status_code == 202
    check_busy(narrow.ask(repository="https://github.com/a/d", commit="5" * 40))
    # A cause more for what waits already takes no place.
    assert narrow.ask(repository="https://github.com/a/c", commit="5" * 40).status_code == 202
    assert batch(narrow, 1, 2).status_code == 202
    # No build can run here, and those of github.com must not: with a controller they end, and free their places.
    for build in narrow.listed():
        assert narrow.cancel(build["name"]).status_code == 202
    narrow.start("controller")
    for build in narrow.listed():
        assert narrow.ended(build["name"])["state"] == "cancelled"
    made = narrow.deliver(webhook)
    assert made.status_code == 202
    assert {narrow.ended(one["name"])["state"] for one in made.json()["builds"]} == {"succeeded"}


def test_a_rush_fills_the_queue_and_no_more(narrow: System) -> None:
    urls = [str(narrow.web[0].url), str(narrow.start("web").url)]

    def ask(number: int) -> int:
        url = urls[number % 2]
        return narrow.ask(url, repository="https://github.com/a/b", commit=f"{number:040}").status_code

    with ThreadPoolExecutor(16) as askers:
        statuses = list(askers.map(ask, range(1, 41)))
    assert statuses.count(202) == PLACES == len(narrow.listed())
    assert statuses.count(503) == 40 - PLACES
