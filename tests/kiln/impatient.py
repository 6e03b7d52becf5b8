"""An application for `kiln.gunicorn.Worker`, and a worker of little patience, so that a test need not wait long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from kiln.gunicorn import Worker

LARGE = 1 << 26
"""Bytes: more than any socket's buffers hold."""


class Impatient(Worker):
    patience = 1.0
    longest_linger = 2.0
    youth = 0.2


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Says how long the body was, at `/late` after longer than the worker's patience; `/large` says a lot, `/unread`
    does not look at the body."""
    unread = environ["PATH_INFO"] == "/unread"
    said = b"unread\n" if unread else b"%d\n" % len(environ["wsgi.input"].read())
    if environ["PATH_INFO"] == "/large":
        said = bytes(LARGE)
    if environ["PATH_INFO"] == "/late":
        time.sleep(3 * Impatient.patience)
    start_response("200 OK", [("Content-Length", str(len(said)))])
    return [said]
