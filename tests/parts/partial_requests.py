"""Connections that send no whole request, at a constant number: an ended connection is replaced.

with partial_requests(port, KINDS["a head"], KINDS["a chunk"]):
    ...
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
KINDS = {
    "silence": (b"", b""),
    "a head": (HEAD + b"X-", b"y"),
    "a body": (HEAD + b"Content-Length: 1000\r\n\r\n", b"1"),
    "a body that is to be allowed": (HEAD + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n", b"1"),
    "a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n", b"1"),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-", b"y"),
}
"""The beginning of a request, and the bytes that follow one at a time."""
EACH = 0.1
"""Seconds between two pieces of one connection."""


@contextmanager
def partial_requests(port: int, *kinds: tuple[bytes, bytes], number: int = 300) -> Iterator[None]:
    """Keeps that number of connections open, of these kinds in turn."""
    ended = threading.Event()
    halves = [_Half(port, *kinds[at % len(kinds)]) for at in range(number)]

    def keep_up() -> None:
        while not ended.wait(EACH):
            for half in halves:
                half.go_on()

    keeper = threading.Thread(target=keep_up)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        for half in halves:
            half.connection.close()


class _Half:
    def __init__(self, port: int, words: bytes, more: bytes) -> None:
        self._port, self._words, self._more = port, words, more
        self._begin()

    def _begin(self) -> None:
        self.connection = socket.create_connection(("127.0.0.1", self._port))
        self.connection.sendall(self._words)

    def go_on(self) -> None:
        try:
            self.connection.sendall(self._more)
        except OSError:  # the server ended it
            self.connection.close()
            with suppress(OSError):
                self._begin()
