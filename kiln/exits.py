"""The exit statuses of `kiln`, documented in docs/cli.md."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The statuses of signals are 128 plus the signal's number, as in a shell."""

    DONE = 0
    FAILED = 1
    MISUSED = 2
    UNKNOWN = 3
    INTERRUPTED = 130
    TERMINATED = 143
