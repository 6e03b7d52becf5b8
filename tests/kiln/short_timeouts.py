"""An application for `kiln.gunicorn.Worker`, and a worker with short timeouts, so that tests are fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from kiln.gunicorn import Worker

LARGE = 1 << 26
"""Bytes: more than any socket's buffers hold."""


class ShortTimeouts(Worker):
    patience = 1.0
    longest_linger = 2.0
    youth = 0.2


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer the length of the body.

    `/late` answers only after the worker's patience has ended, `/large` answers a large body, and `/unread` does not
    read the request's body.
    """
    unread = environ["PATH_INFO"] == "/unread"
    said = b"unread\n" if unread else b"%d\n" % len(environ["wsgi.input"].read())
    if environ["PATH_INFO"] == "/large":
        said = bytes(LARGE)
    if environ["PATH_INFO"] == "/late":
        time.sleep(3 * ShortTimeouts.patience)
    start_response("200 OK", [("Content-Length", str(len(said)))])
    return [said]
