"""300 connections that send no whole request, kept up, do not delay who does."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

import pytest

from tests.kiln.test_patience import answer, port

__all__ = ["port"]

MANY = 300
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


def seconds(port: int) -> float:
    begun = time.monotonic()
    assert answer(port, HEAD + b"Content-Length: 3\r\nConnection: close\r\n\r\nabc").endswith(b"\r\n3\n")
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (b"", b""),
        (HEAD + b"X-", b"y"),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b"1"),
        (HEAD + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n", b"1"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n", b"1"),
    ],
)
def test_they_delay_nobody(port: int, words: bytes, more: bytes) -> None:
    usual = seconds(port)
    ended = threading.Event()

    def keep_up(connections: list[socket.socket]) -> None:
        while more and not ended.wait(0.1):
            for at, connection in enumerate(connections):
                try:
                    connection.sendall(more)
                except OSError:  # it was ended, and another takes its place
                    connection.close()
                    connections[at] = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                    connections[at].sendall(words)

    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(MANY)]
        for connection in connections:
            connection.sendall(words)
        keeper = threading.Thread(target=keep_up, args=(connections,))
        keeper.start()
        try:
            for _ in range(10):
                assert seconds(port) < max(1.0, 20 * usual)
        finally:
            ended.set()
            keeper.join()
