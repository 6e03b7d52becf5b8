"""GitHub's REST API, used with a token: it resolves a ref in a request that may be free of charge.

With a token GitHub counts requests by the hour, except for those that it answers with 304, Not Modified. Without a
token, all clients behind one address share sixty requests an hour, so Kiln queries Git instead, which has no such
limit. Git is also queried whenever the API gives no positive answer. So errors about repositories and refs have one
source.

https://docs.github.com/en/rest/git/refs,
https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import quote

import msgspec

from builds.clients.hostapi import HostApi, UnclearError
from builds.repository import HostKind, Repository, is_commit

T = TypeVar("T")

HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}


class _Object(msgspec.Struct):
    type: str
    sha: str


class _GitRef(msgspec.Struct):
    ref: str
    object: _Object


class _About(msgspec.Struct):
    default_branch: str


class GitHubClient:
    """A client for github.com and every configured GitHub Enterprise Server."""

    def __init__(self, api: HostApi) -> None:
        self._api = api

    def default_branch(self, repository: Repository, token: str, deadline: float) -> str | None:
        """The full name of HEAD's branch; `None` without a clear answer. `deadline` is a time of `time.monotonic`."""
        try:
            about = self._get(repository, "", token, deadline, _About)
        except UnclearError:
            return None
        return f"refs/heads/{about.default_branch}" if about else None

    def commit(
        self, repository: Repository, refs: Sequence[str], token: str, deadline: float
    ) -> tuple[str, str] | None:
        """The first of these full refs that exists, and its commit; `None` without a clear answer, or for an annotated
        tag."""
        try:
            for ref in refs:
                found = self._get(repository, f"/git/ref/{quote(ref.removeprefix('refs/'))}", token, deadline, _GitRef)
                if found is not None:
                    exact = found.ref == ref and found.object.type == "commit" and is_commit(found.object.sha)
                    return (ref, found.object.sha) if exact else None
        except UnclearError:
            pass
        return None

    def _get(self, repository: Repository, path: str, token: str, deadline: float, kind: type[T]) -> T | None:
        """`None` for a missing object. Raises UnclearError without a clear answer."""
        if repository.kind is not HostKind.GITHUB:
            raise UnclearError
        url = f"{api_of(repository)}/repos/{repository.path}{path}"
        return self._api.get(repository.host, url, token, deadline, kind, headers=HEADERS)


def api_of(repository: Repository) -> str:
    """The API's address for the repository's host: github.com or a GitHub Enterprise Server."""
    if repository.host == "github.com":
        return "https://api.github.com"
    return f"{repository.url.removesuffix(repository.path).rstrip('/')}/api/v3"
