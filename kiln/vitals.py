"""Ends a process one of whose threads has failed: its supervisor starts it again, and a standby takes over."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Sequence

from eventing.pulse import Pulse

log = logging.getLogger(__name__)

LATE_CHECKS = 10
"""Consecutive checks, one each second, that must find a pulse late. A process that was paused has time to recover."""
STATUS = 70
"""EX_SOFTWARE of sysexits.h."""


def end_with_any_thread() -> None:
    """Makes an exception that ends any thread end the process. (The main thread's does so anyway.)"""

    def ended(hook: threading.ExceptHookArgs) -> None:
        name = hook.thread.name if hook.thread else "unknown"
        trace = (hook.exc_type, hook.exc_value or hook.exc_type(), hook.exc_traceback)
        log.critical("The thread %s has ended, and this process with it", name, exc_info=trace)
        _exit()

    threading.excepthook = ended


def watch_over(pulses: Sequence[Pulse]) -> None:
    """Ends the process when a thread's pulse is late for too long: the thread may be blocked for ever."""
    threading.Thread(target=_watch, args=(pulses,), name="vitals", daemon=True).start()


def _watch(pulses: Sequence[Pulse]) -> None:
    late = 0
    pause = threading.Event()
    while late < LATE_CHECKS:
        pause.wait(1.0)
        late = late + 1 if any(pulse.late for pulse in pulses) else 0
    names = ", ".join(pulse.name for pulse in pulses if pulse.late)
    log.critical("Threads are blocked (%s), and this process ends; their stacks follow", names)
    faulthandler.dump_traceback(sys.stderr)
    _exit()


def _exit() -> None:
    """Ends the process without clean-up, which a blocked thread could delay."""
    logging.shutdown()
    os._exit(STATUS)
