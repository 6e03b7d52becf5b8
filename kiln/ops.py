"""The ops port of web and controller: `/livez`, `/readyz`, `/metrics`.

It is a server on a separate thread, so that it answers probes while all threads of web are busy, and before the
application is imported. It uses the standard library, because the controller needs no framework otherwise. Ready means
configured, regardless of dependencies: an outage must give 503s, not refused connections. Alive means that all threads
beat.
"""

from __future__ import annotations

import http.server
import logging
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

from eventing.pulse import Pulse

log = logging.getLogger("kiln.ops")


NOTIFY_SOCKET = "NOTIFY_SOCKET"
"""The variable with the socket of a supervisor that waits for `READY=1` (sd_notify(3)); `@` represents a NUL."""


class Ops:
    """Listens on construction, answers after `serve`. `waiting_for` names the missing step until `ready`; then it is
    `None`. `pulses` are those of the threads without which this process is not alive.
    """

    def __init__(self, host: str, port: int) -> None:
        """Raises OSError if the port is not available."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=64)
        self.waiting_for: str | None = "start"
        self.pulses: Sequence[Pulse] = ()
        # Removed from the environment: gunicorn would send READY=1 before the application exists.
        self._supervisor = os.environ.pop(NOTIFY_SOCKET, None)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return host, port

    def serve(self) -> None:
        """Answer from a thread of this process. Call it after the last fork."""
        server = _Server(self._listener, self)
        threading.Thread(target=server.serve_forever, name="ops", daemon=True).start()

    def ready(self) -> None:
        """Answer `/readyz` with 200 from now on, and notify the supervisor."""
        self.waiting_for = None
        if self._supervisor:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
                sender.sendto(b"READY=1", self._supervisor.replace("@", "\0", 1))

    def answer(self, path: str, accept: str) -> tuple[int, str, bytes]:
        """Return status, content type and body for a GET."""
        text = "text/plain; charset=utf-8"
        if path == "/livez":
            late = [f"{pulse.name} is {pulse.late:.0f} s late\n" for pulse in self.pulses if pulse.late]
            return (503, text, "".join(late).encode()) if late else (200, text, b"alive\n")
        if path == "/readyz":
            waiting_for = self.waiting_for
            return (200, text, b"ready\n") if waiting_for is None else (503, text, f"not yet: {waiting_for}\n".encode())
        if path == "/metrics":
            return 200, *_metrics(accept)
        return 404, text, b"there is /livez, /readyz and /metrics\n"


def _metrics(accept: str) -> tuple[str, bytes]:
    from prometheus_client import REGISTRY  # noqa: PLC0415  # 0.1 s to import
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    encode, content_type = choose_encoder(accept)
    return content_type, encode(REGISTRY)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout: ClassVar[float] = 10
    protocol_version = "HTTP/1.1"
    server_version = "kiln"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        status, content_type, body = self.server.ops.answer(path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  # its name is its route

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        log.debug(format, *args)


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, listener: socket.socket, ops: Ops) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.ops = ops

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        log.debug("A probe disconnected before its answer")
