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


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Says how long the body was; `/large` says a lot, `/late` says it after longer than the worker's patience."""
    try:
        said = b"%d\n" % len(environ["wsgi.input"].read())
    except OSError:
        said = b"broken off\n"
    if environ["PATH_INFO"] == "/large":
        said = bytes(LARGE)
    if environ["PATH_INFO"] == "/late":
        time.sleep(3 * Impatient.patience)
    start_response("200 OK", [("Content-Length", str(len(said)))])
    return [said]
