"""Bodies of answers from hosts that may send for ever."""

from __future__ import annotations

import time

import requests


def content_of(answer: requests.Response, most: int, seconds: float | None = None) -> bytes:
    """All of it, of an answer that was asked for as a stream.

    Raises requests' errors (urllib3's among them), and OSError for more than `most` bytes or `seconds`.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    content = bytearray()
    for piece in answer.iter_content(1 << 16):
        content += piece
        if len(content) > most or (deadline is not None and time.monotonic() > deadline):
            raise OSError("too much to read")
    return bytes(content)
