"""Many clients on persistent connections, beside 300 incomplete requests: every request is answered on its connection.

If the server closes a connection while a request is on its way, the sender gets no answer, and a webhook's sender does
not retry.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import secrets
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.parts.kiln import Kiln
from tests.parts.partial_requests import KINDS, partial_requests

pytestmark = pytest.mark.timeout(300)

CROWD = 64
EACH = 40
SECRET = secrets.token_hex(16)
PING = b'{"zen":"' + b"." * 20_000 + b'"}'
SIGNED = {
    "X-Hub-Signature-256": f"sha256={hmac.new(SECRET.encode(), PING, hashlib.sha256).hexdigest()}",
    "X-GitHub-Event": "ping",
    "X-GitHub-Delivery": "1",
    "Content-Type": "application/json",
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("kiln")
    (folder / "secrets" / "webhooks" / "github").mkdir(parents=True)
    (folder / "secrets" / "webhooks" / "github" / "one").write_text(SECRET)
    with Kiln(folder, KILN_AUTH="none", KILN_SECRETS_DIR=str(folder / "secrets")) as kiln:
        web = kiln.start("web")
        assert web.url
        yield int(web.url.split(":")[2].strip("/"))
        lines = web.log.read_text()
    assert "Traceback" not in lines, lines
    assert lines.count("Booting worker") <= 1, lines


def ask(connection: http.client.HTTPConnection, number: int) -> int:
    """Send in turn: a webhook with and without a length, a read, and a refused request whose body stays unread."""
    match number % 4:
        case 0:
            connection.request("POST", "/webhooks/github", PING, SIGNED)
        case 1:
            pieces = iter([PING[:7000], PING[7000:]])
            connection.request("POST", "/webhooks/github", pieces, SIGNED, encode_chunked=True)
        case 2:
            connection.request("GET", "/api/v1/builds?limit=1")
        case _:
            connection.request("POST", "/nowhere", PING)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def stay(port: int, each: int = EACH) -> list[int]:
    """Return the statuses of successive requests on one connection. Raises the error of a closed connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    statuses = []
    for number in range(each):
        statuses.append(ask(connection, number))
        if connection.sock is None:  # the answer said `Connection: close`
            connection.connect()
    connection.close()
    return statuses


def come(port: int, number: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    status = ask(connection, number)
    connection.close()
    return status


EXPECTED = {0: 200, 1: 200, 2: 200, 3: 404}


@pytest.mark.parametrize("halves", [0, 300])
def test_none_goes_without_an_answer(port: int, halves: int) -> None:
    with partial_requests(port, *KINDS.values(), number=halves), ThreadPoolExecutor(CROWD) as crowd:
        for statuses in crowd.map(lambda _: stay(port), range(CROWD)):
            assert statuses == [EXPECTED[number % 4] for number in range(EACH)]


def test_a_thousand_who_come_at_once_are_answered(port: int) -> None:
    """More clients connect than web accepts connections."""
    with ThreadPoolExecutor(1000) as crowd:
        statuses = Counter(crowd.map(lambda number: come(port, number), range(1000)))
    assert statuses == {200: 750, 404: 250}
