"""300 open connections with incomplete requests delay no complete one, and neither do clients that never pause."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Thread

import pytest

from tests.kiln.test_slow_clients import THREADS, answer, port, served
from tests.parts.partial_requests import HEAD, KINDS, partial_requests

__all__ = ["port"]

WHOLE = HEAD + b"Content-Length: 3\r\n\r\nabc"
LAST = HEAD + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc"


def seconds(port: int) -> float:
    begun = time.monotonic()
    assert answer(port, LAST).endswith(b"\r\n3\n")
    return time.monotonic() - begun


@pytest.mark.alone
@pytest.mark.parametrize("kind", KINDS)
def test_they_delay_nobody(port: int, kind: str) -> None:
    usual = seconds(port)
    with partial_requests(port, KINDS[kind]):
        for _ in range(10):
            assert seconds(port) < max(2.0, 20 * usual)


@pytest.mark.parametrize("kind", ["silence", "a body"])
def test_more_than_there_may_be_connections_keep_nobody_out(kind: str) -> None:
    with served("--worker-connections", "100") as port, partial_requests(port, KINDS[kind]):
        for _ in range(3):
            assert answer(port, LAST).endswith(b"\r\n3\n")


@pytest.mark.timeout(25)
def test_they_do_not_keep_a_worker_that_stops() -> None:
    """The worker would wait 60 seconds for requests under way, and 30 for incomplete ones."""
    with ExitStack() as stack:
        port = stack.enter_context(served("--worker-class", "kiln.gunicorn.Worker", "--graceful-timeout", "60"))
        with partial_requests(port, *KINDS.values(), number=50):
            seconds(port)
            stack.close()


@contextmanager
def without_end(port: int, number: int) -> Iterator[None]:
    """Keep `number` connections open on which the next request has always arrived."""
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(number)]
        threads = [Thread(target=run, args=(each,)) for each in connections for run in (ask_on, take_all)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for connection in connections:
                connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def ask_on(connection: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection.sendall(WHOLE * 100)


def take_all(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(65536):
            pass


def test_who_asks_without_end_keeps_no_thread(port: int) -> None:
    with without_end(port, THREADS):
        for _ in range(5):
            assert answer(port, LAST).endswith(b"\r\n3\n")


@pytest.mark.parametrize("size", [(27 << 20), (64 << 20)])
def test_who_sends_more_than_is_awaited_is_answered(port: int, size: int) -> None:
    """The client sends its whole body before it reads, as most clients do."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: connection.recv(4096), b"")).endswith(b"\r\nunread\n")
