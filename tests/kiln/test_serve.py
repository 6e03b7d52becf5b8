"""`kiln serve` runs both processes until it is stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kiln import ports
from tests.parts.kiln import ROOT, Kiln, get, until
from tests.parts.registry import free_pair, free_port


class Served:
    """`kiln serve` and its two processes."""

    def __init__(self, kiln: Kiln, **settings: str) -> None:
        self.port, self.ops = free_port(), free_pair()
        self.log = kiln.folder / "serve.log"
        environment = kiln.environment | {"PORT": str(self.port), "KILN_OPS_PORT": str(self.ops)} | settings
        with self.log.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "kiln", "serve"], cwd=ROOT, env=environment, stdout=out, stderr=out
            )

    @property
    def ready(self) -> bool:
        return all(get(f"http://127.0.0.1:{port}/readyz")[0] == 200 for port in (self.ops, self.ops + 1))

    def child(self, name: str) -> int:
        """Return the id of the current process of that name."""
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in children}
        return next(pid for pid, line in lines.items() if ("controller" in line) == (name == "controller"))

    def until_ready(self) -> None:
        until(lambda: self.ready or self.popen.poll() is not None)
        assert self.ready, self.log.read_text()


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Served]:
    with Kiln(folder) as kiln:
        served = Served(kiln, **settings)
        try:
            yield served
        finally:
            served.popen.send_signal(signal.SIGTERM)
            served.popen.wait(30)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_starts_again_what_dies_and_ends_both(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.until_ready()
        assert get(f"http://127.0.0.1:{served.port}/versions")[0] == 200
        before = {name: served.child(name) for name in ("web", "controller")}
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: all(map(is_gone, before.values())))
        served.until_ready()
        after = {name: served.child(name) for name in before}
        assert not {*before.values()} & {*after.values()}
        assert "web ended with status -9" in served.log.read_text()
        served.popen.send_signal(signal.SIGINT)
        assert served.popen.wait(30) == 0
        assert all(map(is_gone, after.values()))


def test_its_processes_end_with_it(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.until_ready()
        pids = [served.child(name) for name in ("web", "controller")]
        served.popen.kill()
        until(lambda: all(map(is_gone, pids)))


def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    with Kiln(tmp_path) as kiln:
        done = kiln.run("serve", KILN_BUILDS_PER_NODE="many")
    assert done.returncode == 1
    assert done.stderr.count("KILN_BUILDS_PER_NODE") == 1


@pytest.mark.parametrize("name", ["PORT", "KILN_OPS_PORT"])
def test_a_port_in_use_ends_it(tmp_path: Path, name: str) -> None:
    """An ops port counts as in use even if another Kiln answers there that it is ready."""
    ports = {"PORT": str(free_port()), "KILN_OPS_PORT": str(free_pair())}
    with Kiln(tmp_path) as kiln:
        kiln.start("web", **ports)
        others = {"PORT": str(free_port()), "KILN_OPS_PORT": str(free_pair())}
        done = kiln.run("serve", **others | {name: ports[name]})
    assert done.returncode == 1
    assert ports[name] in done.stderr


@pytest.mark.parametrize("command", ["web", "serve"])
def test_a_port_in_use_is_one_error(tmp_path: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Kiln(tmp_path, KILN_OPS_PORT="0") as kiln:
        port = taken.getsockname()[1]
        done = kiln.run(command, PORT=str(port))
    (error,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == 1
    assert error.startswith(f"kiln: error: PORT: 127.0.0.1 port {port} is not available: Address already in use. Stop")


def test_web_waits_for_its_predecessor_to_leave_the_port() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    threading.Timer(0.3, taken.close).start()
    ports.check("127.0.0.1", port)
    socket.create_server(("127.0.0.1", port)).close()
