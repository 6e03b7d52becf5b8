"""What every Git host's webhooks are brought to: one shape for all of them, so that no rule is written twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from eventing.event import Event


class Ignored(msgspec.Struct, frozen=True):
    """A delivery that asks for nothing, and why, in a sentence. Its answer is 200: hosts disable hooks that fail."""

    reason: str


class PushFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a push says, whichever host it came from."""

    repository: str
    """The URL to clone from over HTTPS, as the host gives it."""
    ref: str
    """`refs/heads/…` or `refs/tags/…`."""
    commit: str | None
    """What the ref points at now, an annotated tag peeled; `None` for a deletion, or `look_up`."""
    before: str | None
    """What it pointed at until then; `None` where the push created it."""
    created: bool
    deleted: bool
    forced: bool
    pushed_at: datetime | None
    """By the host's clock."""
    default_branch: str | None
    """Its short name."""
    paths: Iterable[str] | None
    """The files that changed, once for each commit that changed them; `None` where the host did not list all of them,
    so that any may have."""
    private: bool | None
    message: str | None = None
    """Of the commit; `None` where the host does not say."""
    pusher: str | None = None
    """The name of the account that pushed, as people log in with it; `None` where the host does not say."""

    @property
    def look_up(self) -> bool:
        """Whether the host does not say which commit the ref is at, so that it has to be looked up."""
        return self.commit is None and not self.deleted


class Dialect(Protocol):
    """How one kind of host speaks. No method does I/O."""

    word: str
    """In the route: `/webhooks/<word>`."""
    own_header: str
    """Name, in lower case, of a header that tells its deliveries from those of the hosts after it in `DIALECTS`."""
    pushes: frozenset[str]
    """Event types that are its pushes, in every spelling that is in use."""

    def verify(self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], now: datetime) -> None:
        """Raises SignatureError unless one of `secrets` signed these raw bytes; with no secrets it always does.

        Where the host signs the time of sending as well, `now` must be near it. Raises DecodeError for headers that
        cannot be read.
        """

    def signed(self, headers: Mapping[str, str], body: bytes, secret: bytes, now: datetime) -> dict[str, str]:
        """The headers, by lower-case name, with a signature by `secret` that `verify` accepts in place of any other."""

    def headers_for(self, payload: Mapping[str, object], delivery: str) -> dict[str, str]:
        """The headers, without a signature, of a delivery of which only the payload was kept.

        `delivery` stands for the id that the host gave it. Raises DecodeError where the payload shows no known event.
        """

    def parse(self, headers: Mapping[str, str], body: bytes) -> list[Event] | Ignored:
        """The delivery as the events that the CloudEvents adapters define for it. Raises DecodeError."""

    def facts(self, event: Event) -> PushFacts:
        """Of an event whose type is in `pushes`. Raises DecodeError where its data is not such a push."""

    def pushed(self, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
        """The event that this host would have sent of the push that made a ref, for where it was not heard.

        What only the host could add is not in it. `repository` is as in `PushFacts`. Raises DecodeError.
        """
