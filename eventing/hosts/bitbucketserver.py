"""Webhooks of Bitbucket Data Center, formerly Bitbucket Server.

The signatures are those of Bitbucket Cloud. The connection test is unsigned: Kiln answers it, and it proves nothing.
One delivery lists all branches and tags that a push changed and becomes an event for each. It names neither the default
branch nor the changed files, nor the commit of a tag (unless it is the only change).

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
from eventing.hosts.dialect import Ignored, PushFacts, RequestFacts
from eventing.hosts.payload import (
    NO_REPOSITORY,
    Hash,
    Number,
    Ref,
    RefName,
    as_push_of,
    as_request_of,
    header,
    is_zero,
    moment,
    page_of,
    payload_event,
    payload_of,
    signature,
    text_at,
)
from eventing.wire import lowered

PUSH, PING = "repo:refs_changed", "diagnostics:ping"

_PING = "Received Bitbucket's unsigned connection test. Push a commit to verify the secret."


class BitbucketServer:
    word = "bitbucket-server"
    own_header = "x-event-key"
    pushes = frozenset({"com.bitbucket-server.push"})
    requests: tuple[str, ...] = ("com.bitbucket-server.pr",)

    def verify(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Sequence[bytes],
        now: datetime | None = None,  # noqa: ARG002 - Bitbucket signs no time
    ) -> None:
        """An unsigned connection test passes if any secret exists; `parse` returns no event for it."""
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
            raise DecodeError("The payload does not identify its event: eventKey is missing.")
        return {"content-type": "application/json", "x-event-key": key, "x-request-id": delivery}

    def parse(self, headers: Mapping[str, str], body: bytes) -> list[Event] | Ignored:
        """`id` is X-Request-Id, numbered if there are several changes; `source` is the clone URL without `.git`.

        Events other than pushes have the type `com.bitbucket-server.<X-Event-Key>`, with dots for colons.
        """
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
        """Read an event of one change, as `parse` creates them.

        `toHash` of an annotated tag is the tag object, not the commit. `date` is the time of the push, to the second.
        """
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

    def request(self, event: Event) -> RequestFacts:
        with as_request_of("Bitbucket"):
            payload = msgspec.convert(event.data, _PullRequestEvent)
        request, key = payload.pullRequest, event.type.removeprefix("com.bitbucket-server.pr.")
        head, base = request.fromRef, request.toRef
        return RequestFacts(
            repository=request.clone_url,
            number=request.id,
            ref=f"refs/pull-requests/{request.id}/from",
            commit=head.latestCommit,
            before=payload.previousFromHash,
            at=datetime.fromtimestamp(request.updatedDate / 1000, UTC) if request.updatedDate else None,
            base=base.displayId,
            head=head.displayId,
            fork=head.repository.id is None or head.repository.id != base.repository.id,
            moved=key in ("opened", "from_ref_updated"),
            retargeted=key == "modified" and payload.previousTarget not in (None, _Target(base.displayId)),
            closed=key in ("merged", "declined", "deleted"),
        )

    def pushed(self, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
        """Describe the ref as newly created, because its previous commit is unknown."""
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
        """Return the event of one change."""
        return payload_event(id_, _source(payload.get("repository")), "com.bitbucket-server.push", None, payload)


def _changes(payload: Mapping[str, object]) -> list[Mapping[str, object]]:
    """Yield the payload with one change at a time, without the fields of the other changes. Raises DecodeError."""
    changes = payload.get("changes")
    if not isinstance(changes, list):
        raise DecodeError("This is not a Bitbucket push: changes is not a list.")
    if len(changes) == 1:
        return [payload]
    common = {name: value for name, value in payload.items() if name not in ("toCommit", "commits")}
    return [{**common, "changes": [change]} for change in changes]


def _whence(payload: Mapping[str, object]) -> str | None:
    """Return the source of an event that is not a push: the repository, or the target of its pull request.

    Raises DecodeError.
    """
    if "repository" in payload:
        return _source(payload["repository"])
    if "pullRequest" not in payload:
        return None
    with as_request_of("Bitbucket"):
        return msgspec.convert(payload["pullRequest"], _PullRequest).clone_url.removesuffix(".git")


def _source(repository: object) -> str:
    """Return the clone URL without `.git`. Raises DecodeError."""
    try:
        return msgspec.convert(repository, _Repository).clone_url.removesuffix(".git")
    except msgspec.ValidationError as error:
        raise DecodeError(f"This is not a repository of Bitbucket: {error}.") from None


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
        """Return the clone URL. Some versions put the name of the pusher before the host. Raises DecodeError."""
        for each in self.links.clone:
            if each.name in ("http", "https"):
                return re.sub(r"(?<=://)[^/@]*@", "", each.href)
        raise DecodeError("repository.links.clone has no HTTP URL. Set Bitbucket's base URL and enable HTTP.")


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
    """The used parts of a push payload. Versions before 8 lack `toCommit`."""

    changes: Annotated[list[_Change], Meta(min_length=1, max_length=1)]
    repository: _Repository
    toCommit: _Commit | None = None  # noqa: N815
    date: str | None = None
    actor: _Actor | None = None

    @property
    def commit(self) -> str | None:
        """The commit of the only change."""
        (change,) = self.changes
        if change.refId.startswith("refs/heads/"):
            return change.toHash
        return self.toCommit.id if self.toCommit else None

    @property
    def pushed_at(self) -> datetime | None:
        return moment(self.date)


class _Project(msgspec.Struct):
    key: str


class _Held(_Repository):
    """The repository at one side of a request. Some versions omit the clone URL."""

    id: int | None = None
    slug: str | None = None
    project: _Project | None = None


class _Side(msgspec.Struct):
    displayId: RefName  # noqa: N815
    latestCommit: Hash  # noqa: N815
    repository: _Held


class _Self(msgspec.Struct):
    href: str


_PAGE = re.compile(r"(https?://[^?#]*?)/(?:projects|users)/[^/]+/repos/[^/]+/pull-requests/[0-9]+")


class _Pages(msgspec.Struct):
    self: list[_Self | None] = []


class _PullRequest(msgspec.Struct):
    id: Number
    fromRef: _Side  # noqa: N815
    toRef: _Side  # noqa: N815
    updatedDate: Annotated[int, Meta(ge=0, lt=2**42)] | None = None  # noqa: N815
    links: _Pages = msgspec.field(default_factory=_Pages)

    @property
    def clone_url(self) -> str:
        """Return the clone URL of the target, or derive it from the page of the request. Raises DecodeError."""
        held = self.toRef.repository
        for page in self.links.self:
            found = page and _PAGE.fullmatch(page.href)
            if found and held.project and held.slug and not held.links.clone:
                return f"{found[1]}/scm/{held.project.key.lower()}/{held.slug}.git"
        return held.clone_url


class _Target(msgspec.Struct):
    displayId: str  # noqa: N815


class _PullRequestEvent(msgspec.Struct):
    """The used parts of an event about a pull request."""

    pullRequest: _PullRequest  # noqa: N815
    previousFromHash: Hash | None = None  # noqa: N815
    previousTarget: _Target | None = None  # noqa: N815
