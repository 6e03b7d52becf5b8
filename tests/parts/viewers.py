"""Many clients that follow a stream at the same time, in one thread: all they do is read.

with Viewers(url, 300) as viewers:
    until(lambda: viewers.reading == 300)
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

ALIKE = 50
"""Clients that connect at the same time: the queue of a listening socket has no place for more."""


class Viewers:
    """Clients of one address. `said` is the text that each has received so far, by its number."""

    def __init__(self, url: str, number: int, headers: Mapping[str, str] = {}) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc}", *(f"{name}: {headers[name]}" for name in headers)]
        self._request = "".join(f"{line}\r\n" for line in [*lines, ""]).encode()
        self.said = [b""] * number
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnects all clients."""
        self._stopped.set()
        self._thread.join(20)

    @property
    def reading(self) -> int:
        """How many have received anything beyond the head of the answer."""
        return sum(b"data: " in said for said in self.said)

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            waiting = list(range(len(self.said)))
            while not self._stopped.is_set():
                unheard = sum(not self.said[key.data] for key in selector.get_map().values())
                for number in waiting[: ALIKE - unheard]:
                    selector.register(self._come(), selectors.EVENT_READ, number)
                    waiting.remove(number)
                for key, _ in selector.select(0.1):
                    self._take(selector, key)
            for key in list(selector.get_map().values()):
                self._leave(selector, key)

    def _come(self) -> socket.socket:
        viewer = socket.create_connection(self._address, timeout=20)
        viewer.sendall(self._request)
        viewer.setblocking(False)
        return viewer

    def _take(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        assert isinstance(key.fileobj, socket.socket)
        piece = b""
        with suppress(OSError):
            piece = key.fileobj.recv(1 << 16)
        self.said[key.data] += piece
        if not piece:
            self._leave(selector, key)

    def _leave(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        assert isinstance(key.fileobj, socket.socket)
        selector.unregister(key.fileobj)
        key.fileobj.close()
