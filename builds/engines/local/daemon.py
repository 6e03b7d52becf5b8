"""Whether the daemon answers, by the cheapest request: `GET /_ping` on its socket.

https://docs.docker.com/reference/api/engine/version/v1.41/#tag/System/operation/SystemPing
https://docs.podman.io/en/v5.4.2/_static/api.html#tag/system-(compat)/operation/SystemPing
"""

from __future__ import annotations

import shutil
import socket
import time

import msgspec

from builds.build import Disk
from builds.builder.spec import DAEMON_NAMES, DaemonKind
from builds.engines import UNREADABLE

DEFAULT = "unix:///var/run/docker.sock"
TIMEOUT = 2.0
MAX_INFO = 1 << 20
"""Bytes of a daemon's description of itself."""
CACHE_TTL = 1.0
"""Seconds for which an answer is cached."""


class _Info(msgspec.Struct):
    root: str = msgspec.field(name="DockerRootDir")


class DaemonProbe:
    """The daemon at `address` (`unix://…` or `tcp://host:port`, as in DOCKER_HOST; default: the machine's Docker)."""

    def __init__(self, address: str | None = None, kind: DaemonKind = "docker") -> None:
        self._address = address or DEFAULT
        self._name = DAEMON_NAMES[kind]
        self._asked_at = float("-inf")
        self._trouble: str | None = None

    def trouble(self) -> str | None:
        """Why it accepts no builds, as a sentence; `None` if it does."""
        if time.monotonic() - self._asked_at > CACHE_TTL:
            self._trouble = self._ask()
            self._asked_at = time.monotonic()
        return self._trouble

    def disk(self) -> Disk | None:
        """The disk of its images; `None` if the daemon does not report it, or is on another machine.

        https://docs.docker.com/reference/api/engine/version/v1.41/#tag/System/operation/SystemInfo
        """
        if self._address.startswith("tcp:"):
            return None
        try:
            with self._connected() as connection:
                connection.sendall(b"GET /info HTTP/1.0\r\nHost: docker\r\n\r\n")
                answer = connection.makefile("rb").read(MAX_INFO)
            root = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2], type=_Info).root
            found = shutil.disk_usage(root)
        except (OSError, *UNREADABLE):
            return None
        return Disk(free=found.free, size=found.total)

    def _ask(self) -> str | None:
        try:
            with self._connected() as connection:
                connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
                status = connection.recv(64).split(b" ")[1:2]
        except ValueError:
            return (
                f"The address {self._address} of the {self._name} is invalid. Use unix://<path> or tcp://<host>:<port>."
            )
        except OSError as error:
            return f"The {self._name} at {self._address} does not answer: {error.strerror or error}."
        return None if status == [b"200"] else f"The {self._name} at {self._address} answers, but is not ready."

    def _connected(self) -> socket.socket:
        """Raises ValueError for an invalid address, OSError."""
        scheme, _, where = self._address.partition("://")
        if scheme == "tcp":
            host, _, port = where.rstrip("/").rpartition(":")
            return socket.create_connection((host.strip("[]"), int(port)), TIMEOUT)
        if scheme != "unix":
            raise ValueError(scheme)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(TIMEOUT)
            connection.connect(where)
        except BaseException:
            connection.close()
            raise
        return connection
