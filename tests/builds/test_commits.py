"""Completion of abbreviated commits by hosts' APIs over a real repository, and the errors where it fails."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from builds.clients.commits import whole_commit
from builds.clients.git import Credential, RefResolver, ResolvedRef
from builds.clients.hostapi import UnclearError
from builds.errors import UnknownRef
from builds.repository import HostKind, Policy, Repository, canonical
from tests.parts.githost import GitHost, git

PATH = "team/sub/page"
PLACES = {
    HostKind.GITHUB: (f"/api/v3/repos/{PATH}/commits/", "sha", 422),
    HostKind.GITLAB: ("/api/v4/projects/team%2Fsub%2Fpage/repository/commits/", "id", 404),
    HostKind.GITEA: (f"/api/v1/repos/{PATH}/git/commits/", "sha", 404),
    HostKind.FORGEJO: (f"/api/v1/repos/{PATH}/git/commits/", "sha", 404),
}
KINDS = pytest.mark.parametrize("kind", list(PLACES))


class Api:
    """The API of a host of one kind, for one repository.

    `says` replaces its answer. `heard` collects the `Authorization` fields.
    """

    def __init__(self, host: GitHost, kind: HostKind) -> None:
        self.bare = host.bare(PATH)
        self.place, self.field, self.missing = PLACES[kind]
        self.says: tuple[int, Mapping[str, str], bytes] | None = None
        self.heard: list[str | None] = []

    def __call__(self, path: str, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        self.heard.append(headers.get("Authorization"))
        if self.says:
            return self.says
        beginning = unquote(path.removeprefix(self.place))
        ids = [line for line in git("rev-list", "--all", cwd=self.bare).splitlines() if line.startswith(beginning)]
        if not path.startswith(self.place) or len(ids) != 1:
            return self.missing, {}, b'{"message": "No commit found"}'
        return 200, {"Content-Type": "application/json"}, json.dumps({self.field: ids[0], "extra": 1}).encode()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    with GitHost(tmp_path / "git") as host:
        (tmp_path / "content").mkdir()
        (tmp_path / "content/page").write_text("Something")
        host.create(PATH, tmp_path / "content")
        yield host


@pytest.fixture
def head(host: GitHost) -> str:
    return git("rev-parse", "main", cwd=host.bare(PATH))


def repository(host: GitHost, kind: HostKind | None) -> Repository:
    return canonical(host.url(PATH), {f"127.0.0.1:{host.port}": kind} if kind else {})


def resolver(host: GitHost, token: str | None = None) -> RefResolver:
    known = (Credential(f"http://127.0.0.1:{host.port}", "", "x", token),) if token else ()
    return RefResolver(Policy([f"{host.base}/**"]), lambda: known)


@KINDS
@pytest.mark.parametrize("digits", [7, 12, 39])
@pytest.mark.parametrize("token", [None, "canary"])
def test_the_host_says_which_commit_it_is(
    kind: HostKind, digits: int, token: str | None, host: GitHost, head: str
) -> None:
    host.api = api = Api(host, kind)
    asks = resolver(host, token)
    assert asks.resolve(repository(host, kind), head[:digits].upper()) == ResolvedRef(None, head)
    assert asks.commit(repository(host, kind), head[:digits]) == head
    assert api.heard[-1] == (token and f"Bearer {token}")


@KINDS
def test_a_branch_of_that_name_wins(kind: HostKind, host: GitHost, head: str) -> None:
    host.api = api = Api(host, kind)
    other = git("commit-tree", f"{head}^{{tree}}", "-m", "Other", cwd=host.bare(PATH))
    git("update-ref", f"refs/heads/{head[:8]}", other, cwd=host.bare(PATH))
    assert resolver(host).resolve(repository(host, kind), head[:8]) == ResolvedRef(f"refs/heads/{head[:8]}", other)
    assert api.heard == []


UNCLEAR: Mapping[str, Any] = {
    "broken": (500, {}, b""),
    "asked too often": (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "4000000000"}, b"{}"),
    "not for strangers": (401, {}, b"{}"),
    "moved": (301, {"Location": "http://127.0.0.1:1/"}, b""),
    "no JSON": (200, {}, b"<html>"),
    "another's": (200, {}, json.dumps({"sha": "1" * 40, "id": "1" * 40}).encode()),
    "no commit": (200, {}, b'{"sha": "main", "id": "main"}'),
}


@KINDS
@pytest.mark.parametrize("answer", UNCLEAR.values(), ids=UNCLEAR)
def test_where_it_does_not_say_the_whole_rule_is_told(kind: HostKind, answer: Any, host: GitHost, head: str) -> None:
    host.api = api = Api(host, kind)
    api.says = answer
    digits = "2" + head[1:9]
    with pytest.raises(
        UnknownRef, match=rf"no branch or tag '{digits}'.*does not say .*40 or 64 hexadecimal.*7 or more"
    ):
        resolver(host).resolve(repository(host, kind), digits)
    with pytest.raises(UnknownRef, match=r"^127.0.0.1 does not say which commit"):
        resolver(host).commit(repository(host, kind), digits)


@KINDS
def test_a_commit_that_is_not_there(kind: HostKind, host: GitHost, head: str) -> None:
    host.api = Api(host, kind)
    digits = ("0" if head[0] != "0" else "1") * 7
    with pytest.raises(UnknownRef, match=rf"no commit, or more than one, that begins with {digits}.*40 or 64"):
        resolver(host).resolve(repository(host, kind), digits)


@pytest.mark.parametrize("kind", [None, HostKind.BITBUCKET_SERVER])
def test_a_host_without_such_an_api_is_not_asked(kind: HostKind | None, host: GitHost, head: str) -> None:
    host.api = api = Api(host, HostKind.GITHUB)
    with pytest.raises(UnknownRef, match=r"40 or 64 hexadecimal digits. On GitHub, GitLab"):
        resolver(host).resolve(repository(host, kind), head[:7])
    assert api.heard == []


def test_strangers_who_use_up_their_requests_leave_those_of_a_token(host: GitHost, head: str) -> None:
    host.api = api = Api(host, HostKind.GITHUB)
    known: list[Credential] = []
    asks = RefResolver(Policy([f"{host.base}/**"]), lambda: known)
    api.says = UNCLEAR["asked too often"]
    for _ in range(2):
        with pytest.raises(UnknownRef):
            asks.commit(repository(host, HostKind.GITHUB), head[:7])
    assert len(api.heard) == 1
    api.says = None
    known.append(Credential(f"http://127.0.0.1:{host.port}", "", "x", "canary"))
    assert asks.commit(repository(host, HostKind.GITHUB), head[:7]) == head


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://github.com/ada/page", "https://api.github.com/repos/ada/page/commits/abc1234"),
        ("https://gitlab.com/a/b/c", "https://gitlab.com/api/v4/projects/a%2Fb%2Fc/repository/commits/abc1234"),
        ("https://bitbucket.org/a/b", "https://api.bitbucket.org/2.0/repositories/a/b/commit/abc1234"),
    ],
)
def test_where_the_hosts_that_everybody_knows_are_asked(url: str, place: str) -> None:
    class Asked:
        def get(self, host: str, url: str, *_: object, **__: object) -> None:
            assert (host, url) == (canonical(self.repository).host, place)
            raise UnclearError

        repository = url

    with pytest.raises(UnclearError):
        whole_commit(Asked(), canonical(url), "abc1234", None, time.monotonic())  # type: ignore[arg-type]
