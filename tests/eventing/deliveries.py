"""Deliveries of each Git host, in the shapes of its documentation and signed as it signs, of made-up repositories."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        """With other headers (`_` for `-`), or without those that are `None`."""
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
    """Of one commit on the default branch, as Gitea 1.27 tells it."""
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
    """As a form it is signed over the JSON."""
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


# One of each


PUSHES: Mapping[str, Callable[..., Delivery]] = {"gitea": gitea, "forgejo": forgejo}
"""A push to the default branch of each host but GitHub, by the word in the route; `id` and `secret` may be given."""
REPOSITORIES: Mapping[str, str] = dict.fromkeys(("gitea", "forgejo"), "https://git.example.com/lab/sample")
"""The repositories that they are of."""
