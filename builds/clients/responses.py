"""Helpers for clients that use requests: bodies with limits, because a host may send without end, and no netrc."""

from __future__ import annotations

import time

import requests


class TooLarge(OSError):
    """A response with more bytes than the limit."""


def no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Adds no credential. With this explicit `auth`, requests does not read one in ~/.netrc."""
    return request


def read_body(answer: requests.Response, most: int, seconds: float | None = None) -> bytes:
    """The complete body of a streamed response.

    Raises requests' errors (urllib3's among them), TooLarge for more than `most` bytes, OSError after `seconds`.
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
