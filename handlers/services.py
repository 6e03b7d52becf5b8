"""Dependencies of the handlers, injected as a whole: no handler reads the environment or constructs a client."""

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
    """Ended sessions, shared by all replicas; the sessions themselves are in cookies."""

    def ended(self, id: str) -> bool:  # noqa: A002
        """Return whether the user signed out. Raises builds.engines.Unavailable."""

    def end(self, id: str, expiry: float) -> None:  # noqa: A002
        """End a session; `expiry` (Unix time) is its regular end. Raises builds.engines.Unavailable."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """Sizes are bytes. `webhook_secrets` returns the valid secrets of a route, if any; it and the gates' tokens are
    read on every request, so that a rotated secret takes effect immediately.

    `find_image` returns the digest that a build (its name comes last) has pushed as an image and tag; `None` if it has
    not, or the registry is slow. `registry_answers` returns whether the registry is available.
    """

    records: Records
    intake: Intake
    triggers: Sequence[Trigger]
    webhook_secrets: Callable[[str], Sequence[bytes]]
    auth: Gate
    events_auth: Gate
    find_image: Callable[[str, str, str], str | None]
    registry_answers: Callable[[], bool]
    builder_info: Mapping[str, str]
    """The builder's version for BinderHub's `/versions`: `build_image`, or `repo2docker-version`."""
    version: str
    cursor_keys: Callable[[], Sequence[bytes]]
    """Keys of cursors in lists (`handlers.cursors`), the same for all replicas."""
    sessions: Sessions
    """Ended sessions."""
    private: Private = field(default_factory=Private)
    """The visibility of builds."""
    loopback_only: bool = False
    """`KILN_AUTH` is unset: require this machine's token and refuse requests from elsewhere."""
    base_path: str = "/"
    public_url: str | None = None
    max_body: int = 2**20
    large: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(1))
    """The place of a webhook that is larger than `max_body`: several at the same time would need more memory and no
    less time.
    """
    max_viewers: int = 112
    builds_per_node: int = 2
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when web stops: the streams end, and their viewers resume at another replica."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    note_use_after: timedelta | None = None
    """With retention (`keep`): seconds after which a further use of an image is recorded."""
    spans: Spans | None = None
    """Receives spans of requests; `None` without a collector."""
    viewers: Viewers = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "viewers", Viewers(self.max_viewers))


def services() -> Services:
    """Return the services of the application that answers the request."""
    held: Services = current_app.extensions["kiln"]
    return held


def this_request() -> Request:
    """Return the request itself: Flask's `request` is a proxy, each access to which takes as long as decoding a small
    push.
    """
    return cast("LocalProxy[Request]", request)._get_current_object()
