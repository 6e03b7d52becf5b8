"""The webhooks of Bitbucket Data Center, once Bitbucket Server.

They are signed as Bitbucket Cloud's, but for the test of a connection, which is not signed at all: it is answered, and
proves nothing. One delivery tells of all branches and tags that a push changed, and becomes an event for each. It does
not say which branch is the default one, which files changed, or which commit a tag is on (unless it is the only one).

https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from eventing.errors import DecodeError
from eventing.event import Event
from eventing.hosts.bitbucket import event_key, numbered, push_events, verify
from eventing.hosts.dialect import Ignored, PushFacts
from eventing.hosts.payload import (
    NO_REPOSITORY,
    Hash,
    Ref,
    as_push_of,
    header,
    is_zero,
    page_of,
    payload_event,
    payload_of,
    signature,
    text_at,
)
from eventing.wire import lowered

PUSH, PING = "repo:refs_changed", "diagnostics:ping"

_PING = "This is Bitbucket's test connection, which is not signed: only a push shows that the secret is right."


class BitbucketServer:
    word = "bitbucket-server"
    own_header = "x-event-key"
    pushes = frozenset({"com.bitbucket-server.push"})

    def verify(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Sequence[bytes],
        now: datetime | None = None,  # noqa: ARG002 - Bitbucket signs no time
    ) -> None:
        """An unsigned test of the connection passes where there is any secret; `parse` gives nothing for it."""
        named = lowered(headers)
        if not (any(secrets) and "x-hub-signature" not in named and named.get("x-event-key") == PING):
            verify(named, body, secrets)

    def signed(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secret: bytes,
        now: datetime,  # noqa: ARG002 - Bitbucket signs no time
    ) -> dict[str, str]:
        return {**lowered(headers), "x-hub-signature": signature(body, secret, "sha256=")}

    def headers_for(self, payload: Mapping[str, object], delivery: str) -> dict[str, str]:
        key = text_at(payload, ("eventKey",)) or (PING if "test" in payload else None)
        if key is None:
            raise DecodeError("The payload does not show which event it is: eventKey is missing.")
        return {"content-type": "application/json", "x-event-key": key, "x-request-id": delivery}

    def parse(self, headers: Mapping[str, str], body: bytes) -> list[Event] | Ignored:
        """`id` is X-Request-Id, and with a number where there are several changes; `source` is the URL to clone from,
        without `.git`. An event that is no push has the type `com.bitbucket-server.<X-Event-Key>`, with dots for
        colons."""
        named = lowered(headers)
        key = event_key(named)
        if key == PING:
            return Ignored(_PING)
        delivery, payload = header(named, "X-Request-Id"), payload_of(named, body)
        if key != PUSH:
            source, subject = _whence(payload), text_at(payload, ("pullRequest", "id"))
            if source is None:
                return Ignored(NO_REPOSITORY)
            return [payload_event(delivery, source, f"com.bitbucket-server.{key.replace(':', '.')}", subject, payload)]
        made = [self._change_event(id_, change) for id_, change in numbered(delivery, _changes(payload))]
        return push_events(made, self.facts)

    def facts(self, event: Event) -> PushFacts:
        """Of an event of one change, as `parse` makes them. `toHash` of an annotated tag is its own, not the commit's.
        `date` is when it was pushed, to the second."""
        push = _push(event)
        (change,) = push.changes
        created, deleted = is_zero(change.fromHash), is_zero(change.toHash)
        commit = None if deleted else push.commit
        return PushFacts(
            repository=push.repository.clone_url,
            ref=change.refId,
            commit=commit,
            before=None if created else change.fromHash,
            created=created,
            deleted=deleted,
            forced=False,
            pushed_at=push.pushed_at,
            default_branch=push.repository.defaultBranch,
            paths=None,
            private=None if push.repository.public is None else not push.repository.public,
            message=push.toCommit.message if push.toCommit and push.toCommit.id == commit else None,
            pusher=push.actor.name if push.actor else None,
        )

    def pushed(self, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
        """As one that created the ref, because nothing is known of what was there before."""
        page, owner, name = page_of(repository)
        kind, short = ("TAG" if ref.startswith("refs/tags/") else "BRANCH"), ref.split("/", 2)[-1]
        data = {
            "eventKey": PUSH,
            "repository": {
                "slug": name,
                "name": name,
                "project": {"key": owner.rpartition("/")[2].upper()},
                "links": {"clone": [{"href": repository, "name": "http"}]},
                "defaultBranch": default_branch,
            },
            "changes": [
                {
                    "ref": {"id": ref, "displayId": short, "type": kind},
                    "refId": ref,
                    "fromHash": "0" * len(commit),
                    "toHash": commit,
                    "type": "ADD",
                }
            ],
            "toCommit": {"id": commit},
        }
        return payload_event(id, page, "com.bitbucket-server.push", ref, data)

    def _change_event(self, id_: str, payload: Mapping[str, object]) -> Event:
        """The event of one change."""
        return payload_event(id_, _source(payload.get("repository")), "com.bitbucket-server.push", None, payload)


def _changes(payload: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The payload with one change at a time, and without what is of one of several. Raises DecodeError."""
    changes = payload.get("changes")
    if not isinstance(changes, list):
        raise DecodeError("This is no push of Bitbucket's: changes is no list.")
    if len(changes) == 1:
        return [payload]
    common = {name: value for name, value in payload.items() if name not in ("toCommit", "commits")}
    return [{**common, "changes": [change]} for change in changes]


def _whence(payload: Mapping[str, object]) -> str | None:
    """The source of an event that is no push: the repository, or that of its pull request's target."""
    request = payload.get("pullRequest")
    target = request.get("toRef") if isinstance(request, dict) else None
    for holder in (payload, target):
        if isinstance(holder, dict) and "repository" in holder:
            return _source(holder["repository"])
    return None


def _source(repository: object) -> str:
    """The URL to clone from, without `.git`. Raises DecodeError."""
    try:
        return msgspec.convert(repository, _Repository).clone_url.removesuffix(".git")
    except msgspec.ValidationError as error:
        raise DecodeError(f"This repository is none of Bitbucket's: {error}.") from None


def _push(event: Event) -> _Push:
    with as_push_of("Bitbucket"):
        return msgspec.convert(event.data, _Push)


class _Clone(msgspec.Struct):
    href: str
    name: str


class _Links(msgspec.Struct):
    clone: list[_Clone] = []


class _Repository(msgspec.Struct):
    links: _Links = msgspec.field(default_factory=_Links)
    public: bool | None = None
    defaultBranch: str | None = None  # noqa: N815

    @property
    def clone_url(self) -> str:
        """Some versions put the name of who pushed before the host. Raises DecodeError."""
        for each in self.links.clone:
            if each.name in ("http", "https"):
                return re.sub(r"(?<=://)[^/@]*@", "", each.href)
        raise DecodeError("repository.links.clone has no http URL: Bitbucket's base URL must be set, and HTTP be on.")


class _Commit(msgspec.Struct):
    id: Hash
    message: str | None = None


class _Change(msgspec.Struct):
    refId: Ref  # noqa: N815
    fromHash: Hash  # noqa: N815
    toHash: Hash  # noqa: N815


class _Actor(msgspec.Struct):
    name: str | None = None


class _Push(msgspec.Struct):
    """The parts of a push payload that matter here. Versions before 8 lack `toCommit`."""

    changes: Annotated[list[_Change], Meta(min_length=1, max_length=1)]
    repository: _Repository
    toCommit: _Commit | None = None  # noqa: N815
    date: str | None = None
    actor: _Actor | None = None

    @property
    def commit(self) -> str | None:
        """Of the one change."""
        (change,) = self.changes
        if change.refId.startswith("refs/heads/"):
            return change.toHash
        return self.toCommit.id if self.toCommit else None

    @property
    def pushed_at(self) -> datetime | None:
        """Its form varies with the version, and a time that cannot be read is no reason to build nothing."""
        try:
            at = datetime.fromisoformat(self.date or "")
            return at.astimezone(UTC) if at.tzinfo else None
        except (ValueError, OverflowError):
            return None
