"""Looks up an abbreviated commit by a host's API, because Git itself looks up refs only.

https://docs.github.com/en/rest/commits/commits, https://docs.gitlab.com/api/commits/, Gitea's and Forgejo's
`/api/swagger` (`repoGetSingleCommit`), https://developer.atlassian.com/cloud/bitbucket/rest/api-group-commits/
"""

from __future__ import annotations

from urllib.parse import quote, unquote

import msgspec

from builds.clients.githubapi import HEADERS, api_of
from builds.clients.hostapi import HostApi, UnclearError
from builds.repository import HostKind, Repository, is_commit


class _FoundCommit(msgspec.Struct):
    """A commit by one of three names: GitHub's and Gitea's, GitLab's, Bitbucket's."""

    sha: str = ""
    id: str = ""
    hash: str = ""


def whole_commit(api: HostApi, repository: Repository, digits: str, token: str | None, deadline: float) -> str | None:
    """The one commit of the repository that begins with `digits` (lower case); `None` if there is not exactly one.

    Raises UnclearError if the host has no such API, or no clear answer. `deadline` is of `time.monotonic`.
    """
    url = _url(repository, digits)
    if url is None:
        raise UnclearError
    headers = HEADERS if repository.kind is HostKind.GITHUB else {"Accept": "application/json"}
    found = api.get(repository.host, url, token, deadline, _FoundCommit, headers=headers, missing=(404, 422))
    commit = found and (found.sha or found.id or found.hash)
    if not commit:
        return None
    if not is_commit(commit) or not commit.startswith(digits):  # GitHub's API also accepts a branch
        raise UnclearError
    return commit


def _url(repository: Repository, digits: str) -> str | None:
    """The API address of a commit; `None` for kinds of hosts without such an address."""
    base = repository.url.removesuffix(repository.path).rstrip("/")
    match repository.kind:
        case HostKind.GITHUB:
            return f"{api_of(repository)}/repos/{repository.path}/commits/{digits}"
        case HostKind.GITLAB:
            project = quote(unquote(repository.path), safe="")
            return f"{base}/api/v4/projects/{project}/repository/commits/{digits}"
        case HostKind.GITEA | HostKind.FORGEJO:
            return f"{base}/api/v1/repos/{repository.path}/git/commits/{digits}"
        case HostKind.BITBUCKET:
            return f"https://api.bitbucket.org/2.0/repositories/{repository.path}/commit/{digits}"
    return None
