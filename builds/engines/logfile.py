"""A builder's log in a file: numbered lines of JSON, readable from any line without reading the lines before it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from builds.engines import UNREADABLE, LogLine


class _StoredLine(msgspec.Struct):
    n: int
    text: str
    phase: str | None = None


def lines(file: BinaryIO, attempt: int, after: int) -> Iterator[LogLine]:
    """The complete lines after line `after`; other lines than a builder's are skipped."""
    file.seek(_place_after(file, after))
    while raw := file.readline():
        said = _said(raw)
        if said is not None and said.n > after:
            yield LogLine(attempt=attempt, number=said.n, text=said.text, phase=said.phase)


def number(raw: bytes) -> int | None:
    """The number of one line; `None` if the line is incomplete, or not a builder's."""
    said = _said(raw)
    return None if said is None else said.n


def _said(raw: bytes) -> _StoredLine | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        return msgspec.json.decode(raw, type=_StoredLine)
    except UNREADABLE:
        return None


def _place_after(file: BinaryIO, after: int) -> int:
    """A position at or before the first line after line `after`, by binary search: followers read few lines of many."""
    low, high = 0, file.seek(0, io.SEEK_END) if after else 0
    while low < high:
        middle = (low + high) // 2
        file.seek(max(middle - 1, 0))
        if middle:
            file.readline()
        said = _said(file.readline())
        if said is None or said.n > after:
            high = middle
        else:
            low = middle + 1
    file.seek(max(low - 1, 0))
    if low:
        file.readline()
    return file.tell()
