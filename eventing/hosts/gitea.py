"""Webhooks of Gitea. Event types follow those of the CloudEvents adapter for GitHub, with `gitea` in place of `github`.

Gitea signs the JSON with HMAC-SHA256, even inside a form, and does not repeat a failed delivery. A new branch or tag is
a `create` and a `push`, a deleted one a `delete` (a deleted tag a `push` as well), so only the push counts. A test
delivery is a push without changes: Gitea has no ping.

https://docs.gitea.com/usage/repository/webhooks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain

import msgspec

from eventing.errors import DecodeError, SignatureError
from eventing.event import Event
from eventing.hosts import pullrequest
from eventing.hosts.dialect import Ignored, PushFacts, RequestFacts
from eventing.hosts.payload import (
    CREATED,
    DELETED,
    NO_REPOSITORY,
    TEST,
    ChangedPaths,
    Commit,
    Hash,
    Path,
    Ref,
    as_push_of,
    as_request_of,
    commit_at,
    commits_of,
    event_name,
    first_text,
    header,
    is_signed,
    is_zero,
    json_text,
    message_of,
    page_of,
    paths_of,
    payload_event,
    payload_of,
    shown_by,
    signature,
    text_at,
)
from eventing.wire import lowered

_IGNORED = {
    "create": CREATED,
    "delete": DELETED,
}
_SUBJECTS: Mapping[str, Path] = {
    "pull_request": ("number",),
    "pull_request_label": ("number",),
    "pull_request_sync": ("number",),
    "push": ("ref",),
    "release": ("release", "id"),
}
_SHOWN_BY: Sequence[tuple[str, frozenset[str]]] = (
    ("push", frozenset({"ref", "before", "after"})),
    ("create", frozenset({"ref_type", "sha"})),
    ("delete", frozenset({"ref_type"})),
    ("release", frozenset({"release"})),
    ("pull_request", frozenset({"pull_request", "number"})),
)
_SOURCES: tuple[Path, ...] = (
    ("repository", "html_url"),
    ("organization", "html_url"),
    ("sender", "html_url"),
)


class Gitea:
    word = "gitea"
    own_header = "x-gitea-event"
    pushes = frozenset({"com.gitea.push"})
    requests: tuple[str, ...] = (
        "com.gitea.pull_request",
        "com.gitea.pull_request_sync",
        "com.gitea.pull_request_label",
    )
    prefixes: tuple[str, ...] = ("X-Gitea",)
    """Prefixes of its header names. The first that a delivery has wins."""

    def verify(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Sequence[bytes],
        now: datetime | None = None,  # noqa: ARG002 - Gitea signs no time
    ) -> None:
        """Verify `…-Signature` only. Gitea sends an empty one if the webhook has no secret."""
        named = lowered(headers)
        name = self._name(named, "Signature")
        given = named.get(name.lower())
        if not given:
            raise SignatureError(f"Missing {name}. Set the webhook's secret.")
        if not is_signed(given, _signed(named, body), secrets):
            raise SignatureError(f"{name} does not match this webhook's secret.")

    def signed(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secret: bytes,
        now: datetime,  # noqa: ARG002 - Gitea signs no time
    ) -> dict[str, str]:
        named = lowered(headers)
        return {**named, f"{self.prefixes[0]}-Signature".lower(): signature(_signed(named, body), secret)}

    def headers_for(self, payload: Mapping[str, object], delivery: str) -> dict[str, str]:
        event, prefix = shown_by(payload, _SHOWN_BY), self.prefixes[0]
        if event is None:
            raise DecodeError(f"The payload does not show which event it is: the header {prefix}-Event must say so.")
        own = {f"{prefix}-Event".lower(): event, f"{prefix}-Delivery".lower(): delivery}
        return {"content-type": "application/json", **own}

    def parse(self, headers: Mapping[str, str], body: bytes) -> list[Event] | Ignored:
        """`id` is `…-Delivery`, `source` the repository's page. A manual redelivery has a new `id`."""
        named = lowered(headers)
        event = event_name(named, self._name(named, "Event"))
        delivery = header(named, self._name(named, "Delivery"))
        if event in _IGNORED:
            return Ignored(_IGNORED[event])
        payload = payload_of(named, body)
        source, subject = first_text(payload, _SOURCES), text_at(payload, _SUBJECTS.get(event, ()))
        if source is None and event != "push":
            return Ignored(NO_REPOSITORY)
        type_ = ".".join(filter(None, ["com", self.word, event, text_at(payload, ("action",))]))
        made = payload_event(delivery, source, type_, subject, payload)
        return self._nothing(made) or [made]

    def facts(self, event: Event) -> PushFacts:
        """Gitea sends neither whether a push was forced nor its time."""
        push, paths = self._push(event)
        created, deleted = is_zero(push.before), is_zero(push.after)
        commit = None if deleted else push.commit
        return PushFacts(
            repository=push.repository.clone_url,
            ref=push.ref,
            commit=commit,
            before=None if created else push.before,
            created=created,
            deleted=deleted,
            forced=False,
            pushed_at=None,
            default_branch=push.repository.default_branch,
            paths=None if created or deleted else paths,
            private=push.repository.private,
            message=push.message,
            pusher=(push.pusher.login or push.pusher.username) if push.pusher else None,
        )

    def request(self, event: Event) -> RequestFacts:
        """Gitea does not mark the new label. A reader of a repository can push a request to it, by `refs/for/<branch>`.

        The head of such a request is in the target repository, but on no branch. https://docs.gitea.com/usage/agit
        """
        with as_request_of(type(self).__name__):
            payload = msgspec.convert(event.data, pullrequest.PullRequestEvent)
        return payload.facts(
            fork=payload.fork or payload.pull_request.head.ref.startswith("refs/"),
            moving=("opened", "reopened", "synchronized"),
            added=payload.labels if payload.action == "label_updated" else (),
            retargeted=payload.has_changed("ref"),
        )

    def pushed(self, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
        """Describe the ref as newly created, because its previous commit and the changed paths are unknown."""
        page, owner, name = page_of(repository)
        data = {
            "ref": ref,
            "before": "0" * len(commit),
            "after": commit,
            "commits": [],
            "total_commits": 0,
            "head_commit": {"id": commit},
            "repository": {
                "name": name,
                "full_name": f"{owner}/{name}" if owner else name,
                "owner": {"login": owner},
                "html_url": page,
                "clone_url": repository,
                "default_branch": default_branch,
            },
        }
        return payload_event(id, page, f"com.{self.word}.push", ref, data)

    def _name(self, named: Mapping[str, str], end: str) -> str:
        """Return the full name of one of its headers, as this delivery spells it."""
        names = [f"{prefix}-{end}" for prefix in self.prefixes]
        return next((name for name in names if name.lower() in named), names[0])

    def _nothing(self, made: Event) -> Ignored | None:
        """Return why an event requests nothing, or `None`."""
        if made.type not in self.pushes:
            return None
        push, _ = self._push(made)
        if push.before == push.after:
            return Ignored(TEST)
        return Ignored(DELETED) if is_zero(push.after) else None

    def _push(self, event: Event) -> tuple[_Push, ChangedPaths | None]:
        with as_push_of(type(self).__name__):
            push = msgspec.convert(event.data, _Push)
            return push, push.paths


def _signed(named: Mapping[str, str], body: bytes) -> bytes:
    """Return the signed bytes. A form without a payload is never signed, so its own bytes serve."""
    try:
        return json_text(named, body)
    except DecodeError:
        return body


class _Repository(msgspec.Struct):
    clone_url: str
    default_branch: str | None = None
    private: bool | None = None


class _User(msgspec.Struct):
    login: str | None = None
    username: str | None = None


class _Push(msgspec.Struct):
    """The used parts of a push payload. Old versions lack `head_commit` and `total_commits`."""

    ref: Ref
    before: Hash
    after: Hash
    repository: _Repository
    head_commit: Commit | None = None
    commits: object = None
    total_commits: int | None = None
    pusher: _User | None = None

    @property
    def message(self) -> str | None:
        """The message of the ref's commit."""
        return message_of(self.commit, chain([self.head_commit] if self.head_commit else [], commits_of(self.commits)))

    @property
    def commit(self) -> str | None:
        return commit_at(self.ref, self.after, self.head_commit.id if self.head_commit else None)

    @property
    def paths(self) -> ChangedPaths | None:
        """Gitea lists only the newest commits (5 by default); `total_commits` counts all.

        Raises msgspec.ValidationError.
        """
        return paths_of(self.commits, lambda files: 0 < len(files) == self.total_commits)
