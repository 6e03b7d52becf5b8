"""`eventing.hosts`: every event of a delivery can be sent on, and no input forges a signature."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

from builds.pullrequests import PullRequestRule, asks_for
from eventing.errors import EventError
from eventing.hosts import DIALECTS, Ignored, push_of, request_of
from tests.fuzz.decode import check
from tests.fuzz.message import read_message

ANYBODY = PullRequestRule(from_="anyone", branches=["main"], paths=["binder/**"])
NOW = datetime(2026, 11, 29, tzinfo=UTC)


def webhook(word: str) -> Callable[[bytes], None]:
    """Return a target for a host's webhook; its data is an HTTP message."""
    dialect = DIALECTS[word]

    def target(data: bytes) -> None:
        headers, body = read_message(data)
        with contextlib.suppress(EventError):
            dialect.verify(headers, body, [b"a secret", b"another"], NOW)
            assert isinstance(dialect.parse(headers, body), Ignored), "only what leads to nothing comes in unsigned"
        with contextlib.suppress(EventError):
            parsed = dialect.parse(headers, body)
            for event in [] if isinstance(parsed, Ignored) else parsed:
                push = push_of(event)
                assert push is None or not push.deleted
                request = request_of(event)
                assert push is None or request is None
                assert request is None or isinstance(asks_for(ANYBODY, request, lambda: ["binder/x"]), bool)
                check(event)

    return target
