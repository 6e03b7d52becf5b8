"""The builder's child processes, and how all of them end.

Tools leave children behind when they are stopped (`docker buildx` does). So the session, which every child inherits and
no tool leaves, identifies the processes of an attempt. SIGTERM and the time limit arrive as exceptions in the main
thread, in any blocking call.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType

KILL_AFTER = 4.0
"""Seconds between SIGTERM and SIGKILL; the whole stop takes at most 10."""


class Stopped(BaseException):
    """The attempt must end now. It derives from BaseException, so that handlers of Exception do not catch it."""


class Cancelled(Stopped):
    """Raised on SIGTERM."""


class TimedOut(Stopped):
    """Raised at the time limit."""


def own_session() -> bool:
    """Whether this process leads its session, or could create one. Only then may it end the session's processes."""
    if os.getsid(0) == os.getpid():
        return True
    try:
        os.setsid()
    except PermissionError:  # it leads a process group: started from an interactive shell
        return False
    return True


def listen() -> None:
    """From now on SIGTERM (or SIGINT) raises Cancelled, and the time limit TimedOut. Only the first of them raises,
    once."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, _stop)


def limit(seconds: float) -> None:
    """Sets the time limit, from now."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))


def stop_listening() -> None:
    """The attempt is ending; signals no longer interrupt it."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, _frame: FrameType | None) -> None:
    stop_listening()
    raise TimedOut if number == signal.SIGALRM else Cancelled


def end_session() -> None:
    """Ends every other process of this session. Returns when none is left, soon after `KILL_AFTER` seconds at most."""
    deadline = time.monotonic() + KILL_AFTER
    others = _others()
    _send(others, signal.SIGTERM)
    while others:
        time.sleep(0.02)
        if time.monotonic() > deadline:
            _send(others, signal.SIGKILL)
        _reap()
        others = _others()


def _others() -> list[int]:
    """The other live processes of this session."""
    me, session = os.getpid(), os.getsid(0)
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid != me and _lives_in(session, pid)]


def _lives_in(session: int, pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return os.getsid(pid) == session and state not in "ZX"
    except OSError:
        return False


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _reap() -> None:
    """Reaps ended children. If the builder is process 1 of a container, orphans become its children."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
