"""A container registry on loopback, or on another address: Debian's `docker-registry`, or its image where the program
cannot be had.

It keeps its data and its port over `stop` and `start`, and can be made deaf (`pause`) without closing its port.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import randrange

from tests.parts import machine

IMAGE = "registry:2"


class Registry:
    """A registry with its data under `folder`, open or only for the `users` (name to password). Not started yet."""

    def __init__(self, folder: Path, users: Mapping[str, str] | None = None, *, address: str = "127.0.0.1") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.address, self.port = address, free_port(address)
        self.host = f"{address}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._container: str | None = None
        config: dict[str, object] = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
            "log": {"level": "warn", "accesslog": {"disabled": True}},
        }
        if users:
            self.let_in(users)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        self._config = folder / "config.json"
        self._config.write_text(json.dumps(config))  # which is YAML as well

    def let_in(self, users: Mapping[str, str]) -> None:
        """From now on, admits these users and no others."""
        lines = [f"{name}:{_bcrypt(password)}\n" for name, password in users.items()]
        (self.folder / "htpasswd").write_text("".join(lines))

    def start(self) -> None:
        """Starts the registry and returns when it answers."""
        try:
            program: Path | None = machine.program("docker-registry", "docker-registry")
        except machine.MachineError:
            program = None
        if program:
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [str(program), "serve", str(self._config)], stdout=log, stderr=log, start_new_session=True
                )
        else:
            self._container = self._run_container()
        deadline = time.monotonic() + 30
        while self.status() is None:
            if time.monotonic() > deadline or (self._process and self._process.poll() is not None):
                raise machine.MachineError(f"the registry does not start: {self.folder / 'log'}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(10)
            self._process = None
        if self._container:
            subprocess.run(["docker", "rm", "--force", self._container], check=True, capture_output=True)
            self._container = None

    def pause(self) -> None:
        """From now on it accepts connections and answers nothing."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)
        else:
            subprocess.run(["docker", "pause", str(self._container)], check=True, capture_output=True)

    def status(self) -> int | None:
        """The status of `GET /v2/`; `None` where no registry answers."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def __enter__(self) -> Registry:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run_container(self) -> str:
        """Runs as this user and on the host's network, so that paths and address are the same as for the program."""
        user = f"{os.getuid()}:{os.getgid()}"
        command = [
            "docker",
            "run",
            "--detach",
            "--network=host",
            f"--user={user}",
            f"--volume={self.folder}:{self.folder}",
        ]
        done = subprocess.run(
            [*command, IMAGE, "serve", str(self._config)], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise machine.MachineError(f"no docker-registry program, and no image {IMAGE}: {done.stderr.strip()}")
        return done.stdout.strip()


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as listener:
        listener.bind((address, 0))
        port: int = listener.getsockname()[1]
        return port


def free_pair() -> int:
    """The first of two adjacent free ports: `kiln serve` gives the second to its controller.

    They lie below the ephemeral range (ip(7), ip_local_port_range), from which Linux may assign a port at any moment.
    """
    return next(port for port in iter(lambda: randrange(20_000, 32_000), None) if _is_free(port) and _is_free(port + 1))


def _is_free(port: int) -> bool:
    with socket.socket() as listener, suppress(OSError):
        listener.bind(("127.0.0.1", port))
        return True
    return False


def _bcrypt(password: str) -> str:
    """The only hash that the registry takes. Python has none; the C library of Debian does (crypt(5))."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    salt = "".join(
        secrets.choice("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") for _ in range(21)
    )
    hashed: bytes = crypt(password.encode(), f"$2b$04${salt}e".encode())
    return hashed.decode()
