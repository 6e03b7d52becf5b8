"""While every kind of request that can block does so in web, independent requests still get prompt answers."""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kiln.test_keep_alive import PING, SECRET, SIGNED
from tests.parts.hubapi import HubApi
from tests.parts.kiln import Kiln, until
from tests.parts.partial_requests import KINDS, partial_requests

pytestmark = [pytest.mark.timeout(120), pytest.mark.alone]

STALL = 3.0
"""Seconds that the Hub takes for an answer."""
SOON = 2.0
"""Seconds: less than any wait in these tests, and more than an occasional delay of a busy machine."""
COMMIT = "1" * 40
MALLORIES = 20
SSE = {"Accept": "text/event-stream"}


class Town(NamedTuple):
    """Web with a Hub. Web may build repositories of the port `silent`, which accepts connections and never answers."""

    port: int
    hub: HubApi
    silent: int


@contextmanager
def town(folder: Path, **settings: str) -> Iterator[Town]:
    for name, content in {"webhooks/github/one": SECRET, "api-tokens/ci": "ci-token"}.items():
        path = folder / "secrets" / name
        path.parent.mkdir(parents=True)
        path.write_text(content)
    with HubApi() as hub, socket.create_server(("127.0.0.1", 0), backlog=512) as silent:
        at = silent.getsockname()[1]
        there = {
            "KILN_AUTH": "hub,token",
            "KILN_SECRETS_DIR": str(folder / "secrets"),
            "KILN_ALLOWED_REPOSITORIES": f"https://github.com/**,http://127.0.0.1:{at}/**",
            "JUPYTERHUB_API_URL": hub.url,
            "JUPYTERHUB_API_TOKEN": "of-the-service",
            "JUPYTERHUB_SERVICE_NAME": "binder",
            **settings,
        }
        for name in ("kim", *(f"mallory-{number}" for number in range(MALLORIES))):
            hub.add(name, name)
        with Kiln(folder, **there) as kiln:
            web = kiln.start("web")
            assert web.url
            yield Town(int(web.url.split(":")[2].strip("/")), hub, at)
            assert "Traceback" not in web.log.read_text()


def ask(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes | None = None
) -> tuple[int, dict[str, Any] | None]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    return answer.status, json.loads(content) if content.startswith(b"{") else None


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def asked(port: int, token: str, **wanted: str) -> tuple[int, dict[str, Any] | None]:
    headers = {**bearer(token), "Content-Type": "application/json"}
    return ask(port, "POST", "/api/v1/builds", headers, json.dumps(wanted).encode())


class Follower:
    """A client that reads only the first event of a stream. `status` is that of the answer."""

    def __init__(self, port: int, name: str, token: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.request("GET", f"/api/v1/builds/{name}/log", headers={**SSE, **bearer(token)})
        self._answer = self._connection.getresponse()
        self.status = self._answer.status

    def first(self) -> bytes:
        return self._answer.readline()

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


class Crowd:
    """Threads that repeat a request until the context ends; `answers` are the statuses."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self.answers: list[int] = []

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def add(self, number: int, what: Callable[[int], int]) -> None:
        def again(at: int) -> None:
            while not self._ended.is_set():
                self.answers.append(what(at))
                self._ended.wait(0.2)

        new = [threading.Thread(target=again, args=(at,)) for at in range(number)]
        self._threads += new
        for thread in new:
            thread.start()


def bogus(town: Town) -> Callable[[int], int]:
    return lambda _: ask(town.port, "GET", "/api/v1/builds", bearer(secrets.token_hex(8)))[0]


def hanging(town: Town, token: Callable[[int], str]) -> Callable[[int], int]:
    url = f"http://127.0.0.1:{town.silent}/of/nobody"
    return lambda at: asked(town.port, token(at), repository=f"{url}-{at}", ref="main")[0]


def seconds(what: Callable[[], object]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


def webhook(port: int) -> None:
    assert ask(port, "POST", "/webhooks/github", SIGNED, PING)[0] == 200


def log_begins(port: int, name: str, token: str) -> None:
    follower = Follower(port, name, token)
    assert (follower.status, follower.first()) == (200, b"event: state\n")
    follower.close()


def lists(port: int, token: str) -> None:
    assert ask(port, "GET", "/api/v1/builds", bearer(token))[0] == 200


def a_build(port: int) -> str:
    status, build = asked(port, "kim", repository="https://github.com/octo/stats", commit=COMMIT)
    assert status == 202
    assert build
    return str(build["name"])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_each_of_them_does_what_it_likes_and_all_others_are_served(tmp_path: Path, stack: ExitStack) -> None:
    town_ = stack.enter_context(town(tmp_path))
    port = town_.port
    name = a_build(port)
    usual = max(seconds(lambda: webhook(port)), seconds(lambda: log_begins(port, name, "kim")))
    soon = max(SOON, 20 * usual)
    mallory = [Follower(port, name, "mallory-0") for _ in range(30)]
    for follower in mallory:
        stack.callback(follower.close)
    assert {follower.status for follower in mallory[-2:]} == {429}
    for number in range(MALLORIES):
        lists(port, f"mallory-{number}")
    stack.enter_context(partial_requests(port, *KINDS.values()))
    town_.hub.stall = STALL
    crowd = stack.enter_context(Crowd())
    crowd.add(100, bogus(town_))
    crowd.add(140, hanging(town_, lambda at: f"mallory-{at % MALLORIES}"))
    until(lambda: 401 in crowd.answers and 503 in crowd.answers)
    for number in range(3):
        assert seconds(lambda: webhook(port)) < soon
        assert seconds(lambda: log_begins(port, name, "kim")) < soon
        good = partial(lists, port, town_.hub.add(f"good-{number}", "ada"))
        assert seconds(good) < STALL + soon


def test_all_places_that_there_are_together_leave_threads_for_others(tmp_path: Path, stack: ExitStack) -> None:
    town_ = stack.enter_context(town(tmp_path, KILN_MAX_VIEWERS="8"))
    port = town_.port
    name = a_build(port)
    usual = max(seconds(lambda: webhook(port)), seconds(lambda: lists(port, "ci-token")))
    for at in range(8):
        follower = Follower(port, name, f"mallory-{at}")
        stack.callback(follower.close)
        assert follower.status == 200
    town_.hub.stall = STALL
    crowd = stack.enter_context(Crowd())
    crowd.add(60, hanging(town_, lambda _: "ci-token"))
    crowd.add(200, bogus(town_))
    until(lambda: 401 in crowd.answers and 503 in crowd.answers)
    again = partial(asked, port, "ci-token", repository="https://github.com/octo/stats", commit=COMMIT)
    for _ in range(5):
        for each in (partial(webhook, port), partial(lists, port, "ci-token"), again):
            assert seconds(each) < max(SOON, 20 * usual)
