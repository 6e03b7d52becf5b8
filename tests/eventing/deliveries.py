"""Deliveries of each Git host for invented repositories, with the documented payloads and signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

SECRET = b"a canary of the webhooks"
COMMIT, BEFORE, TAG = "c" * 40, "b" * 40, "7" * 40
ZERO = "0" * 40

Payload = dict[str, Any]


@dataclass(frozen=True)
class Delivery:
    headers: Mapping[str, str]
    body: bytes

    def but(self, **changes: str | None) -> Delivery:
        """Return the delivery with other headers (`_` for `-`), and without those that are `None`."""
        named = {name.lower().replace("-", "_"): name for name in self.headers}
        headers = {named.get(name, name.replace("_", "-")): value for name, value in changes.items()}
        return Delivery(
            {name: value for name, value in {**self.headers, **headers}.items() if value is not None}, self.body
        )

    @property
    def post(self) -> dict[str, Any]:
        """Arguments for a client's `post`."""
        return {"data": self.body, "headers": dict(self.headers)}


def encoded(payload: object) -> bytes:
    return payload if isinstance(payload, bytes) else json.dumps(payload, ensure_ascii=False).encode()


def hexadecimal(body: bytes, secret: bytes = SECRET) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


# Gitea and Forgejo


def gitea_push(**changes: object) -> Payload:
    """A push of one commit to the default branch, as Gitea 1.27 sends it."""
    commit = {"id": COMMIT, "message": "größer\n", "added": ["a.txt"], "removed": [], "modified": ["binder/é.yml"]}
    user = {"id": 1, "login": "ada", "username": "ada", "html_url": "https://git.example.com/ada"}
    return {
        "ref": "refs/heads/main",
        "before": BEFORE,
        "after": COMMIT,
        "compare_url": f"https://git.example.com/lab/sample/compare/{BEFORE}...{COMMIT}",
        "commits": [commit],
        "total_commits": 1,
        "head_commit": commit,
        "repository": {
            "id": 1,
            "name": "sample",
            "full_name": "lab/sample",
            "owner": user,
            "private": False,
            "html_url": "https://git.example.com/lab/sample",
            "url": "https://git.example.com/api/v1/repos/lab/sample",
            "clone_url": "https://git.example.com/lab/sample.git",
            "default_branch": "main",
            "updated_at": "2026-11-29T02:52:24Z",
        },
        "pusher": user,
        "sender": user,
        **changes,
    }


def gitea(
    payload: object = None,
    event: str = "push",
    *,
    secret: bytes = SECRET,
    id: str = "d-1",  # noqa: A002
    form: bool = False,
    names: tuple[str, ...] = ("X-Gitea", "X-Gogs", "X-GitHub"),
) -> Delivery:
    """A signed delivery of Gitea. The signature of a form covers the JSON in it."""
    body = encoded(gitea_push() if payload is None else payload)
    signature = hexadecimal(body, secret)
    headers = {"Content-Type": "application/x-www-form-urlencoded" if form else "application/json"}
    for name in names:
        headers |= {f"{name}-Event": event, f"{name}-Event-Type": event, f"{name}-Delivery": id}
        headers |= {} if name == "X-GitHub" else {f"{name}-Signature": signature}
    headers |= {"X-Hub-Signature": f"sha1={'0' * 40}", "X-Hub-Signature-256": f"sha256={signature}"}
    return Delivery(headers, urlencode({"payload": body.decode()}).encode() if form else body)


def forgejo(payload: object = None, event: str = "push", **options: Any) -> Delivery:
    return gitea(payload, event, **{"names": ("X-Forgejo", "X-Gitea", "X-Gogs", "X-GitHub"), **options})


# GitLab

SIGNING = b"whsec_" + base64.b64encode(b"a canary of 32 bytes for signing")


def gitlab_push(**changes: object) -> Payload:
    """A push of one commit to the default branch of a project in a subgroup, as GitLab 18 sends it."""
    commit = {"id": COMMIT, "message": "größer\n", "added": ["a.txt"], "modified": ["binder/é.yml"], "removed": []}
    page = "https://gitlab.com/uni/stats/course"
    about = {"name": "course", "homepage": page, "git_http_url": f"{page}.git", "visibility_level": 20}
    return {
        "object_kind": "push",
        "event_name": "push",
        "before": BEFORE,
        "after": COMMIT,
        "ref": "refs/heads/main",
        "ref_protected": True,
        "checkout_sha": COMMIT,
        "message": None,
        "user_id": 4,
        "user_username": "ada",
        "project_id": 15,
        "project": {
            **about,
            "id": 15,
            "web_url": page,
            "namespace": "stats",
            "path_with_namespace": "uni/stats/course",
            "default_branch": "main",
            "git_ssh_url": "git@gitlab.com:uni/stats/course.git",
        },
        "commits": [commit],
        "total_commits_count": 1,
        "push_options": {},
        "repository": {**about, "url": "git@gitlab.com:uni/stats/course.git"},
        **changes,
    }


def gitlab(
    payload: object = None,
    event: str = "Push Hook",
    *,
    secret: bytes = SECRET,
    id: str = "d-1",  # noqa: A002
) -> Delivery:
    """A delivery of GitLab with a secret token."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitLab/18.5.0-ee",
        "Idempotency-Key": id,
        "X-Gitlab-Event": event,
        "X-Gitlab-Webhook-UUID": "b-1",
        "X-Gitlab-Event-UUID": "u-1",
        "X-Gitlab-Instance": "https://gitlab.com",
        "X-Gitlab-Token": secret.decode("latin-1"),
    }
    return Delivery(headers, encoded(gitlab_push() if payload is None else payload))


def gitlab_signed(
    payload: object = None,
    *,
    at: datetime,
    keys: Sequence[bytes] = (SIGNING,),
    id: str = "d-1",  # noqa: A002
) -> Delivery:
    """A delivery of GitLab with a signature by each key, computed here by the specification."""
    delivery = gitlab(payload, id=id).but(x_gitlab_token=None)
    timestamp = str(int(at.timestamp()))
    message = f"{id}.{timestamp}.".encode() + delivery.body
    made = [hmac.new(base64.b64decode(key[6:]), message, hashlib.sha256).digest() for key in keys]
    signatures = " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in made)
    return delivery.but(webhook_id=id, webhook_timestamp=timestamp, webhook_signature=signatures)


# Bitbucket


def cloud_ref(name: str = "main", commit: str = COMMIT, type: str = "branch") -> Payload:  # noqa: A002
    return {"type": type, "name": name, "target": {"type": "commit", "hash": commit, "message": "größer\n"}}


def cloud_change(new: Payload | None, old: Payload | None = None, **changes: object) -> Payload:
    flags = {"created": old is None, "closed": new is None, "forced": False, "truncated": False}
    return {"new": new, "old": old, **flags, "commits": [{"type": "commit", "hash": COMMIT}], **changes}


def bitbucket_push(*changes: Payload, **others: object) -> Payload:
    """A push of one commit to `main`, unless other changes are given, as Bitbucket Cloud sends it."""
    page = "https://bitbucket.org/Team/course"
    return {
        "actor": {"type": "user", "display_name": "Ada", "nickname": "ada", "uuid": "{d301}"},
        "repository": {
            "type": "repository",
            "name": "course",
            "full_name": "Team/course",
            "uuid": "{673a}",
            "is_private": True,
            "scm": "git",
            "links": {
                "self": {"href": "https://api.bitbucket.org/2.0/repositories/Team/course"},
                "html": {"href": page},
            },
        },
        "push": {"changes": [*changes] or [cloud_change(cloud_ref(), cloud_ref(commit=BEFORE))]},
        **others,
    }


def bitbucket(
    payload: object = None,
    event: str = "repo:push",
    *,
    secret: bytes = SECRET,
    id: str = "d-1",  # noqa: A002
) -> Delivery:
    body = encoded(bitbucket_push() if payload is None else payload)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Bitbucket-Webhooks/2.0",
        "X-Event-Key": event,
        "X-Hook-UUID": "h-1",
        "X-Request-UUID": id,
        "X-Attempt-Number": "1",
        "X-Hub-Signature": f"sha256={hexadecimal(body, secret)}",
    }
    return Delivery(headers, body)


def server_change(ref: str = "refs/heads/main", before: str = BEFORE, after: str = COMMIT) -> Payload:
    kind = "ADD" if before == ZERO else "DELETE" if after == ZERO else "UPDATE"
    about = {"id": ref, "displayId": ref.split("/", 2)[-1], "type": "TAG" if "/tags/" in ref else "BRANCH"}
    return {"ref": about, "refId": ref, "fromHash": before, "toHash": after, "type": kind}


def server_push(*changes: Payload, **others: object) -> Payload:
    """A push of one commit to `main`, unless other changes are given, as Bitbucket Data Center 8 sends it."""
    host = "https://git.example.com"
    return {
        "eventKey": "repo:refs_changed",
        "date": "2026-11-29T12:45:32+1000",
        "actor": {"name": "ada", "id": 1, "displayName": "Ada", "slug": "ada", "type": "NORMAL"},
        "repository": {
            "slug": "sample",
            "id": 84,
            "name": "Sample",
            "scmId": "git",
            "project": {"key": "LAB", "id": 84, "name": "The Lab", "public": False, "type": "NORMAL"},
            "public": False,
            "links": {
                "clone": [
                    {"href": "ssh://git@git.example.com:7999/lab/sample.git", "name": "ssh"},
                    {"href": f"{host}/scm/lab/sample.git", "name": "http"},
                ],
                "self": [{"href": f"{host}/projects/LAB/repos/sample/browse"}],
            },
        },
        "changes": [*changes] or [server_change()],
        "commits": [{"id": COMMIT, "displayId": COMMIT[:11], "message": "größer"}],
        "toCommit": {"id": COMMIT, "displayId": COMMIT[:11], "message": "größer"},
        **others,
    }


def server(
    payload: object = None,
    event: str = "repo:refs_changed",
    *,
    secret: bytes = SECRET,
    id: str = "d-1",  # noqa: A002
) -> Delivery:
    body = encoded(server_push() if payload is None else payload)
    headers = {
        "Content-Type": "application/json; charset=UTF-8",
        "X-Event-Key": event,
        "X-Request-Id": id,
        "X-Hub-Signature": f"sha256={hexadecimal(body, secret)}",
    }
    return Delivery(headers, body)


# One of each


PUSHES: Mapping[str, Callable[..., Delivery]] = {
    "gitea": gitea,
    "forgejo": forgejo,
    "gitlab": gitlab,
    "bitbucket": bitbucket,
    "bitbucket-server": server,
}
"""A push to the default branch of each host but GitHub, by the word in the route; `id` and `secret` may be given."""
REPOSITORIES: Mapping[str, str] = {
    "gitea": "https://git.example.com/lab/sample",
    "forgejo": "https://git.example.com/lab/sample",
    "gitlab": "https://gitlab.com/uni/stats/course",
    "bitbucket": "https://bitbucket.org/Team/course",
    "bitbucket-server": "https://git.example.com/scm/lab/sample",
}
"""The repositories of these pushes, as the host spells them."""
