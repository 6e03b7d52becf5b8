"""Webhooks of GitLab, as the events of the CloudEvents adapter for GitLab.

A webhook has a secret token, which every delivery carries in clear text, or a signing token (a key of Standard
Webhooks), or both. For a signed delivery with a known key only the signature counts.

GitLab repeats no delivery and sends none for a push of more refs than its limit (3). A test delivery shows the last
commits of the default branch as if newly pushed, including the first of them. A real push never lists its starting
commit.

https://docs.gitlab.com/user/project/integrations/webhooks/, webhook_events/
https://github.com/cloudevents/spec/blob/main/cloudevents/adapters/gitlab.md
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from eventing.errors import DecodeError, SignatureError
from eventing.event import Event
from eventing.hosts import standardwebhooks
from eventing.hosts.dialect import Ignored, PushFacts, RequestFacts
from eventing.hosts.payload import (
    DELETED,
    NO_REPOSITORY,
    TEST,
    ChangedPaths,
    Hash,
    Number,
    Path,
    Ref,
    RefName,
    as_push_of,
    as_request_of,
    commit_at,
    commits_of,
    first_text,
    is_zero,
    message_of,
    moment,
    page_of,
    paths_of,
    payload_event,
    payload_of,
    text_at,
)
from eventing.wire import lowered

PUSHES = ("push", "tag_push")
PUBLIC = 20
"""The visibility level of public projects."""

_KINDS: tuple[Path, ...] = (("object_kind",), ("event_name",))  # system hooks have the latter alone
_TYPES = {"build": "job"}
_TYPE_ENDS: Mapping[str, Path] = {  # if it is not the action of `object_attributes`
    "issue": ("object_attributes", "state"),
    "note": ("object_attributes", "noteable_type"),
    "pipeline": ("object_attributes", "status"),
    "build": ("build_status",),
}
_SUBJECTS: Mapping[str, Path] = {
    "push": ("checkout_sha",),
    "tag_push": ("ref",),
    "issue": ("object_attributes", "iid"),
    "merge_request": ("object_attributes", "iid"),
    "note": ("object_attributes", "id"),
    "pipeline": ("object_attributes", "id"),
    "wiki_page": ("object_attributes", "slug"),
    "build": ("build_id",),
}
_SOURCES: tuple[Path, ...] = (("repository", "homepage"), ("project", "web_url"))
_NOTED: Path = ("object_attributes", "url")


class GitLab:
    word = "gitlab"
    own_header = "x-gitlab-event"
    pushes = frozenset(
        {
            "com.gitlab.push",
            "com.gitlab.tag_push",
            "dev.knative.sources.gitlab.push",
            "dev.knative.sources.gitlab.tag_push",
            "dev.knative.sources.gitlabsource.Push Hook",
            "dev.knative.sources.gitlabsource.Tag Push Hook",
        }
    )

    requests: tuple[str, ...] = (
        "com.gitlab.merge_request",
        "dev.knative.sources.gitlab.merge_request",
        "dev.knative.sources.gitlabsource.Merge Request Hook",
    )

    def verify(self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], now: datetime) -> None:
        """Verify `webhook-signature`, or else `X-Gitlab-Token`, which does not authenticate the body.

        A signing token is not a secret token: Kiln never accepts it in clear text.
        """
        named = lowered(headers)
        tokens = [secret for secret in secrets if secret and not standardwebhooks.is_key(secret)]
        if "webhook-signature" in named and any(map(standardwebhooks.is_key, secrets)):
            standardwebhooks.verify(named, body, secrets, now)
            return
        given = named.get("x-gitlab-token", "").encode("latin-1", "replace")
        if not given:
            raise SignatureError("Missing X-Gitlab-Token. Set the webhook's secret token or signing token.")
        if not any([hmac.compare_digest(given, token) for token in tokens]):  # noqa: C419 - all of them, always
            raise SignatureError("X-Gitlab-Token is not this webhook's secret token.")

    def signed(self, headers: Mapping[str, str], body: bytes, secret: bytes, now: datetime) -> dict[str, str]:
        named = {name: value for name, value in lowered(headers).items() if name != "webhook-signature"}
        if standardwebhooks.is_key(secret):
            return {**named, **standardwebhooks.headers(_id(named, body), body, secret, now)}
        return {**named, "x-gitlab-token": secret.decode("latin-1")}

    def headers_for(self, payload: Mapping[str, object], delivery: str) -> dict[str, str]:
        kind = first_text(payload, _KINDS)
        if kind is None:
            raise DecodeError("The payload does not identify its event: object_kind is missing.")
        event = f"{kind.replace('_', ' ').title()} Hook"
        return {"content-type": "application/json", "x-gitlab-event": event, "idempotency-key": delivery}

    def parse(self, headers: Mapping[str, str], body: bytes) -> list[Event] | Ignored:
        """`id` is `webhook-id` or `Idempotency-Key`, which a retry repeats.

        Versions before 17.4 have neither. Their id is derived from the payload and X-Gitlab-Event-UUID, which a branch
        and a tag of one push share.
        """
        named = lowered(headers)
        payload = payload_of(named, body)
        kind = first_text(payload, _KINDS)
        if kind is None or not re.fullmatch(r"[a-z_]{1,64}", kind):
            raise DecodeError("The payload's object_kind is not the name of an event.")
        source, subject = _source(kind, payload), text_at(payload, _SUBJECTS.get(kind, ()))
        if source is None and kind not in PUSHES:
            return Ignored(NO_REPOSITORY)
        made = payload_event(_id(named, body), source, _type(kind, payload), subject, payload)
        nothing = _nothing(made) if made.type in self.pushes else None
        return nothing or [made]

    def facts(self, event: Event) -> PushFacts:
        """`checkout_sha` is the commit, also behind an annotated tag. GitLab sends neither whether a push was forced
        nor its time.
        """
        push, paths = _push(event)
        created, deleted = is_zero(push.before), is_zero(push.after)
        commit = None if deleted else push.commit
        return PushFacts(
            repository=push.clone_url,
            ref=push.ref,
            commit=commit,
            before=None if created else push.before,
            created=created,
            deleted=deleted,
            forced=False,
            pushed_at=None,
            default_branch=push.project.default_branch,
            paths=None if created or deleted else paths,
            private=None if push.project.visibility_level is None else push.project.visibility_level < PUBLIC,
            message=message_of(commit, commits_of(push.commits)),
            pusher=push.user_username,
        )

    def request(self, event: Event) -> RequestFacts:
        """`oldrev` is present if the head has moved."""
        with as_request_of("GitLab"):
            payload = msgspec.convert(event.data, _MergeRequest)
        about = payload.object_attributes
        return RequestFacts(
            repository=payload.clone_url,
            number=about.iid,
            ref=f"refs/merge-requests/{about.iid}/head",
            commit=about.last_commit.id,
            before=about.oldrev,
            at=moment(about.updated_at),
            base=about.target_branch,
            head=about.source_branch,
            fork=about.source_project_id is None or about.source_project_id != about.target_project_id,
            moved=about.action in ("open", "reopen") or (about.action == "update" and about.oldrev is not None),
            labels=tuple(label.title for label in payload.labels or about.labels or ()),
            added=payload.changes.added if about.action == "update" else (),
            retargeted=about.action == "update" and payload.changes.target_branch is not None,
            closed=about.action in ("close", "merge"),
        )

    def pushed(self, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
        """Describe the ref as newly created, because its previous commit and the changed paths are unknown."""
        page, owner, name = page_of(repository)
        kind = "tag_push" if ref.startswith("refs/tags/") else "push"
        about = {"name": name, "homepage": page, "git_http_url": repository}
        path = f"{owner}/{name}" if owner else name
        data = {
            "object_kind": kind,
            "event_name": kind,
            "before": "0" * len(commit),
            "after": commit,
            "ref": ref,
            "checkout_sha": commit,
            "project": {**about, "web_url": page, "path_with_namespace": path, "default_branch": default_branch},
            "repository": about,
            "commits": [],
            "total_commits_count": 0,
        }
        return payload_event(id, page, f"com.gitlab.{kind}", ref if kind == "tag_push" else commit, data)


def _id(named: Mapping[str, str], body: bytes) -> str:
    if given := named.get("webhook-id") or named.get("idempotency-key"):
        return given
    made = [named.get("x-gitlab-event-uuid"), hashlib.sha256(body).hexdigest()[:32]]
    return ":".join(filter(None, made))


def _source(kind: str, payload: Mapping[str, object]) -> str | None:
    noted = text_at(payload, _NOTED) if kind == "note" else None
    return noted.partition("#")[0] if noted else first_text(payload, _SOURCES)


def _type(kind: str, payload: Mapping[str, object]) -> str:
    end = text_at(payload, _TYPE_ENDS.get(kind, ("object_attributes", "action")))
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", end or "").lower()  # MergeRequest, from the name of the class in GitLab
    return ".".join(filter(None, ["com.gitlab", _TYPES.get(kind, kind), words]))


def _nothing(made: Event) -> Ignored | None:
    """Return why a push requests nothing, or `None`."""
    push, _ = _push(made)
    if push.before == push.after or any(commit.id == push.before for commit in commits_of(push.commits)):
        return Ignored(TEST)
    return Ignored(DELETED) if is_zero(push.after) else None


class _Project(msgspec.Struct, frozen=True):
    git_http_url: str | None = None
    default_branch: str | None = None
    visibility_level: int | None = None


class _Push(msgspec.Struct):
    """The used parts of a push payload. Old versions have `repository` in place of `project`."""

    ref: Ref
    before: Hash
    after: Hash
    checkout_sha: Hash | None = None
    project: _Project = _Project()
    repository: _Project = _Project()
    commits: object = None
    total_commits_count: int | None = None
    user_username: str | None = None

    @property
    def clone_url(self) -> str:
        """Return the clone URL. Raises DecodeError."""
        if url := self.project.git_http_url or self.repository.git_http_url:
            return url
        raise DecodeError("This push has no project.git_http_url. Enable HTTP for the project.")

    @property
    def commit(self) -> str | None:
        return commit_at(self.ref, self.after, self.checkout_sha)

    @property
    def paths(self) -> ChangedPaths | None:
        """GitLab lists the newest 20 commits; `total_commits_count` counts all.

        Raises msgspec.ValidationError.
        """
        return paths_of(self.commits, lambda files: 0 < len(files) == self.total_commits_count)


class _Head(msgspec.Struct):
    id: Hash


class _Label(msgspec.Struct):
    title: str


class _Labels(msgspec.Struct, frozen=True):
    previous: tuple[_Label, ...] | None = None
    current: tuple[_Label, ...] | None = None


class _Changes(msgspec.Struct, frozen=True):
    labels: _Labels = _Labels()
    target_branch: object = None

    @property
    def added(self) -> tuple[str, ...]:
        before = {label.title for label in self.labels.previous or ()}
        return tuple(label.title for label in self.labels.current or () if label.title not in before)


class _Attributes(msgspec.Struct):
    iid: Number
    source_branch: RefName
    target_branch: RefName
    last_commit: _Head
    target_project_id: int
    source_project_id: int | None = None
    action: str | None = None
    oldrev: Hash | None = None
    updated_at: str | None = None
    labels: list[_Label] | None = None
    target: _Project = _Project()


class _MergeRequest(msgspec.Struct):
    """The used parts of an event about a merge request."""

    object_attributes: _Attributes
    project: _Project = _Project()
    labels: list[_Label] | None = None
    changes: _Changes = _Changes()

    @property
    def clone_url(self) -> str:
        """Return the clone URL. Raises DecodeError."""
        if url := self.project.git_http_url or self.object_attributes.target.git_http_url:
            return url
        raise DecodeError("This merge request's project has no git_http_url. Enable HTTP for it.")


def _push(event: Event) -> tuple[_Push, ChangedPaths | None]:
    with as_push_of("GitLab"):
        push = msgspec.convert(event.data, _Push)
        return push, push.paths
