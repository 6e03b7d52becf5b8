"""Bodies, read whole and never beyond the limit.

Flask's own limit looks at `Content-Length`. A chunked body has none, and what gunicorn then hands on is cut off at the
limit and taken for the whole, so the stream is read here, one byte further than is allowed.
"""

from __future__ import annotations

from flask import request

from handlers.problems import Problem


def read(limit: int) -> bytes:
    """The request's body. Raises Problem: 413 beyond `limit` bytes, 400 where it ended before its end."""
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
    if request.mimetype != "application/json":
        raise Problem(415, "The body must be JSON, with Content-Type: application/json.")
    return read(limit)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The body is larger than {limit} bytes.")
