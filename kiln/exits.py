"""The exit statuses of `kiln`, as docs/cli.md has them."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Those of signals are as a shell has them: 128 and the signal's number."""

    DONE = 0
    FAILED = 1
    MISUSED = 2
    UNKNOWN = 3
    INTERRUPTED = 130
    TERMINATED = 143
