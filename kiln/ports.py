"""The port of web: a port that is not available is one error, before anything is loaded."""

from __future__ import annotations

import errno
import socket
import time

from kiln.errors import CommandError

WAIT = 5.0
"""Seconds for a predecessor on the same port to end."""
INTERVAL = 0.1


def check(host: str, port: int) -> None:
    """Raises CommandError if no server can listen on the port."""
    deadline = time.monotonic() + WAIT
    while (error := _refusal(host, port)) is not None:
        taken = error.errno == errno.EADDRINUSE
        if not taken or time.monotonic() > deadline:
            cure = "Stop the program that uses it, or set another PORT." if taken else "Set another KILN_HOST or PORT."
            raise CommandError(f"PORT: {host} port {port} is not available: {error.strerror}. {cure}")
        time.sleep(INTERVAL)


def _refusal(host: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        return error
    return None
