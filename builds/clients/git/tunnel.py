"""`python tunnel.py FILE HOST PORT`: connects standard input and output to a host, through the guard.

git runs it for `git://` (`core.gitProxy`), and ssh for `ssh://` (`ProxyCommand`). FILE contains the guard's URL with
its password, so no argument contains it. The program ends when the host closes the connection. The guard knows why a
connection failed. Kiln runs it by its path, so it imports nothing of Kiln.
"""

from __future__ import annotations

import base64
import os
import selectors
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit


def main(file: str, host: str, port: str) -> int:
    """The exit status."""
    guard = urlsplit(Path(file).read_text(encoding="ascii"))
    name = host.strip("[]")
    authority = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    login = base64.b64encode(f"{guard.username}:{guard.password}".encode()).decode()
    with socket.create_connection((guard.hostname or "", guard.port or 0)) as server:
        server.sendall(f"CONNECT {authority} HTTP/1.1\r\nProxy-Authorization: Basic {login}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            piece = server.recv(1)  # must not consume bytes after the head
            if not piece:
                return 1
            answer += piece
        if answer.split()[1] != b"200":
            return 1
        _join(server)
    return 0


def _join(server: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                data = os.read(0, 1 << 16) if key.fd == 0 else server.recv(1 << 16)
                if key.fd != 0 and not data:
                    return
                if key.fd != 0:
                    _write(data)
                elif data:
                    server.sendall(data)
                else:
                    selector.unregister(0)
                    server.shutdown(socket.SHUT_WR)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
