"""`kiln serve` supervises web and controller on one machine: each is a process, and restarts when it ends."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress

from kiln.gunicorn import GRACE
from kiln.ops import NOTIFY_SOCKET
from kiln.settings import Settings

LONGEST_PAUSE = 30.0
"""The longest delay before a restart, in seconds."""
STEADY = 60.0
"""Seconds after which a process counts as healthy, so that it restarts after the shortest delay."""
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


def serve(environment: Mapping[str, str], found: Settings) -> int:
    """Run both until SIGTERM or SIGINT; a second signal kills them. Returns the exit status."""
    return asyncio.run(_serve(environment, found))


async def _serve(environment: Mapping[str, str], found: Settings) -> int:
    stop, kill = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (kill if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    environments = {"web": environment, "controller": {**environment, **_other_port(found)}}
    supervised = (_Supervised(name, given, stop, kill).run() for name, given in environments.items())
    return max(await asyncio.gather(*supervised))


def _other_port(found: Settings) -> dict[str, str]:
    """The controller's ops port: the number after web's, if that is set."""
    return {"KILN_OPS_PORT": str(found.ops_port + 1)} if found.ops_port else {}


class _Supervised:
    """A process that restarts when it ends."""

    def __init__(self, name: str, environment: Mapping[str, str], stop: asyncio.Event, kill: asyncio.Event) -> None:
        self._name = name
        self._environment = environment
        self._stop = stop
        self._kill = kill

    async def run(self) -> int:
        """Run the process until `stop`, and return 0. If it ends without ever being ready, set `stop` and return 1."""
        pause = 0.0
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notices:
            notices.bind("")  # the kernel chooses an abstract name (unix(7))
            while True:
                began = time.monotonic()
                status = await self._once(notices)
                if self._stop.is_set():
                    return 0
                if not _has_been_ready(notices):
                    self._stop.set()
                    return 1
                lasted = time.monotonic() - began
                pause = 1.0 if lasted > STEADY else min(max(2 * pause, 1.0), LONGEST_PAUSE)
                log.error("%s ended with status %d; restarting in %.0f s", self._name, status, pause)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), pause)
                if self._stop.is_set():
                    return 0

    async def _once(self, notices: socket.socket) -> int:
        """Run the process once, and return its exit status. Its notices of readiness go to `notices` (sd_notify(3))."""
        command = [sys.executable, "-m", "kiln", self._name]
        environment = {**self._environment, NOTIFY_SOCKET: "@" + notices.getsockname()[1:].decode()}
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, start_new_session=True, preexec_fn=_end_with_parent
        )
        ended, stop, kill = (
            asyncio.ensure_future(one) for one in (process.wait(), self._stop.wait(), self._kill.wait())
        )
        await asyncio.wait((ended, stop), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait((ended, kill), timeout=2 * GRACE, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            with suppress(ProcessLookupError):
                process.kill()
        stop.cancel()
        kill.cancel()
        return await ended


def _has_been_ready(notices: socket.socket) -> bool:
    """Whether a process has sent a notice of readiness. The notice stays in the socket."""
    try:
        return bool(notices.recv(64, socket.MSG_DONTWAIT | socket.MSG_PEEK))
    except BlockingIOError:
        return False


def _end_with_parent() -> None:
    """In the child: make the kernel send SIGTERM when `kiln serve` ends (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
