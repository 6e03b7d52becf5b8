"""The common shape of all Git hosts' webhooks, so that each rule exists once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from eventing.event import Event


class Ignored(msgspec.Struct, frozen=True):
    """A delivery that requests nothing, and the reason as a sentence. Answered 200: hosts disable failing hooks."""

    reason: str


class PushFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a push, independent of the host."""

    repository: str
    """The clone URL over HTTPS, as the host gives it."""
    ref: str
    """`refs/heads/…` or `refs/tags/…`."""
    commit: str | None
    """The new commit of the ref, an annotated tag peeled; `None` for a deletion, or `look_up`."""
    before: str | None
    """The previous commit; `None` if the push created the ref."""
    created: bool
    deleted: bool
    forced: bool
    pushed_at: datetime | None
    """By the host's clock."""
    default_branch: str | None
    """The short name of the default branch."""
    paths: Iterable[str] | None
    """The changed files, once for each commit that changed them; `None` if the host did not list all of them, so that
    any file may have changed.
    """
    private: bool | None
    message: str | None = None
    """The commit message; `None` if the host does not send it."""
    pusher: str | None = None
    """The login name of the account that pushed; `None` if the host does not send it."""

    @property
    def look_up(self) -> bool:
        """Whether the host omits the commit, so that Kiln has to look it up."""
        return self.commit is None and not self.deleted


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a pull or merge request, independent of the host."""

    repository: str
    """The clone URL over HTTPS of the target repository, as the host gives it."""
    number: int
    """The number that people see; counted for each repository."""
    ref: str
    """The host's ref for the head, such as `refs/pull/1/head`; without such a ref, only a name."""
    served: bool = True
    """Whether the repository has that ref. Otherwise it serves the head only of a request from itself."""
    commit: str
    """The head: a whole commit, or on Bitbucket Cloud an abbreviated one."""
    before: str | None
    """The previous head; `None` if this event has not moved it, or the host does not send it."""
    at: datetime | None
    """The time of the last change, by the host's clock."""
    base: str
    """Short name of the target branch."""
    head: str
    """Short name of the source branch."""
    fork: bool
    """Whether the source is, or may be, another repository: any reader of this one can create it."""
    moved: bool
    """Whether its commits are new: it was opened or reopened, or its head has moved."""
    labels: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    """Labels that this event added."""
    retargeted: bool = False
    """Whether the target branch changed."""
    closed: bool = False
    """Whether this event closed it, merged or not."""


class Dialect(Protocol):
    """The protocol of one kind of host. No method does I/O."""

    word: str
    """The kind in the route: `/webhooks/<word>`."""
    own_header: str
    """A lower-case header name that distinguishes its deliveries from those of later hosts in `DIALECTS`."""
    pushes: frozenset[str]
    """Event types of pushes, in every spelling in use."""
    requests: tuple[str, ...]
    """Event types about pull requests, and prefixes of such types up to a `.`."""

    def verify(self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], now: datetime) -> None:
        """Raise SignatureError unless one of `secrets` signed these raw bytes; always raise it without secrets.

        If the host also signs the time of sending, it must be near `now`. Raises DecodeError for unreadable headers.
        """

    def signed(self, headers: Mapping[str, str], body: bytes, secret: bytes, now: datetime) -> dict[str, str]:
        """Return the headers, by lower-case name, with a signature by `secret` that `verify` accepts."""

    def headers_for(self, payload: Mapping[str, object], delivery: str) -> dict[str, str]:
        """Return the headers, without a signature, of a delivery of which only the payload was saved.

        `delivery` replaces the id from the host. Raises DecodeError if the payload matches no known event.
        """

    def parse(self, headers: Mapping[str, str], body: bytes) -> list[Event] | Ignored:
        """Return the events that the CloudEvents adapters define for the delivery. Raises DecodeError."""

    def facts(self, event: Event) -> PushFacts:
        """Read an event whose type is in `pushes`. Raises DecodeError if its data is not such a push."""

    def request(self, event: Event) -> RequestFacts:
        """Read an event whose type is in `requests`. Raises DecodeError if its data is not such a request."""

    def pushed(self, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
        """Return the event that this host would have sent for the push that created a ref, if Kiln missed it.

        Facts that only the host knows are absent. `repository` is as in `PushFacts`. Raises DecodeError.
        """
