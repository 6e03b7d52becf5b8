"""Bodies of answers from hosts that may send for ever."""

from __future__ import annotations

import time

import requests


class TooLarge(OSError):
    """An answer of more bytes than anybody wants to read."""


def read_body(answer: requests.Response, most: int, seconds: float | None = None) -> bytes:
    """All of it, of an answer that was asked for as a stream.

    Raises requests' errors (urllib3's among them), TooLarge for more than `most` bytes, OSError for more `seconds`.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    content = bytearray()
    for piece in answer.iter_content(1 << 16):
        content += piece
        if len(content) > most:
            raise TooLarge("too much to read")
        if deadline is not None and time.monotonic() > deadline:
            raise OSError("too slow to read")
    return bytes(content)
