"""Behaviour of a real server: chunked bodies, unbuffered streams, clients that disconnect, two processes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from tests.handlers.harness import COMMIT, REPOSITORY, Harness, create_harness, event, push, signed
from tests.parts.kiln import until

ROOT = Path(__file__).parents[2]
TYPE = {"Content-Type": "application/cloudevents+json"}
SSE = {"Accept": "text/event-stream"}
LIMIT = 100_000


@contextmanager
def served(folder: Path, viewers: int = 4) -> Iterator[int]:
    """Run a web process over a harness's folder; yields its port."""
    options = "--bind 127.0.0.1:0 --worker-class gthread --threads 12 --no-control-socket --graceful-timeout 1"
    command = [sys.executable, "-m", "gunicorn", *options.split(), "tests.handlers.wsgi:application"]
    environment = {**os.environ, "HARNESS": str(folder), "HARNESS_VIEWERS": str(viewers), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = ""
        for line in process.stderr:
            said += line
            listening = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line)
            if listening:
                break
        else:
            pytest.fail(said)
        rest: list[str] = []
        reader = threading.Thread(target=rest.extend, args=(process.stderr,))
        reader.start()
        try:
            yield int(listening[1])
        finally:
            process.terminate()
            process.wait(20)
            reader.join()
        assert not [line for line in rest if "Traceback" in line], "".join(rest)


@pytest.fixture
def web(harness: Harness) -> Iterator[int]:
    with served(harness.folder) as port:
        yield port


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """One server for all tests that leave no state behind."""
    with (
        closing(create_harness(tmp_path_factory.mktemp("refusing") / "harness")) as harness,
        served(harness.folder) as port,
    ):
        yield port


def ask(port: int, method: str, path: str, body: object = None, **more: object) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, **more)  # type: ignore[arg-type]
    answer = connection.getresponse()
    headers = {name.title(): value for name, value in answer.getheaders()}
    content = answer.read()
    connection.close()
    return answer.status, headers, content


def padded(size: int) -> bytes:
    envelope = json.dumps(event(data={"repository": "https://github.com/a/b", "commit": "1" * 40})).encode()
    return envelope + b" " * (size - len(envelope))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(LIMIT, 202), (LIMIT + 1, 413), (5 * LIMIT, 413)])
def test_a_body_over_the_limit_is_never_cut_and_taken(
    harness: Harness, web: int, chunked: bool, size: int, status: int
) -> None:
    body = padded(size)
    pieces = iter([body[start : start + 7000] for start in range(0, size, 7000)])
    answered, headers, content = ask(
        web, "POST", "/events", pieces if chunked else body, headers=TYPE, encode_chunked=chunked
    )
    assert answered == status
    if status == 202:
        assert content == b""
        assert headers["Content-Length"] == "0"
    assert len(harness.builds()) == (status == 202)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/events", TYPE, 413),
        ("/events", {**TYPE, "Content-Encoding": "gzip"}, 415),
        ("/webhooks/gitlab", {}, 403),
        ("/nowhere", {}, 404),
        ("/api/v1/builds/x/log", {}, 405),
    ],
)
def test_who_is_refused_can_send_all_and_read_why(
    refusing: int, path: str, headers: dict[str, str], status: int, chunked: bool
) -> None:
    """Most clients send everything before they read, and must not get a broken pipe."""
    piece = b" " * 2**16
    head = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    head.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(piece) * 256}")
    with socket.create_connection(("127.0.0.1", refusing), timeout=30) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        for _ in range(256):
            connection.sendall(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
        connection.sendall(b"0\r\n\r\n" if chunked else b"")
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == status
        assert json.loads(answer.read())["status"] == status


@pytest.mark.parametrize(
    "sent",
    [
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"Content-Length: 500\r\n\r\n{}",
    ],
)
def test_a_body_that_breaks_off_is_400_and_nothing_is_done(harness: Harness, web: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", web), timeout=20) as connection:
        head = b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/cloudevents+json\r\n"
        connection.sendall(head + sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).split(b" ")[1] == b"400"
    assert not harness.builds()


def test_two_processes_make_one_build_of_many_copies(harness: Harness) -> None:
    with ExitStack() as stack:
        ports = [stack.enter_context(served(harness.folder)) for _ in range(2)]

        def deliver(number: int) -> int:
            delivery = signed(push(), delivery=f"d-{number % 20}")
            return ask(ports[number % 2], "POST", "/webhooks/github", delivery["data"], headers=delivery["headers"])[0]

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(deliver, range(200))) == {202}
    (build,) = harness.builds()
    assert len(build.causes) == 20


def follow(port: int, name: str, **headers: str) -> tuple[HTTPConnection, HTTPResponse]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", f"/api/v1/builds/{name}/log", headers={**SSE, **headers})
    return connection, connection.getresponse()


def ids(answer: HTTPResponse) -> Iterator[str]:
    for line in answer:
        if line.startswith(b"id: "):
            yield line[4:].decode().strip()


def test_a_line_is_there_when_it_is_said_and_another_process_goes_on_with_it(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses()
    name = harness.run(harness.ask().name).name
    with ExitStack() as stack:
        first, second = (stack.enter_context(served(harness.folder)) for _ in range(2))
        connection, answer = follow(first, name)
        harness.say(name, "one", "two")
        seen = ids(answer)
        assert [next(seen), next(seen)] == ["1:1", "1:2"]
        connection.close()
        connection, answer = follow(second, name, **{"Last-Event-ID": "1:1"})
        harness.say(name, "three")
        harness.end(name)
        assert list(ids(answer)) == ["1:2", "1:3"]
        connection.close()


def test_a_binderhub_client_who_leaves_makes_room_and_its_path_comes_undecoded(harness: Harness) -> None:
    path = f"/build/git/https%3A%2F%2Fgithub.com%2Focto%2Fstats/{COMMIT}"
    with served(harness.folder, viewers=1) as port:

        def first() -> bytes:
            connection = HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200
            line = answer.readline()
            while line.startswith((b"id: ", b"\n", b":")):
                line = answer.readline()
            answer.close()
            connection.close()
            return line

        for _ in range(3):
            until(lambda: b'"waiting"' in first(), 20)
    (build,) = harness.builds()
    assert build.request.repository == REPOSITORY


def test_who_leaves_makes_room(harness: Harness) -> None:
    name = harness.run(harness.ask().name).name
    with served(harness.folder, viewers=1) as port:
        connection, answer = follow(port, name)
        assert answer.status == 200
        refused, second = follow(port, name)
        assert (second.status, second.getheader("Retry-After")) == (503, "30")
        refused.close()
        assert ask(port, "GET", "/api/v1/builds")[0] == 200
        answer.close()
        connection.close()

        def let_in() -> bool:
            connection, answer = follow(port, name)
            connection.close()
            answer.close()
            return answer.status == 200

        until(let_in, 20)
