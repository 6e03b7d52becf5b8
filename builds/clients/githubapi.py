"""GitHub's REST API, where Kiln has a token for the repository: what a ref points at, in a request that may be free.

With a token GitHub counts requests by the hour, and none of those that it answers with 304, Not Modified. Without a
token there are sixty requests an hour for everybody behind one address: then Git itself is asked, whom nobody counts.
Git is asked as well wherever the API says anything but yes: what is wrong with a repository or a ref is told in one way
only.

https://docs.github.com/en/rest/git/refs, https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
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


class _Ref(msgspec.Struct):
    ref: str
    object: _Object


class _About(msgspec.Struct):
    default_branch: str


class GitHubClient:
    """Of github.com and of every configured host of that kind."""

    def __init__(self, api: HostApi) -> None:
        self._api = api

    def default_branch(self, repository: Repository, token: str, deadline: float) -> str | None:
        """The full name of the branch that HEAD is; `None` where the API does not say. `deadline` is of
        `time.monotonic`."""
        try:
            about = self._get(repository, "", token, deadline, _About)
        except UnclearError:
            return None
        return f"refs/heads/{about.default_branch}" if about else None

    def commit(
        self, repository: Repository, refs: Sequence[str], token: str, deadline: float
    ) -> tuple[str, str] | None:
        """The first of these full refs that is there, and the commit that it points at; `None` where the API does not
        say, or where it is a tag with a message of its own."""
        try:
            for ref in refs:
                found = self._get(repository, f"/git/ref/{quote(ref.removeprefix('refs/'))}", token, deadline, _Ref)
                if found is not None:
                    exact = found.ref == ref and found.object.type == "commit" and is_commit(found.object.sha)
                    return (ref, found.object.sha) if exact else None
        except UnclearError:
            pass
        return None

    def _get(self, repository: Repository, path: str, token: str, deadline: float, kind: type[T]) -> T | None:
        """`None` for what is not there. Raises UnclearError for all that is neither that nor an answer."""
        if repository.kind is not HostKind.GITHUB:
            raise UnclearError
        url = f"{api_of(repository)}/repos/{repository.path}{path}"
        return self._api.get(repository.host, url, token, deadline, kind, headers=HEADERS)


def api_of(repository: Repository) -> str:
    """Where the API of the repository's host is, github.com or a GitHub Enterprise Server."""
    if repository.host == "github.com":
        return "https://api.github.com"
    return f"{repository.url.removesuffix(repository.path).rstrip('/')}/api/v3"
