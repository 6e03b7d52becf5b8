"""Deliveries about pull and merge requests, in the shapes of each host's documentation.

https://docs.github.com/en/webhooks/webhook-events-and-payloads#pull_request
https://docs.gitlab.com/user/project/integrations/webhook_events/#merge-request-events
https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/#Pull-request-events
https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html#Eventpayload-Pullrequest
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.eventing.deliveries import (
    BEFORE,
    COMMIT,
    SECRET,
    Delivery,
    Payload,
    bitbucket,
    bitbucket_push,
    encoded,
    forgejo,
    gitea,
    gitea_push,
    gitlab,
    gitlab_push,
    hexadecimal,
    server,
    server_push,
)

AT = "2026-11-29T12:00:00Z"


def github_request(
    action: str = "opened",
    *,
    number: int = 7,
    commit: str = COMMIT,
    base: str = "main",
    head: str = "topic",
    fork: bool = False,
    labels: Sequence[str] = (),
    repository: str = "https://github.com/octo/stats",
    at: str = AT,
    **changes: object,
) -> Payload:
    """A pull request as GitHub sends it; a `fork` belongs to a stranger."""
    own = {
        "id": 1,
        "url": repository,
        "html_url": repository,
        "clone_url": f"{repository}.git",
        "full_name": "octo/stats",
    }
    other = {**own, "id": 2, "clone_url": "https://github.com/mallory/stats.git", "full_name": "mallory/stats"}
    named = [{"id": 3, "name": label} for label in labels]
    return {
        "action": action,
        "number": number,
        "pull_request": {
            "number": number,
            "state": "closed" if action == "closed" else "open",
            "draft": False,
            "merged": False,
            "updated_at": at,
            "labels": named,
            "head": {"label": f"octo:{head}", "ref": head, "sha": commit, "repo": other if fork else own},
            "base": {"label": f"octo:{base}", "ref": base, "sha": BEFORE, "repo": own},
        },
        "repository": {**own, "default_branch": "main"},
        "sender": {"login": "ada"},
        **changes,
    }


def github(payload: object, event: str = "pull_request", *, id: str = "d-1", secret: bytes = SECRET) -> Delivery:  # noqa: A002
    body = encoded(payload)
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": id,
        "X-Hub-Signature-256": f"sha256={hexadecimal(body, secret)}",
    }
    return Delivery(headers, body)


def gitea_request(action: str = "opened", *, fork: bool = False, **more: Any) -> Payload:
    """A pull request as Gitea 1.27 sends it."""
    repository = {**gitea_push()["repository"]}
    payload = github_request(action, **more)
    other = {**repository, "clone_url": "https://git.example.com/mallory/sample.git"}
    payload["pull_request"]["head"]["repo"] = other if fork else repository
    payload["pull_request"]["base"]["repo"] = repository
    return {**payload, "repository": repository}


def gitlab_request(
    action: str = "open",
    *,
    number: int = 7,
    commit: str = COMMIT,
    base: str = "main",
    head: str = "topic",
    fork: bool = False,
    labels: Sequence[str] = (),
    attributes: Mapping[str, object] = {},
    **changes: object,
) -> Payload:
    """A merge request as GitLab 18 sends it; `attributes` are additional ones."""
    project = gitlab_push()["project"]
    named = [{"id": 206, "title": label, "type": "ProjectLabel"} for label in labels]
    return {
        "object_kind": "merge_request",
        "event_type": "merge_request",
        "user": {"username": "ada"},
        "project": project,
        "repository": {"name": "course", "homepage": project["web_url"]},
        "object_attributes": {
            "id": 99,
            "iid": number,
            "target_branch": base,
            "source_branch": head,
            "source_project_id": 14 if fork else 15,
            "target_project_id": 15,
            "state": "opened",
            "updated_at": "2026-11-29 12:00:00 UTC",
            "last_commit": {"id": commit, "message": "größer\n"},
            "draft": False,
            "labels": named,
            "action": action,
            **attributes,
        },
        "labels": named,
        "changes": {},
        **changes,
    }


def bitbucket_request(
    *,
    number: int = 7,
    commit: str = COMMIT[:12],
    base: str = "main",
    head: str = "topic",
    fork: bool = False,
    at: str = "2026-11-29T12:00:00.123456+00:00",
    **changes: object,
) -> Payload:
    """A pull request as Bitbucket Cloud sends it, with an abbreviated commit."""
    repository = bitbucket_push()["repository"]
    own = {"type": "repository", "full_name": repository["full_name"], "uuid": "{673a}"}
    other = {"type": "repository", "full_name": "mallory/course", "uuid": "{674a}"}
    return {
        "actor": {"nickname": "ada"},
        "pullrequest": {
            "id": number,
            "state": "OPEN",
            "source": {"branch": {"name": head}, "commit": {"hash": commit}, "repository": other if fork else own},
            "destination": {"branch": {"name": base}, "commit": {"hash": BEFORE[:12]}, "repository": own},
            "updated_on": at,
        },
        "repository": repository,
        **changes,
    }


def server_request(
    key: str = "pr:opened",
    *,
    number: int = 7,
    commit: str = COMMIT,
    base: str = "main",
    head: str = "topic",
    fork: bool = False,
    at: int = 1795953600000,
    **changes: object,
) -> Payload:
    """A pull request as Bitbucket Data Center sends it: only the request's own page reveals the clone URL."""
    own = {key: value for key, value in server_push()["repository"].items() if key != "links"}
    other = {**own, "id": 85, "project": {"key": "~MALLORY"}}

    def side(name: str, at: str, repository: Payload) -> Payload:
        return {"id": f"refs/heads/{name}", "displayId": name, "latestCommit": at, "repository": repository}

    return {
        "eventKey": key,
        "date": "2026-11-29T12:00:00+0000",
        "actor": {"name": "ada"},
        "pullRequest": {
            "id": number,
            "version": 1,
            "state": "OPEN",
            "updatedDate": at,
            "fromRef": side(head, commit, other if fork else own),
            "toRef": side(base, BEFORE, own),
            "links": {"self": [{"href": f"https://git.example.com/projects/LAB/repos/sample/pull-requests/{number}"}]},
        },
        **changes,
    }


Make = Callable[..., Delivery]

OPENED: Mapping[str, Make] = {
    "github": lambda id="d-1", **more: github(github_request(**more), id=id),  # noqa: A006
    "gitea": lambda id="d-1", **more: gitea(gitea_request(**more), "pull_request", id=id),  # noqa: A006
    "forgejo": lambda id="d-1", **more: forgejo(gitea_request(**more), "pull_request", id=id),  # noqa: A006
    "gitlab": lambda id="d-1", **more: gitlab(gitlab_request(**more), "Merge Request Hook", id=id),  # noqa: A006
    "bitbucket": lambda id="d-1", **more: bitbucket(bitbucket_request(**more), "pullrequest:created", id=id),  # noqa: A006
    "bitbucket-server": lambda id="d-1", **more: server(server_request(**more), "pr:opened", id=id),  # noqa: A006
}
"""An opened pull request of each host, by the word in the route."""

BEFORE_IT = {"before": BEFORE, "after": COMMIT}
MOVED: Mapping[str, Make] = {
    "github": lambda id="d-2", **more: github(github_request("synchronize", **BEFORE_IT, **more), id=id),  # noqa: A006
    "gitea": lambda id="d-2", **more: gitea(gitea_request("synchronized", **BEFORE_IT, **more), "pull_request", id=id),  # noqa: A006
    "forgejo": lambda id="d-2", **more: forgejo(  # noqa: A006
        gitea_request("synchronized", **BEFORE_IT, **more), "pull_request_sync", id=id
    ),
    "gitlab": lambda id="d-2", **more: gitlab(  # noqa: A006
        gitlab_request("update", attributes={"oldrev": BEFORE}, **more), "Merge Request Hook", id=id
    ),
    "bitbucket": lambda id="d-2", **more: bitbucket(  # noqa: A006
        bitbucket_request(at="2026-11-29T12:30:00+00:00", **more), "pullrequest:updated", id=id
    ),
    "bitbucket-server": lambda id="d-2", **more: server(  # noqa: A006
        server_request("pr:from_ref_updated", previousFromHash=BEFORE, **more), "pr:from_ref_updated", id=id
    ),
}
"""A pull request whose head was `BEFORE` until now."""

CLOSED: Mapping[str, Sequence[Make]] = {
    "github": [lambda **more: github(github_request("closed", **more), id="d-3")],
    "gitea": [lambda **more: gitea(gitea_request("closed", **more), "pull_request", id="d-3")],
    "forgejo": [lambda **more: forgejo(gitea_request("closed", **more), "pull_request", id="d-3")],
    "gitlab": [
        lambda action=action, **more: gitlab(gitlab_request(action, **more), "Merge Request Hook", id="d-3")
        for action in ("close", "merge")
    ],
    "bitbucket": [
        lambda key=key, **more: bitbucket(bitbucket_request(**more), key, id="d-3")
        for key in ("pullrequest:fulfilled", "pullrequest:rejected")
    ],
    "bitbucket-server": [
        lambda key=key, **more: server(server_request(key, **more), key, id="d-3")
        for key in ("pr:merged", "pr:declined", "pr:deleted")
    ],
}
"""The ways in which a pull request ends."""

REFS: Mapping[str, str] = {
    "github": "refs/pull/7/head",
    "gitea": "refs/pull/7/head",
    "forgejo": "refs/pull/7/head",
    "gitlab": "refs/merge-requests/7/head",
    "bitbucket": "refs/pull-requests/7/from",
    "bitbucket-server": "refs/pull-requests/7/from",
}
