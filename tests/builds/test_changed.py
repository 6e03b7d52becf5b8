"""The changed paths of pull requests, from the paged lists of hosts' APIs. An incomplete list must not count."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from builds.clients.git import Credential, RefResolver
from builds.repository import HostKind, Policy, Repository, canonical
from tests.parts.githost import GitHost

PATH = "scm/lab/page"
PLACES: Mapping[HostKind, tuple[str, int]] = {
    HostKind.GITHUB: (rf"/api/v3/repos/{PATH}/pulls/7/files\?per_page=100&page=(\d+)", 100),
    HostKind.GITLAB: (r"/api/v4/projects/scm%2Flab%2Fpage/merge_requests/7/diffs\?per_page=100&page=(\d+)", 100),
    HostKind.GITEA: (r"/api/v1/repos/lab/page/pulls/7/files\?limit=50&page=(\d+)", 50),
    HostKind.BITBUCKET_SERVER: (
        r"/rest/api/latest/projects/lab/repos/page/pull-requests/7/changes\?limit=500&start=(\d+)",
        500,
    ),
}
KINDS = pytest.mark.parametrize("kind", list(PLACES))


class Api:
    """The API for a pull request that renames each of `names`; a page has at most `most` entries."""

    def __init__(self, kind: HostKind, names: Sequence[str], most: int | None = None) -> None:
        self.kind, self.names = kind, names
        self.place, usual = PLACES[kind]
        self.most = most or usual
        self.says: dict[str, tuple[int, Mapping[str, str], bytes]] = {}
        self.heard: list[str | None] = []

    def __call__(self, path: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        self.heard.append(headers.get("Authorization"))
        found = re.fullmatch(self.place, path)
        if found is None:
            return 404, {}, b"{}"
        if found[1] in self.says:
            return self.says[found[1]]
        at = int(found[1])
        start = at if self.kind is HostKind.BITBUCKET_SERVER else (at - 1) * self.most
        return 200, {"ETag": f'"{at}"'}, json.dumps(self._page(start)).encode()

    def _page(self, start: int) -> Any:
        names = self.names[start : start + self.most]
        if self.kind is HostKind.BITBUCKET_SERVER:
            values = [{"path": {"toString": name}, "srcPath": {"toString": f"old/{name}"}} for name in names]
            last = start + self.most >= len(self.names)
            return {"values": values, "isLastPage": last, "nextPageStart": None if last else start + self.most}
        if self.kind is HostKind.GITLAB:
            return [{"new_path": name, "old_path": f"old/{name}", "diff": "@@"} for name in names]
        return [{"filename": name, "previous_filename": f"old/{name}", "patch": "@@"} for name in names]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    with GitHost(tmp_path / "git") as host:
        yield host


def repository(host: GitHost, kind: HostKind | None) -> Repository:
    path = "lab/page" if kind is HostKind.GITEA else PATH
    return canonical(host.url(path), {f"127.0.0.1:{host.port}": kind} if kind else {})


def changed(host: GitHost, kind: HostKind | None, token: str | None = None) -> Sequence[str] | None:
    known = (Credential(f"http://127.0.0.1:{host.port}", "", "x", token),) if token else ()
    return RefResolver(Policy([f"{host.base}/**"]), lambda: known).changed(repository(host, kind), 7)


@KINDS
@pytest.mark.parametrize("token", [None, "canary"])
def test_all_pages_and_what_files_were_called_before(kind: HostKind, token: str | None, host: GitHost) -> None:
    names = [f"{number}.txt" for number in range(PLACES[kind][1] + 1)]
    host.api = api = Api(kind, names)
    assert {*(changed(host, kind, token) or ())} == {*names, *(f"old/{name}" for name in names)}
    assert {*api.heard} == {token and f"Bearer {token}"}


@KINDS
def test_a_server_that_gives_fewer_at_a_time(kind: HostKind, host: GitHost) -> None:
    host.api = Api(kind, ["a", "b", "c"], most=2)
    assert {"a", "b", "c"} <= {*(changed(host, kind) or ())}


@KINDS
def test_more_than_anybody_reads_is_not_told(kind: HostKind, host: GitHost) -> None:
    host.api = Api(kind, [f"{number}" for number in range(12)], most=1)
    assert changed(host, kind) is None


UNCLEAR: Mapping[str, tuple[int, Mapping[str, str], bytes]] = {
    "broken": (500, {}, b""),
    "asked too often": (429, {"Retry-After": "60"}, b"{}"),
    "not for strangers": (401, {}, b"{}"),
    "gone": (404, {}, b"{}"),
    "moved": (302, {"Location": "http://127.0.0.1:1/"}, b""),
    "no JSON": (200, {}, b"<html>"),
    "another shape": (200, {}, b'[{"filename": 5}]'),
    "a long one": (200, {}, b"[" + b" " * (5 << 20) + b"]"),
}


@KINDS
@pytest.mark.parametrize("answer", UNCLEAR.values(), ids=UNCLEAR)
def test_half_a_list_is_none(kind: HostKind, answer: tuple[int, Mapping[str, str], bytes], host: GitHost) -> None:
    host.api = api = Api(kind, ["a", "b", "c"], most=2)
    api.says["2"] = answer
    assert changed(host, kind) is None


@KINDS
def test_a_request_that_is_not_compared_yet_may_change_anything(kind: HostKind, host: GitHost) -> None:
    host.api = Api(kind, [])
    assert changed(host, kind) is None


@pytest.mark.parametrize("kind", [None, HostKind.BITBUCKET])
def test_hosts_that_are_not_asked(kind: HostKind | None, host: GitHost) -> None:
    host.api = api = Api(HostKind.GITHUB, ["a"])
    assert changed(host, kind) is None
    assert api.heard == []
