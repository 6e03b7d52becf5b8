"""Plain HTTP before a real Kubernetes API server, to answer in its place, which a TCP proxy cannot do.

with ApiProxy(configuration) as api_proxy:
    use(api_proxy.url)
    api_proxy.rule = lambda asked: Answer(503) if asked.method == "POST" else None      # answered here
    api_proxy.rule = lambda asked: asked._replace(target="/another")                    # passed on, changed
    api_proxy.requests                                                                  # all so far, in order

`None` passes the request on as it is.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from kubernetes.client.configuration import Configuration

HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


class Asked(NamedTuple):
    """A request. `at` is by the monotonic clock."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def watches(self) -> bool:
        return "watch=true" in self.target

    @property
    def lists(self) -> bool:
        return "limit=" in self.target


class Answer(NamedTuple):
    """An answer in pieces, `pause` seconds apart; `hangs` never ends it. Without a status the connection is just
    closed."""

    status: int | None = 200
    pieces: tuple[bytes, ...] = ()
    headers: Mapping[str, str] = {}
    pause: float = 0.0
    hangs: bool = False


class ApiProxy:
    """Listens until `close`, with the credentials of `configuration` for the other side."""

    def __init__(self, configuration: Configuration) -> None:
        self.rule: Callable[[Asked], Asked | Answer | None] = lambda _: None
        self.requests: list[Asked] = []
        self.closed = threading.Event()
        self._host = urlsplit(configuration.host).netloc
        self._trust = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        self._trust.load_cert_chain(configuration.cert_file or "", configuration.key_file)
        api_proxy = self

        class Handler(_Handler):
            served_by = api_proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> ApiProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def upstream(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, context=self._trust)


class _Handler(BaseHTTPRequestHandler):
    served_by: ApiProxy
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(self.command, self.path, dict(self.headers.items()), body, time.monotonic())
        self.served_by.requests.append(asked)
        decided = self.served_by.rule(asked)
        with suppress(OSError):
            if isinstance(decided, Answer):
                self._answer(decided)
            else:
                self._pass_on(decided or asked)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 (http.server's names)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, answer: Answer) -> None:
        if answer.status is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._write(answer.status, answer.headers, self._pieces(answer))

    def _pieces(self, answer: Answer) -> Iterator[bytes]:
        for piece in answer.pieces:
            yield piece
            self.served_by.closed.wait(answer.pause)
        if answer.hangs:
            self.served_by.closed.wait()

    def _pass_on(self, asked: Asked) -> None:
        upstream = self.served_by.upstream()
        try:
            headers = {name: value for name, value in asked.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(asked.method, asked.target, asked.body or None, headers)
            response = upstream.getresponse()
            self._write(response.status, dict(response.headers.items()), iter(lambda: response.read1(64 << 10), b""))
        finally:
            upstream.close()

    def _write(self, status: int, headers: Mapping[str, str], pieces: Iterator[bytes]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
