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


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an event says of a pull or merge request, whichever host it came from."""

    repository: str
    """The URL to clone from over HTTPS, as the host gives it, of the repository that is to be changed."""
    number: int
    """By which people call it; counted for each repository."""
    ref: str
    """By which the host names its head, such as `refs/pull/1/head`; where the host has no such ref, only a name."""
    served: bool = True
    """Whether the repository has that ref. Without it, it has the head only of a request that comes from itself."""
    commit: str
    """Its head: a whole commit, or on Bitbucket Cloud the beginning of one."""
    before: str | None
    """Its head until now; `None` where this event has not moved it, or the host does not say."""
    at: datetime | None
    """When it was last changed, by the host's clock."""
    base: str
    """Short name of the branch that it is for."""
    head: str
    """Short name of the branch that it comes from."""
    fork: bool
    """Whether it comes, or may come, from another repository: from whoever can read this one."""
    moved: bool
    """Whether its commits are news: it was opened or opened again, or its head has moved."""
    labels: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    """Labels that it has been given just now."""
    retargeted: bool = False
    """Whether it has become one for another branch."""
    closed: bool = False
    """Whether it was closed just now, merged or not."""


class Dialect(Protocol):
    """How one kind of host speaks. No method does I/O."""

    word: str
    """In the route: `/webhooks/<word>`."""
    own_header: str
    """Name, in lower case, of a header that tells its deliveries from those of the hosts after it in `DIALECTS`."""
    pushes: frozenset[str]
    """Event types that are its pushes, in every spelling that is in use."""
    requests: tuple[str, ...]
    """Types of the events about its pull requests, and how such types begin, up to a `.`."""

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

    def request(self, event: Event) -> RequestFacts:
        """Of an event whose type is one of `requests`. Raises DecodeError where its data is of no such request."""

    def pushed(self, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
        """The event that this host would have sent of the push that made a ref, for where it was not heard.

        What only the host could add is not in it. `repository` is as in `PushFacts`. Raises DecodeError.
        """
