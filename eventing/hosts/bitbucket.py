"""Webhooks of Bitbucket Cloud.

Bitbucket signs the raw body with HMAC-SHA256, in a header that other hosts use for SHA-1. One delivery lists all
branches and tags that a push changed and becomes an event for each. It names neither the default branch nor the changed
files. Bitbucket repeats a failed delivery twice.

https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from eventing.errors import DecodeError, SignatureError
from eventing.event import Event
from eventing.hosts.dialect import Ignored, PushFacts, RequestFacts
from eventing.hosts.payload import (
    DELETED,
    NO_REPOSITORY,
    Hash,
    Number,
    Path,
    RefName,
    as_push_of,
    as_request_of,
    first_text,
    header,
    is_signed,
    moment,
    page_of,
    payload_event,
    payload_of,
    signature,
    text_at,
)
from eventing.http import attribute_text
from eventing.wire import lowered

PUSH = "repo:push"

_SUBJECTS: tuple[Path, ...] = (("pullrequest", "id"), ("issue", "id"))


class Bitbucket:
    word = "bitbucket"
    own_header = "x-request-uuid"
    pushes = frozenset({"com.bitbucket.push"})
    requests: tuple[str, ...] = ("com.bitbucket.pullrequest",)

    def verify(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Sequence[bytes],
        now: datetime | None = None,  # noqa: ARG002 - Bitbucket signs no time
    ) -> None:
        verify(lowered(headers), body, secrets)

    def signed(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secret: bytes,
        now: datetime,  # noqa: ARG002 - Bitbucket signs no time
    ) -> dict[str, str]:
        return {**lowered(headers), "x-hub-signature": signature(body, secret, "sha256=")}

    def headers_for(self, payload: Mapping[str, object], delivery: str) -> dict[str, str]:
        if "push" not in payload:
            raise DecodeError("The payload does not identify its event. Send the header X-Event-Key.")
        return {"content-type": "application/json", "x-event-key": PUSH, "x-request-uuid": delivery}

    def parse(self, headers: Mapping[str, str], body: bytes) -> list[Event] | Ignored:
        """`id` is X-Request-UUID, numbered if there are several changes; `source` is the repository's page.

        Events other than pushes have the type `com.bitbucket.<X-Event-Key>`, with dots for colons.
        """
        named = lowered(headers)
        key, delivery = event_key(named), header(named, "X-Request-UUID")
        payload = payload_of(named, body)
        source = _page(text_at(payload, ("repository", "links", "html", "href")) or "") or None
        if key != PUSH and source is None:
            return Ignored(NO_REPOSITORY)
        if key != PUSH:
            type_ = f"com.bitbucket.{key.replace(':', '.')}"
            return [payload_event(delivery, source, type_, first_text(payload, _SUBJECTS), payload)]
        each = numbered(delivery, _changes(payload))
        made = [payload_event(id_, source, "com.bitbucket.push", None, change) for id_, change in each]
        return push_events(made, self.facts)

    def facts(self, event: Event) -> PushFacts:
        """Read an event of one change, as `parse` creates them."""
        with as_push_of("Bitbucket"):
            push = msgspec.convert(event.data, _Payload)
        (change,) = push.push.changes
        new, old = change.new, change.old
        commit = new.commit if new else None
        return PushFacts(
            repository=f"{_page(push.repository.links.html.href)}.git",
            ref=change.ref,
            commit=commit,
            before=old.commit if old else None,
            created=old is None,
            deleted=new is None,
            forced=change.forced,
            pushed_at=None,
            default_branch=push.repository.mainbranch.name if push.repository.mainbranch else None,
            paths=None,
            private=push.repository.is_private,
            message=new.target.message if new and commit else None,
            pusher=push.actor.nickname if push.actor else None,
        )

    def request(self, event: Event) -> RequestFacts:
        """Bitbucket sends neither the updated fields nor the previous head, and has no labels.

        The repository has no ref for a request, so it serves the head only from a branch of its own.
        """
        with as_request_of("Bitbucket"):
            payload = msgspec.convert(event.data, _PullRequestEvent)
        request, key = payload.pullrequest, event.type.rpartition(".")[2]
        return RequestFacts(
            repository=f"{_page(payload.repository.links.html.href)}.git",
            number=request.id,
            ref=f"refs/pull-requests/{request.id}/from",
            served=False,
            commit=request.source.commit.hash,
            before=None,
            at=moment(request.updated_on),
            base=request.destination.branch.name,
            head=request.source.branch.name,
            fork=request.source.repository is None or request.source.repository != request.destination.repository,
            moved=key in ("created", "updated"),
            closed=key in ("fulfilled", "rejected"),
        )

    def pushed(self, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
        """Describe the ref as newly created, because its previous commit is unknown."""
        page, owner, name = page_of(repository)
        kind = "tag" if ref.startswith("refs/tags/") else "branch"
        new = {"type": kind, "name": ref.split("/", 2)[-1], "target": {"type": "commit", "hash": commit}}
        data = {
            "push": {"changes": [{"new": new, "old": None, "created": True, "closed": False, "forced": False}]},
            "repository": {
                "type": "repository",
                "name": name,
                "full_name": f"{owner}/{name}",
                "links": {"html": {"href": page}},
                "mainbranch": default_branch and {"type": "branch", "name": default_branch},
            },
        }
        return payload_event(id, page, "com.bitbucket.push", ref, data)


def _page(href: str) -> str:
    """Return a repository's page. Bitbucket's own examples put it on the host of its API."""
    return re.sub(r"\Ahttps://api\.bitbucket\.org/(?!2\.0/)", "https://bitbucket.org/", href)


def verify(named: Mapping[str, str], body: bytes, secrets: Sequence[bytes]) -> None:
    """Verify `X-Hub-Signature`. Raises SignatureError."""
    given = named.get("x-hub-signature")
    if given is None:
        raise SignatureError("Missing X-Hub-Signature. Set the webhook's secret.")
    if not is_signed(given, body, secrets, "sha256="):
        raise SignatureError("X-Hub-Signature does not match this webhook's secret.")


def event_key(named: Mapping[str, str]) -> str:
    """Raises DecodeError."""
    key = header(named, "X-Event-Key")
    if not re.fullmatch(r"[a-z_]{1,32}(?::[a-z_]{1,32}){1,3}", key):
        raise DecodeError("X-Event-Key is not the name of an event.")
    return key


def numbered(delivery: str, changes: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Return the id of each change, the same in a repeated delivery."""
    for number, change in enumerate(changes, start=1):
        yield (delivery if len(changes) == 1 else f"{delivery}.{number}"), change


def push_events(made: Sequence[Event], facts: Callable[[Event], PushFacts]) -> list[Event] | Ignored:
    """Return the events of a push's changes, each with its ref as the subject; a deleted ref has none.

    Raises DecodeError.
    """
    pushes = [(event, facts(event)) for event in made]
    left = [replace(event, subject=attribute_text(push.ref)) for event, push in pushes if not push.deleted]
    return left or Ignored(DELETED if pushes else "This push changed nothing.")


def _changes(payload: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Yield the payload with one change at a time. Raises DecodeError."""
    push = payload.get("push")
    changes = push.get("changes") if isinstance(push, dict) else None
    if not isinstance(changes, list):
        raise DecodeError("This is not a Bitbucket push: push.changes is not a list.")
    return [{**payload, "push": {"changes": [change]}} for change in changes]


class _Target(msgspec.Struct):
    hash: Hash
    type: str = "commit"
    message: str | None = None


class _Ref(msgspec.Struct):
    type: Literal["branch", "named_branch", "bookmark", "tag", "annotated_tag"]
    name: RefName
    target: _Target

    @property
    def full(self) -> str:
        return f"refs/{'tags' if self.type.endswith('tag') else 'heads'}/{self.name}"

    @property
    def commit(self) -> str | None:
        return self.target.hash if self.target.type == "commit" else None


class _Change(msgspec.Struct):
    new: _Ref | None = None
    old: _Ref | None = None
    forced: bool = False

    def __post_init__(self) -> None:
        if self.new is None and self.old is None:
            raise ValueError("both new and old are missing")

    @property
    def ref(self) -> str:
        """The new ref, or the old one of a deletion."""
        (at, *_) = [side for side in (self.new, self.old) if side]
        return at.full


class _Push(msgspec.Struct):
    changes: Annotated[list[_Change], Meta(min_length=1, max_length=1)]


class _Page(msgspec.Struct):
    href: str


class _Links(msgspec.Struct):
    html: _Page


class _Branch(msgspec.Struct):
    name: str


class _Repository(msgspec.Struct):
    links: _Links
    is_private: bool | None = None
    mainbranch: _Branch | None = None


class _Actor(msgspec.Struct):
    nickname: str | None = None


class _Payload(msgspec.Struct):
    """The used parts of a push payload."""

    push: _Push
    repository: _Repository
    actor: _Actor | None = None


class _Owned(msgspec.Struct):
    full_name: str


class _Head(msgspec.Struct):
    hash: Annotated[str, Meta(pattern=r"\A[0-9a-f]{7,64}\Z")]


class _Named(msgspec.Struct):
    name: RefName


class _Side(msgspec.Struct):
    """The source or the target of a request. The source repository may have been deleted."""

    branch: _Named
    commit: _Head
    repository: _Owned | None = None


class _PullRequest(msgspec.Struct):
    id: Number
    source: _Side
    destination: _Side
    updated_on: str | None = None


class _PullRequestEvent(msgspec.Struct):
    """The used parts of an event about a pull request."""

    pullrequest: _PullRequest
    repository: _Repository
