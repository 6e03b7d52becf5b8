"""The log of an attempt: numbered lines of JSON on stdout, bounded, without secrets.

A line contains the text that a terminal would show, with colour codes and no other control characters.

A line is `{"n":<int from 1>,"phase":<str|null>,"text":<str>}`. It is written immediately, so that a client that follows
the log sees it and every reader has the same numbers. A log ends at 8 MiB. Then the last lines are kept until the end
is known, and one line gives the number of omitted ones.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import BinaryIO

import msgspec

from builds.builder.redact import Redactor
from eventing import terminal

HEAD = 8 << 20
"""Bytes written before lines are omitted."""
TAIL = 64 << 10
"""Bytes of the last lines that are kept."""
FRAME = 40
"""Bytes that a container runtime adds to each line. They count, because a kubelet serves at most 10 MiB of a log."""
LONGEST = 4096
"""Characters of a line."""
SHORT_TAIL = 2048
"""Bytes of the last lines that go into the result."""


class Log:
    """Writes lines to `out`. `phase` is that of the following lines: `fetch`, `build`, `push` or `None`."""

    def __init__(self, out: BinaryIO) -> None:
        self.phase: str | None = None
        self.redact = Redactor()
        self._out = out
        self._number = 0
        self._written = 0
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._left_out = 0
        self._first_left_out = 0
        self._last: deque[str] = deque(maxlen=100)

    def say(self, text: str) -> None:
        """Adds a text line by line."""
        for line in lines_of(text) or [""]:
            self._line(_cut(terminal.coloured(self.redact(line))))

    def close(self) -> None:
        """Writes the retained lines. Nothing may be added afterwards."""
        if self._left_out:
            text = f"[{self._left_out} lines left out: a log ends at {HEAD >> 20} MiB]"
            self._write(self._encoded(self._first_left_out, text))
        while self._held:
            self._write(self._held.popleft())

    @property
    def tail(self) -> str:
        """The last lines, at most 2 KiB of UTF-8."""
        text = "\n".join(self._last)
        return text.encode()[-SHORT_TAIL:].decode(errors="ignore")

    def _line(self, text: str) -> None:
        self._number += 1
        self._last.append(terminal.plain(text))
        line = self._encoded(self._number, text)
        if not self._held and not self._left_out and self._written + len(line) + FRAME <= HEAD:
            self._written += len(line) + FRAME
            self._write(line)
            return
        self._held.append(line)
        self._held_bytes += len(line)
        while self._held_bytes > TAIL:
            self._first_left_out = self._first_left_out or self._number - len(self._held) + 1
            self._held_bytes -= len(self._held.popleft())
            self._left_out += 1

    def _write(self, line: bytes) -> None:
        """Ignores errors: a full disk, or a reader that has gone, must not prevent a result."""
        with suppress(OSError):
            self._out.write(line)
            self._out.flush()

    def _encoded(self, number: int, text: str) -> bytes:
        return msgspec.json.encode({"n": number, "phase": self.phase, "text": text}) + b"\n"


def lines_of(text: str) -> list[str]:
    """A text's lines. Only a newline ends one. With other separators (a lone carriage return, U+2028) a step of a
    Dockerfile could imitate BuildKit's own lines."""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def clean(text: str) -> str:
    """A line as plain text, shortened if it is too long."""
    return _cut(terminal.plain(text.rstrip("\r").replace("\r", " ")))


def _cut(text: str) -> str:
    text = text.encode(errors="replace").decode()
    if len(text) <= LONGEST:
        return text
    return f"{terminal.coloured(text[:LONGEST])}… [{len(text) - LONGEST} characters left out]"
