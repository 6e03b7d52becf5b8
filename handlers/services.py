"""What the handlers work with: handed in whole, so that nothing here reads an environment or makes a client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol, cast

from flask import Request, current_app, request

from builds.engines import Records
from builds.intake import Intake
from builds.private import Private
from builds.triggers import Trigger
from eventing.spans import Spans
from handlers.logs import Viewers

if TYPE_CHECKING:
    from werkzeug.local import LocalProxy

    from handlers.auth import Gate


class Sessions(Protocol):
    """What all replicas know of sessions, which are in cookies: that one was signed out of."""

    def ended(self, id: str) -> bool:  # noqa: A002
        """Raises builds.engines.Unavailable."""

    def end(self, id: str, expiry: float) -> None:  # noqa: A002
        """`expiry` (Unix time) is when it would have ended by itself. Raises builds.engines.Unavailable."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """Sizes are bytes. `webhook_secrets` gives the valid secrets of a route's word, none where there are none; it and
    the gates' tokens are asked for on every request, so that a rotated secret holds at once. `find_image` gives the
    digest of what a build (its name comes last) has pushed as an image and tag, `None` where it has not or nobody can
    tell soon; `registry_answers` whether anybody could."""

    records: Records
    intake: Intake
    triggers: Sequence[Trigger]
    webhook_secrets: Callable[[str], Sequence[bytes]]
    auth: Gate
    events_auth: Gate
    find_image: Callable[[str, str, str], str | None]
    registry_answers: Callable[[], bool]
    builder_info: Mapping[str, str]
    """What builds, as BinderHub's `/versions` says it: `build_image`, or `repo2docker-version`."""
    version: str
    cursor_keys: Callable[[], Sequence[bytes]]
    """What the places in lists are signed with (`handlers.cursors`), the same for all replicas."""
    sessions: Sessions
    """The sessions that were signed out of."""
    private: Private = field(default_factory=Private)
    """Who may see which builds."""
    loopback_only: bool = False
    """`KILN_AUTH` is unset: refuse what looks as if it came from elsewhere, and take this machine's token."""
    base_path: str = "/"
    public_url: str | None = None
    max_body: int = 2**20
    large: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1))
    """The place of a webhook that is larger than `max_body`: more at once would take more memory, and no less time."""
    max_viewers: int = 112
    builds_per_node: int = 2
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when web is told to end: the streams end with it, and their viewers go on at another replica."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    note_use_after: timedelta | None = None
    """Where images are deleted that nobody asks for (`keep`): how long after the last one a further use is noted."""
    spans: Spans | None = None
    """Told of requests; `None` where nobody collects spans."""
    viewers: Viewers = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "viewers", Viewers(self.max_viewers))


def services() -> Services:
    """Of the application that answers the request."""
    held: Services = current_app.extensions["kiln"]
    return held


def this_request() -> Request:
    """The request itself: Flask's `request` looks it up at each use, which takes as long as decoding a small push."""
    return cast("LocalProxy[Request]", request)._get_current_object()
