"""Bodies, read whole and never beyond the limit.

Flask's own limit looks at `Content-Length`. A chunked body has none, and what gunicorn then hands on is cut off at the
limit and taken for the whole, so the stream is read here, one byte further than is allowed.

A server that closes while its client still sends resets the connection: the client sees a broken pipe in place of the
answer, and repeats what it must not. So a refused request is read to its end first, within bounds.
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
"""Bytes, and seconds, of the rest of a refused request."""
PATIENCE = 10.0
"""Seconds for a place among the large ones. GitHub waits as long, and does not repeat."""


def read(limit: int) -> bytes:
    """The request's body. Raises Problem: 413 beyond `limit` bytes, 415 for an encoded one, 400 where it ended before
    its end."""
    request = this_request()
    _check_coding(request)
    length = request.content_length
    if length is None and not request.environ.get("wsgi.input_terminated"):
        return b""
    if length is not None and length > limit:
        raise _too_large(limit)
    try:
        body: bytes = request.environ["wsgi.input"].read(limit + 1 if length is None else length)
    except Exception as error:  # every server has errors of its own for a bad chunk or a lost connection
        raise Problem(400, "The body broke off, or its chunks are malformed.") from error
    if len(body) > limit:
        raise _too_large(limit)
    if length is not None and len(body) < length:
        raise Problem(400, f"The body broke off after {len(body)} of {length} bytes.")
    return body


def read_json(limit: int) -> bytes:
    """The same, of a request that says it is JSON: no page of another site can send one unasked. Raises Problem 415."""
    if this_request().mimetype != "application/json":
        raise Problem(415, "The body must be JSON, with Content-Type: application/json.")
    return read(limit)


@contextmanager
def held(limit: int, usual: int, places: threading.Semaphore) -> Iterator[bytes]:
    """As `read`. One that may be larger than `usual` bytes has one of the `places` while it is worked on: few are in
    memory at the same time. Raises Problem 503 where none becomes free."""
    length = this_request().content_length
    if length is not None and (length <= usual or length > limit):
        yield read(limit)
        return
    if not places.acquire(timeout=PATIENCE):
        raise Problem(503, "Too many large bodies came at once. Send this one again.", {"Retry-After": "5"})
    try:
        yield read(limit)
    finally:
        places.release()


def drain() -> None:
    """Reads what is left of the request's body, and forgets it."""
    environ = this_request().environ
    if not environ.get("wsgi.input_terminated"):
        return
    stream, deadline, left = environ["wsgi.input"], time.monotonic() + DRAINING, MAX_DRAIN
    with suppress(Exception):  # every server has errors of its own for a bad chunk or a lost connection
        while left > 0 and time.monotonic() < deadline and (piece := stream.read(1 << 16)):
            left -= len(piece)


def _check_coding(request: Request) -> None:
    """RFC 9110, §15.5.16."""
    codings = [coding.strip().lower() for coding in request.headers.get("Content-Encoding", "").split(",")]
    unknown = ", ".join(coding[:40] for coding in codings if coding not in ("", "identity"))
    if unknown:
        raise Problem(415, f"The body is encoded ({unknown[:100]}): send it as it is.", {"Accept-Encoding": "identity"})


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The body is larger than {limit} bytes.")
