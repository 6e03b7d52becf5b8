"""A receiver of events, on loopback or another address: real HTTP, and every way in which a sink can fail its sender.

    with EventSink() as sink:
        sink.answer(503, Answer(429, retry_after="2"))   # the first two requests; 202 from then on
        ...
        sink.wait_for(lambda received: len(received) == 3)
        assert sink.events[0].type == "dev.kiln.build.succeeded.v1"

It implements HTTP itself, because no HTTP server can be made to answer this badly.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from eventing.errors import EventError
from eventing.event import Event
from eventing.http import decode


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request, as it came."""

    at: float
    """`time.monotonic()` when the whole request had arrived."""
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    events: tuple[Event, ...]
    """The events in the body; empty where it is no CloudEvent."""
    status: int
    """The status of the answer, or 0 where none is given."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a request."""

    status: int = 202
    retry_after: str | None = None
    location: str | None = None
    body: bytes = b""
    trickle: bool = False
    """A byte a second, from the status line on."""
    trickle_body: bool = False
    """The head without delay, then the body a byte a second."""
    endless: bool = False
    """The body continues for as long as the client reads it."""
    raw: bytes | None = None
    """These bytes instead of all that, then the end of the connection."""
    silent: bool = False
    """Nothing; the connection stays open."""
    cut: bool = False
    """Nothing; the connection is reset."""

    @property
    def said(self) -> int:
        return 0 if self.silent or self.cut or self.raw is not None else self.status

    @property
    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} As Asked"]
        lines += [f"Retry-After: {self.retry_after}"] if self.retry_after is not None else []
        lines += [f"Location: {self.location}"] if self.location is not None else []
        lines += [] if self.endless or self.status == 204 else [f"Content-Length: {len(self.body)}"]
        return "\r\n".join([*lines, "", ""]).encode()


SILENT = Answer(silent=True)
TRICKLE = Answer(trickle=True)
CUT = Answer(cut=True)


class EventSink:
    """Accepts and answers 202 by default. It can be switched at any time and from any thread."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1", port: int = 0) -> None:
        self.address = address
        self._tls = tls
        self._changed = threading.Condition()
        self._received: list[Received] = []
        self._first: list[Answer] = []
        self._then = Answer()
        self._closing = threading.Event()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self.most_connections = 0
        """The most simultaneous connections so far."""
        self._listener = self._bound(port)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor: threading.Thread | None = None
        self.accept()

    def __enter__(self) -> EventSink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}:{self.port}/events"

    def answer(self, *first: int | Answer, then: int | Answer = 202) -> None:
        """The next requests get `first`, one each; all that come after them `then`."""
        answers = [Answer(status=one) if isinstance(one, int) else one for one in (*first, then)]
        with self._changed:
            self._first, self._then = answers[:-1], answers[-1]

    def refuse(self) -> None:
        """Ends all connections and refuses new ones, until `accept`. The port stays ours."""
        self._end()
        self._listener = self._bound(self.port)

    def accept(self) -> None:
        """Accepts connections (again)."""
        if self._acceptor is None:
            self._closing = threading.Event()
            self._listener.listen(128)
            self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
            self._acceptor.start()

    def close(self) -> None:
        self._end()

    @property
    def received(self) -> list[Received]:
        """All requests so far, in the order in which they came."""
        with self._changed:
            return list(self._received)

    @property
    def events(self) -> list[Event]:
        """The events of the requests that were answered with 2xx."""
        return [event for one in self.received if one.status // 100 == 2 for event in one.events]

    def wait_for(self, predicate: Callable[[list[Received]], object], timeout: float = 10.0) -> list[Received]:
        """Returns what was received as soon as `predicate` holds for it; AssertionError if it does not within that."""
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(list(self._received)), timeout):
                kinds = [(one.status, *(event.type for event in one.events)) for one in self._received]
                raise AssertionError(f"not within {timeout:g} s; received {len(kinds)}: {kinds[-20:]}")
            return list(self._received)

    def wait_for_event(self, event_type: str, timeout: float = 10.0) -> Event:
        """The first event of that type that was answered with 2xx."""
        self.wait_for(lambda _: any(event.type == event_type for event in self.events), timeout)
        return next(event for event in self.events if event.type == event_type)

    def _bound(self, port: int) -> socket.socket:
        """Binds without listening: connections are refused, and no other process can take the port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.address, port))
        return listener

    def _end(self) -> None:
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()
        if self._acceptor is not None:
            self._acceptor.join()
            self._acceptor = None
        self._listener.close()
        with self._changed:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection, self._closing), daemon=True)
            with self._changed:
                self._connections[connection] = thread
                self.most_connections = max(self.most_connections, len(self._connections))
            thread.start()

    def _serve(self, plain: socket.socket, closing: threading.Event) -> None:
        connection = plain
        try:
            if self._tls is not None:
                # The plain socket stays open beside it, so that `_end` has something to shut down.
                connection = self._tls.wrap_socket(plain.dup(), server_side=True)
            with connection, connection.makefile("rb") as stream:
                while self._one(connection, stream, closing):
                    pass
        except (OSError, ValueError, http.client.HTTPException):
            pass  # the sender has gone, or does not trust us
        finally:
            with self._changed:
                del self._connections[plain]
            plain.close()

    def _one(self, connection: socket.socket, stream: io.BufferedReader, closing: threading.Event) -> bool:
        """Reads one request and answers it. Returns whether the connection can go on."""
        if not (line := stream.readline()):
            return False
        headers = {name.lower(): value for name, value in http.client.parse_headers(stream).items()}
        body = stream.read(int(headers.get("content-length", "0")))
        answer = self._take(line.decode().split()[1], headers, body)
        if answer.silent:
            closing.wait()
        elif answer.cut:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif answer.raw is not None:
            connection.sendall(answer.raw)
        else:
            return _say(answer, connection, closing)
        return False

    def _take(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            events = tuple(decode(headers, body))
        except EventError:
            events = ()
        with self._changed:
            answer = self._first.pop(0) if self._first else self._then
            self._received.append(
                Received(at=time.monotonic(), path=path, headers=headers, body=body, events=events, status=answer.said)
            )
            self._changed.notify_all()
        return answer


def _say(answer: Answer, connection: socket.socket, closing: threading.Event) -> bool:
    at_once = b"" if answer.trickle else answer.head if answer.trickle_body else answer.head + answer.body
    connection.sendall(at_once)
    for byte in (answer.head + answer.body)[len(at_once) :]:
        if closing.wait(1):
            return False
        connection.sendall(bytes([byte]))
    while answer.endless:
        connection.sendall(bytes(8192))
    return True
