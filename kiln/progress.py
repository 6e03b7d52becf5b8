"""What `kiln build` shows while it waits: plain lines in a file, and on a terminal a last line that says how it stands.

A log is text from a stranger's repository: on its way to a terminal it loses everything that could steer one.
"""

from __future__ import annotations

import re
import shutil
import time
from types import TracebackType
from typing import Any, Self, TextIO

from kiln.client import Message

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[^\t -~\xa0-\U0010ffff]")
_FRAMES = "|/-\\"


class Progress:
    """Use as a context; `show` each message as it comes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._began = time.monotonic()
        self._state = ""
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._wipe()

    def show(self, message: Message) -> None:
        if message.kind == "log":
            self._line(printable(str(message.data.get("line") or "")))
        elif message.kind == "state":
            self._change(message.data)
        if self._terminal:
            self._shown += 1
            frame = _FRAMES[self._shown % len(_FRAMES)]
            line = f"{frame} {time.monotonic() - self._began:.0f} s, {self._state}"
            self._out.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")  # a wrapped line would stay
            self._out.flush()

    def _change(self, build: dict[str, Any]) -> None:
        state, waiting = str(build.get("state")), build.get("waiting")
        said = f"{state}: {waiting}" if state == "queued" and waiting else state
        if said != self._state:
            self._state = printable(said)
            self._line(f"[{self._state}]")

    def _line(self, text: str) -> None:
        self._wipe()
        self._out.write(text + "\n")
        self._out.flush()

    def _wipe(self) -> None:
        if self._terminal:
            self._out.write("\r\x1b[K")
            self._out.flush()


def printable(text: str) -> str:
    """The text without escape sequences and control characters."""
    return _CONTROL.sub("", text)
