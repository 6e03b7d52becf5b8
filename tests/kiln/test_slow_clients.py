"""Slow and endless senders and readers: each can occupy a thread of web for a while, none forever."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.parts.kiln import ROOT

THREADS = 4
ENOUGH = 12.0
"""Seconds: much more than a worker's patience here, and much less than gunicorn's default."""


OPTIONS = (
    f"--bind 127.0.0.1:0 --worker-class tests.kiln.short_timeouts.ShortTimeouts --threads {THREADS} --no-control-socket"
)


@contextmanager
def served(*options: str) -> Iterator[int]:
    """Run the impatient worker, with additional options of gunicorn; yields its port."""
    command = [sys.executable, "-m", "gunicorn", *OPTIONS.split(), *options, "tests.kiln.short_timeouts:application"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        listening = None
        while listening is None:
            listening = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", process.stderr.readline())
            assert process.poll() is None
        yield int(listening[1])
        process.terminate()
        rest = process.stderr.read()
    assert "Traceback" not in rest, rest


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served() as port:
        yield port


def answer(port: int, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") -> bytes:
    with socket.create_connection(("127.0.0.1", port), ENOUGH) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX-",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n1",
        b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_as_many_as_there_are_threads_keep_nobody_out(port: int, words: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(THREADS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(words)
        begun = time.monotonic()
        assert answer(port).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - begun < ENOUGH


def trickle(port: int) -> None:
    """Send a request whose pieces each arrive in time, but which is too slow as a whole."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"1")
            time.sleep(0.1)


def test_a_trickle_is_no_request_either(port: int) -> None:
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"Broken pipe|reset by peer"):
        trickle(port)
    assert time.monotonic() - begun < ENOUGH / 2


def test_who_does_not_close_a_connection_delays_nobody(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(2 * THREADS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        begun = time.monotonic()
        assert answer(port).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - begun < 5


def test_who_stays_for_more_keeps_nobody_out_and_is_answered_soon_and_late(port: int) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        stay = [stack.enter_context(socket.create_connection(("127.0.0.1", port), ENOUGH)) for _ in range(2 * THREADS)]
        for connection in stay:
            connection.sendall(request)
        for connection in stay:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            connection.sendall(request + request)
            answers = b""
            while answers.count(b"HTTP/1.1 200") < 2:
                piece = connection.recv(4096)
                assert piece, answers
                answers += piece
        assert answer(port).startswith(b"HTTP/1.1 200")


def test_a_whole_request_is_answered(port: int) -> None:
    said = answer(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
    assert said.endswith(b"\r\n3\n")


def test_who_has_asked_has_an_answer_however_long_that_takes(port: int) -> None:
    said = answer(port, b"POST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
    assert said.endswith(b"\r\n3\n")


def test_who_breaks_off_is_told_so(port: int) -> None:
    words = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na"
    assert answer(port, words).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(("127.0.0.1", port), ENOUGH) as connection:
        connection.sendall(words)
        connection.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: connection.recv(4096), b"")).endswith(b"\r\n1\n")
