"""Webhooks of GitHub, as the events of the CloudEvents adapter for GitHub.

GitHub signs the raw body with HMAC-SHA256 and does not repeat a failed delivery. A `push` accompanies each `create` and
`delete` event, so only the push counts; a push that deletes a ref leaves nothing to build.

https://docs.github.com/en/webhooks/webhook-events-and-payloads
https://github.com/cloudevents/spec/blob/main/cloudevents/adapters/github.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import quote_plus

import msgspec
from msgspec import Meta

from eventing.errors import DecodeError, SignatureError
from eventing.event import Event
from eventing.hosts import pullrequest
from eventing.hosts.dialect import Ignored, PushFacts, RequestFacts
from eventing.hosts.payload import (
    CREATED,
    DELETED,
    FORM,
    NO_REPOSITORY,
    Commit,
    Hash,
    Path,
    Ref,
    as_push_of,
    as_request_of,
    commit_at,
    event_name,
    facts_of,
    first_text,
    header,
    is_signed,
    is_zero,
    json_text,
    page_of,
    paths_of,
    payload_event,
    payload_of,
    shown_by,
    signature,
    text_at,
)
from eventing.wire import essence, lowered

MAX_COMMITS, MAX_FILES = 2048, 3000
"""GitHub lists at most so many commits of a push and files of a commit. A full list may be incomplete, and so may an
empty one. https://docs.github.com/en/webhooks/webhook-events-and-payloads#push
"""
MAX_EXPLAINED = 1 << 20
"""Bytes of a body up to which Kiln computes further signatures to explain a wrong one."""

_IGNORED = {
    "ping": "This is GitHub's ping: the webhook works.",
    "create": CREATED,
    "delete": DELETED,
}
_TYPE_ENDS: Mapping[str, tuple[Path, ...]] = {  # if it is not the payload's `action`
    "deployment": (),
    "deployment_status": (("deployment_status", "state"),),
    "membership": (("scope",), ("action",)),
}
_SUBJECTS: Mapping[str, Path] = {  # of the events that can trigger a build
    "deployment": ("deployment", "id"),
    "pull_request": ("number",),
    "push": ("ref",),
    "release": ("release", "id"),
    "workflow_dispatch": ("workflow",),
    "workflow_run": ("workflow", "name"),
}
_SHOWN_BY: Sequence[tuple[str, frozenset[str]]] = (
    ("push", frozenset({"ref", "before", "after"})),
    ("ping", frozenset({"zen"})),
    ("create", frozenset({"ref_type", "master_branch"})),
    ("delete", frozenset({"ref_type"})),
    ("repository_dispatch", frozenset({"client_payload"})),
    ("workflow_dispatch", frozenset({"workflow", "inputs"})),
    ("workflow_run", frozenset({"workflow_run"})),
    ("deployment_status", frozenset({"deployment_status"})),
    ("deployment", frozenset({"deployment"})),
    ("release", frozenset({"release"})),
    ("pull_request", frozenset({"pull_request", "number"})),
)
_SOURCES: tuple[Path, ...] = (  # the first that is present
    ("repository", "url"),
    ("organization", "url"),
    ("installation", "account", "url"),
    ("sender", "url"),
)


class GitHub:
    word = "github"
    own_header = "x-github-event"
    pushes = frozenset({"com.github.push", "dev.knative.source.github.push"})
    requests: tuple[str, ...] = ("com.github.pull_request", "dev.knative.source.github.pull_request")

    def verify(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secrets: Sequence[bytes],
        now: datetime | None = None,  # noqa: ARG002 - GitHub signs no time
    ) -> None:
        """Verify `X-Hub-Signature-256` only: the older SHA-1 header is not accepted."""
        named = lowered(headers)
        given = named.get("x-hub-signature-256")
        if given is None and "x-hub-signature" in named:
            raise SignatureError("X-Hub-Signature (SHA-1) is not accepted. Sign with SHA-256.")
        if given is None:
            raise SignatureError("Missing X-Hub-Signature-256. Set the webhook's secret.")
        if not is_signed(given, body, secrets, "sha256="):
            raise SignatureError(f"X-Hub-Signature-256 {_what_else(given, named, body, secrets)}.")

    def signed(
        self,
        headers: Mapping[str, str],
        body: bytes,
        secret: bytes,
        now: datetime,  # noqa: ARG002 - GitHub signs no time
    ) -> dict[str, str]:
        return {**lowered(headers), "x-hub-signature-256": signature(body, secret, "sha256=")}

    def headers_for(self, payload: Mapping[str, object], delivery: str) -> dict[str, str]:
        event = shown_by(payload, _SHOWN_BY)
        if event is None:
            raise DecodeError("The payload does not identify its event. Send the header X-GitHub-Event.")
        return {"content-type": "application/json", "x-github-event": event, "x-github-delivery": delivery}

    def parse(self, headers: Mapping[str, str], body: bytes) -> list[Event] | Ignored:
        """`id` is X-GitHub-Delivery, which a redelivery repeats; `source` is `repository.url`, or its substitute in
        events without a repository.

        Pushes and the events of `_SUBJECTS` have a `subject`.
        """
        named = lowered(headers)
        event, delivery = event_name(named, "X-GitHub-Event"), header(named, "X-GitHub-Delivery")
        if event in _IGNORED:
            return Ignored(_IGNORED[event])
        payload = payload_of(named, body)
        source = first_text(payload, _SOURCES)
        if source is None and event != "push":
            return Ignored(NO_REPOSITORY)
        subject = text_at(payload, _SUBJECTS.get(event, ()))
        type_ = ".".join(["com.github", event, *_type_ends(event, payload)])
        made = payload_event(delivery, source, type_, subject, payload)
        if made.type in self.pushes and facts_of(made, self.facts).deleted:
            return Ignored(DELETED)
        return [made]

    def facts(self, event: Event) -> PushFacts:
        """`head_commit` is the commit, also behind an annotated tag; `after` would be the tag object."""
        with as_push_of("GitHub"):
            push = msgspec.convert(event.data, _Push)
            paths = paths_of(push.commits, _is_all)
        deleted = push.deleted or is_zero(push.after)
        created = push.created or is_zero(push.before)
        commit = None if deleted else push.commit
        pushed_at = push.repository.pushed_at
        return PushFacts(
            repository=push.repository.clone_url,
            ref=push.ref,
            commit=commit,
            before=None if is_zero(push.before) else push.before,
            created=created,
            deleted=deleted,
            forced=push.forced,
            pushed_at=datetime.fromtimestamp(pushed_at, UTC) if isinstance(pushed_at, int) else pushed_at,
            default_branch=push.repository.default_branch,
            paths=None if created or deleted or push.forced else paths,
            private=push.repository.private,
            message=push.head_commit.message if push.head_commit else None,
            pusher=push.pusher.name if push.pusher else None,
        )

    def request(self, event: Event) -> RequestFacts:
        with as_request_of("GitHub"):
            payload = msgspec.convert(event.data, pullrequest.PullRequestEvent)
        return payload.facts(
            fork=payload.fork,
            moving=("opened", "reopened", "synchronize"),
            added=(payload.label.name,) if payload.label and payload.action == "labeled" else (),
            retargeted=payload.has_changed("base"),
        )

    def pushed(self, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
        """Describe the ref as newly created, because its previous commit and the changed paths are unknown."""
        page, owner, name = page_of(repository)
        data = {
            "ref": ref,
            "before": "0" * len(commit),
            "after": commit,
            "created": True,
            "deleted": False,
            "forced": False,
            "head_commit": {"id": commit},
            "commits": [],
            "repository": {
                "name": name,
                "full_name": f"{owner}/{name}" if owner else name,
                "owner": {"login": owner},
                "url": page,
                "html_url": page,
                "clone_url": repository,
                "default_branch": default_branch,
            },
        }
        return payload_event(id, page, "com.github.push", ref, data)


class _Repository(msgspec.Struct):
    clone_url: str
    default_branch: str | None = None
    private: bool | None = None
    pushed_at: Annotated[int, Meta(ge=0, lt=2**32)] | Annotated[datetime, Meta(tz=True)] | None = None


class _Pusher(msgspec.Struct):
    name: str | None = None


class _Push(msgspec.Struct):
    """The used parts of a push payload."""

    ref: Ref
    before: Hash
    after: Hash
    repository: _Repository
    created: bool = False
    deleted: bool = False
    forced: bool = False
    head_commit: Commit | None = None
    commits: object = ()
    pusher: _Pusher | None = None

    @property
    def commit(self) -> str | None:
        return commit_at(self.ref, self.after, self.head_commit.id if self.head_commit else None)


def _is_all(files: Sequence[int]) -> bool:
    """Return whether each commit lists all its files, judged by their number."""
    return 0 < len(files) < MAX_COMMITS and all(0 < count < MAX_FILES for count in files)


def _what_else(given: str, named: Mapping[str, str], body: bytes, secrets: Sequence[bytes]) -> str:
    """Explain a wrong signature, as the end of a sentence."""
    if not re.fullmatch(r"sha256=[0-9a-f]{64}", given):
        return "is not `sha256=` and 64 hexadecimal digits"
    if len(body) <= MAX_EXPLAINED and is_signed(given, _otherwise(named, body), secrets, "sha256="):
        return "signs another form of this payload: a proxy has changed its content type"
    return "does not match this webhook's secret, or a proxy has changed the body"


def _otherwise(named: Mapping[str, str], body: bytes) -> bytes:
    """Return the JSON of a form, or a form with the JSON."""
    if essence(named.get("content-type", "")) != FORM:
        return b"payload=" + quote_plus(body, safe="*").replace("~", "%7E").encode()
    with suppress(DecodeError):
        return json_text(named, body)
    return body


def _type_ends(event: str, payload: Mapping[str, object]) -> list[str]:
    """Return the part of the type after the event's name."""
    ends = (text_at(payload, path) for path in _TYPE_ENDS.get(event, (("action",),)))
    return [end for end in ends if end]
