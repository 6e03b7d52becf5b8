"""The paths that a pull request changes, from its host's API: no webhook contains them.

The list is complete or missing, because half a list could leave a request unbuilt. An empty list means that the host
has not compared the branches yet. Bitbucket Cloud answers with a redirect, and is not queried.

https://docs.github.com/en/rest/pulls/pulls#list-pull-requests-files,
https://docs.gitlab.com/api/merge_requests/#list-merge-request-diffs, Gitea's and Forgejo's `/api/swagger`
(`repoGetPullRequestFiles`), https://developer.atlassian.com/server/bitbucket/rest/ (`pull-requests/{id}/changes`)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import msgspec

from builds.clients.githubapi import HEADERS
from builds.clients.hostapi import HostApi, UnclearError
from builds.repository import HostKind, Repository
from eventing.statuses import APIS

MAX_PAGES = 11
MAX_PAGE = 4 << 20
"""Bytes of a page: GitHub and GitLab include each file's changes."""

_PLACES = {
    HostKind.GITHUB: "pulls/{number}/files?per_page=100&page={page}",
    HostKind.GITLAB: "merge_requests/{number}/diffs?per_page=100&page={page}",
    HostKind.GITEA: "pulls/{number}/files?limit=50&page={page}",
    HostKind.FORGEJO: "pulls/{number}/files?limit=50&page={page}",
    HostKind.BITBUCKET_SERVER: "pull-requests/{number}/changes?limit=500&start={start}",
}


class _Path(msgspec.Struct):
    toString: str  # noqa: N815


class _File(msgspec.Struct):
    """A changed file's current and former path, by the names of GitHub and Gitea, of GitLab, and of Bitbucket."""

    filename: str | None = None
    previous_filename: str | None = None
    new_path: str | None = None
    old_path: str | None = None
    path: _Path | None = None
    srcPath: _Path | None = None  # noqa: N815

    @property
    def paths(self) -> Iterator[str]:
        texts = (self.filename, self.previous_filename, self.new_path, self.old_path)
        yield from filter(None, texts)
        yield from (path.toString for path in (self.path, self.srcPath) if path)


class _ChangesPage(msgspec.Struct):
    values: list[_File]
    isLastPage: bool  # noqa: N815
    nextPageStart: int | None = None  # noqa: N815


_LISTS = cast("type[list[_File] | _ChangesPage]", list[_File] | _ChangesPage)


def changed_paths(
    api: HostApi, repository: Repository, number: int, token: str | None, deadline: float
) -> Sequence[str]:
    """All changed paths, also a file's former path, each once. `deadline` is a time of `time.monotonic`.

    Raises UnclearError if the host gives no clear answer, or lists more than `MAX_PAGES` pages.
    """
    if repository.kind is None or repository.kind not in _PLACES:
        raise UnclearError
    try:
        base = APIS[repository.kind].base(repository.url)
    except ValueError:
        raise UnclearError from None
    headers = HEADERS if repository.kind is HostKind.GITHUB else {"Accept": "application/json"}
    paths: dict[str, None] = {}
    start: int | None = 0
    for page in range(1, MAX_PAGES + 1):
        url = f"{base}/{_PLACES[repository.kind].format(number=number, page=page, start=start)}"
        found = api.get(repository.host, url, token, deadline, _LISTS, headers=headers, most=MAX_PAGE)
        files, start = _page(found, page)
        paths.update(dict.fromkeys(path for file in files for path in file.paths))
        if start is None:
            break
    if start is not None or not paths:
        raise UnclearError
    return tuple(paths)


def _page(found: list[_File] | _ChangesPage | None, page: int) -> tuple[Sequence[_File], int | None]:
    """The files, and where the next page begins, if the list continues. A list ends with an empty page, because the
    host's administrator decides how many files fit on one. Raises UnclearError."""
    if found is None:
        raise UnclearError
    if isinstance(found, _ChangesPage):
        return found.values, None if found.isLastPage else found.nextPageStart
    return found, page if found else None
