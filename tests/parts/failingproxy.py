"""A proxy for the steps of builds (`proxies` of a docker `config.json`), behind which every host has an outage.

    with FailingProxy(gateway, 503, folder) as proxy:

Every host answers every request with that status, over TLS with a certificate of another host and of no authority;
where it is 0, it resets the connection.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from tests.parts.authority import make_authority

RESET = 0


class FailingProxy:
    """Started by entering, stopped by leaving; `url` is the proxy's."""

    def __init__(self, address: str, status: int, folder: Path) -> None:
        make_authority(folder, "DNS:index.example")
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(folder / "host.pem", folder / "host.key")
        self.asked: list[str] = []
        outages = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_CONNECT(self) -> None:
                self.send_response_only(200)
                self.end_headers()
                if status == RESET:
                    outages.asked.append(self.path)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    return
                self.connection = outages._tls.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)

            def do_GET(self) -> None:
                outages.asked.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def finish(self) -> None:
                super().finish()
                self.connection.close()  # which may differ from the socket that the server has given it

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://{address}:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
