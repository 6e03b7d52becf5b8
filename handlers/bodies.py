"""Read bodies completely and never beyond the limit.

Flask's limit checks `Content-Length`. A chunked body has none, and gunicorn passes on a truncated one as if it were
complete. This module therefore reads the stream itself, one byte beyond the limit.

A server that closes while its client still sends resets the connection. The client then sees a broken pipe in place of
the answer, and repeats a request that it must not repeat. A refused request is therefore read to its end first, within
bounds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flask import Request

from handlers.problems import Problem
from handlers.services import this_request

MAX_DRAIN = 32 << 20
DRAINING = 10.0
"""Bytes, and seconds, for the rest of a refused request."""
PLACE_TIMEOUT = 10.0
"""Seconds to wait for a place among the large bodies. GitHub waits as long, and does not repeat."""


def read(limit: int) -> bytes:
    """Return the request's body. Raises Problem 413 beyond `limit` bytes, 415 for an encoded body, 400 for a truncated
    one.
    """
    request = this_request()
    _check_coding(request)
    length = request.content_length
    if length is None and not request.environ.get("wsgi.input_terminated"):
        return b""
    if length is not None and length > limit:
        raise _too_large(limit)
    try:
        body: bytes = request.environ["wsgi.input"].read(limit + 1 if length is None else length)
    except Exception as error:  # each server has its own errors for a malformed chunk or a lost connection
        raise Problem(400, "The body is truncated, or its chunks are malformed.") from error
    if len(body) > limit:
        raise _too_large(limit)
    if length is not None and len(body) < length:
        raise Problem(400, f"The body was truncated after {len(body)} of {length} bytes.")
    return body


def read_json(limit: int) -> bytes:
    """Read a body declared as JSON: no page of another site can send one without a preflight. Raises Problem 415."""
    if this_request().mimetype != "application/json":
        raise Problem(415, "The body must be JSON, with Content-Type: application/json.")
    return read(limit)


@contextmanager
def held(limit: int, usual: int, places: threading.Semaphore) -> Iterator[bytes]:
    """Read as `read`. A body larger than `usual` bytes takes one of the `places` during the work with it.

    Raises Problem 503 if no place becomes free.
    """
    length = this_request().content_length
    if length is not None and (length <= usual or length > limit):
        yield read(limit)
        return
    if not places.acquire(timeout=PLACE_TIMEOUT):
        raise Problem(503, "Too many large bodies at the same time. Retry.", {"Retry-After": "5"})
    try:
        yield read(limit)
    finally:
        places.release()


def drain() -> None:
    """Read and discard the rest of the request's body."""
    environ = this_request().environ
    if not environ.get("wsgi.input_terminated"):
        return
    stream, deadline, left = environ["wsgi.input"], time.monotonic() + DRAINING, MAX_DRAIN
    with suppress(Exception):  # each server has its own errors for a malformed chunk or a lost connection
        while left > 0 and time.monotonic() < deadline and (piece := stream.read(1 << 16)):
            left -= len(piece)


def _check_coding(request: Request) -> None:
    """Refuse a content coding (RFC 9110, §15.5.16)."""
    codings = [coding.strip().lower() for coding in request.headers.get("Content-Encoding", "").split(",")]
    unknown = ", ".join(coding[:40] for coding in codings if coding not in ("", "identity"))
    if unknown:
        raise Problem(
            415,
            f"The body is encoded ({unknown[:100]}). Send it without Content-Encoding.",
            {"Accept-Encoding": "identity"},
        )


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The body is larger than {limit} bytes.")
