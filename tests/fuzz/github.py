"""`eventing.hosts.github`: a delivery gives events that can be sent on, nobody forges a signature."""

from __future__ import annotations

import contextlib

from eventing.errors import EventError
from eventing.hosts import DIALECTS, Ignored, push_of
from tests.fuzz.decode import check
from tests.fuzz.message import read_message

GITHUB = DIALECTS["github"]


def github_webhook(data: bytes) -> None:
    """`data`: an HTTP message, the webhook's delivery."""
    headers, body = read_message(data)
    with contextlib.suppress(EventError):
        GITHUB.verify(headers, body, [b"a secret", b"another"])
        raise AssertionError("verified")
    with contextlib.suppress(EventError):
        parsed = GITHUB.parse(headers, body)
        for event in [] if isinstance(parsed, Ignored) else parsed:
            push = push_of(event)
            assert push is None or not push.deleted
            check(event)
