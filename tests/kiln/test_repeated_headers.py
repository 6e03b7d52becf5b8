"""Repeated headers: WSGI would join them, so the server reports them to the application."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.parts.kiln import Kiln, Process

BODY = json.dumps({"repository": "https://github.com/octo/stats", "commit": "1" * 40}).encode()
HEADERS = [
    ("Content-Type", "application/json"),
    ("ce-specversion", "1.0"),
    ("ce-id", "1"),
    ("ce-source", "/tests"),
    ("ce-type", "dev.kiln.build.requested.v1"),
]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with Kiln(tmp_path_factory.mktemp("kiln"), KILN_AUTH="none") as kiln:
        yield kiln.start("web")


def post(web: Process, *more: tuple[str, str]) -> tuple[int, str]:
    """Return the status and the problem's sentence."""
    connection = http.client.HTTPConnection(urlsplit(web.url or "").netloc, timeout=30)
    connection.putrequest("POST", "/events")
    for name, value in (*HEADERS, *more, ("Content-Length", str(len(BODY)))):
        connection.putheader(name, value)
    connection.endheaders(BODY)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content)["detail"] if content else ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("ce-id", "1"), ("CE-Id", "2"), ("ce-subject", "x"), ("ce-type", "other")],
)
def test_one_that_says_what_the_event_is_may_not_be_there_twice(web: Process, name: str, value: str) -> None:
    more = [(name, value)] * (2 if name == "ce-subject" else 1)
    assert post(web, *more) == (400, f"The header {name.lower()} is repeated.")


def test_others_may(web: Process) -> None:
    assert post(web, ("Via", "1.1 a"), ("Via", "1.1 b"), ("Accept", "*/*"), ("Accept", "*/*")) == (202, "")


def test_nobody_else_can_say_so(web: Process) -> None:
    assert post(web, ("Kiln-Repeated", "ce-id")) == (202, "")
