"""`kiln serve`: web and controller of one machine, each in a process of its own that is started again when it ends."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from kiln.gunicorn import GRACE
from kiln.settings import Settings

FIRST = 10.0
"""Seconds: a process whose first start does not last so long cannot work, and says why."""
LONGEST_PAUSE = 30.0
"""Seconds before a process is started again."""
STEADY = 60.0
"""Seconds after which a process counts as healthy: the pause after its end is the shortest."""
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


def serve(environment: Mapping[str, str], found: Settings) -> int:
    """Runs both until SIGTERM or SIGINT, a second of which kills them. Returns the exit status."""
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
    """The controller's ops port where one is set: the next after web's."""
    return {"KILN_OPS_PORT": str(found.ops_port + 1)} if found.ops_port else {}


class _Supervised:
    """One process, which is started again when it ends."""

    def __init__(self, name: str, environment: Mapping[str, str], stop: asyncio.Event, kill: asyncio.Event) -> None:
        self._name = name
        self._environment = environment
        self._stop = stop
        self._kill = kill

    async def run(self) -> int:
        """Runs it until `stop`. Sets `stop` and returns 1 where the first start fails, else 0."""
        pause, first = 0.0, True
        while True:
            began = time.monotonic()
            status = await self._once()
            lasted = time.monotonic() - began
            if self._stop.is_set():
                return 0
            if first and lasted < FIRST:
                self._stop.set()
                return 1
            first = False
            pause = 1.0 if lasted > STEADY else min(max(2 * pause, 1.0), LONGEST_PAUSE)
            log.error("%s ended with status %d; started again in %.0f s", self._name, status, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)
            if self._stop.is_set():
                return 0

    async def _once(self) -> int:
        """Its status, when it has ended."""
        command = [sys.executable, "-m", "kiln", self._name]
        process = await asyncio.create_subprocess_exec(
            *command, env=self._environment, start_new_session=True, preexec_fn=_end_with_parent
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


def _end_with_parent() -> None:
    """In the child: have the kernel send SIGTERM when `kiln serve` dies (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
