"""GitHub's API in front of Git: used with the repository's token and conditional requests, and skipped where it fails.

The server here follows GitHub's documentation (REST API, 2022-11-28) over a real repository, which Git serves too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import pytest

from builds.clients.git import Credential, RefResolver, ResolvedRef
from builds.errors import UnknownRef
from builds.repository import HostKind, Policy, Repository, canonical
from tests.parts.githost import GitHost, git

TOKEN = "ghp_canary"
PATH = "ada/page"
Answer = tuple[int, Mapping[str, str], bytes]


class Api:
    """The API of a GitHub Enterprise Server for one repository.

    `says` replaces its answer. `told` collects all statuses.
    """

    def __init__(self, host: GitHost) -> None:
        self.bare = host.bare(PATH)
        self.says: Callable[[], Answer] | None = None
        self.told: list[int] = []

    def __call__(self, path: str, headers: Mapping[str, str]) -> Answer:
        answer = self.says() if self.says else self._answer(path, headers)
        self.told.append(answer[0])
        return answer

    def _answer(self, path: str, headers: Mapping[str, str]) -> Answer:
        if headers["Authorization"] != f"Bearer {TOKEN}" or not path.startswith(f"/api/v3/repos/{PATH}"):
            return 404, {}, b""
        rest = unquote(path.removeprefix(f"/api/v3/repos/{PATH}"))
        found = self._ref(rest.removeprefix("/git/ref/")) if rest else {"default_branch": self._head()}
        if found is None:
            return 404, {}, b'{"message": "Not Found"}'
        content = json.dumps(found).encode()
        etag = f'W/"{hashlib.sha256(content).hexdigest()}"'
        if headers.get("If-None-Match") == etag:
            return 304, {"ETag": etag}, b""
        return 200, {"ETag": etag, "Content-Type": "application/json; charset=utf-8"}, content

    def _head(self) -> str:
        return git("symbolic-ref", "--short", "HEAD", cwd=self.bare)

    def _ref(self, name: str) -> object:
        shown = git("for-each-ref", "--format=%(objecttype) %(objectname)", f"refs/{name}", cwd=self.bare)
        if len(shown.split()) != 2:
            return None
        kind, sha = shown.split()
        return {"ref": f"refs/{name}", "object": {"type": kind, "sha": sha}}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    with GitHost(tmp_path / "git") as host:
        content = tmp_path / "content"
        content.mkdir()
        (content / "page").write_text("Something")
        head, bare = host.create(PATH, content), host.bare(PATH)
        for ref in ("refs/heads/feat/x", "refs/heads/both", "refs/tags/light"):
            git("update-ref", ref, head, cwd=bare)
        other = git("commit-tree", f"{head}^{{tree}}", "-m", "Other", cwd=bare)
        git("update-ref", "refs/tags/both", other, cwd=bare)
        git("tag", "-m", "Annotated", "v1", head, cwd=bare)
        host.passwords[f"/{PATH}.git"] = ("x-access-token", TOKEN)
        yield host


@pytest.fixture
def api(host: GitHost) -> Api:
    host.api = api = Api(host)
    return api


@pytest.fixture
def resolve(host: GitHost) -> Callable[[str | None], ResolvedRef]:
    known = (Credential(f"http://127.0.0.1:{host.port}", "", "x-access-token", TOKEN),)
    resolver = RefResolver(Policy([f"{host.base}/**"]), lambda: known)
    return lambda ref: resolver.resolve(repository(host), ref)


def repository(host: GitHost) -> Repository:
    return canonical(host.url(PATH), {f"127.0.0.1:{host.port}": HostKind.GITHUB})


def head_of(host: GitHost, ref: str = "main") -> str:
    return git("rev-parse", f"{ref}^{{commit}}", cwd=host.bare(PATH))


def asked_git(host: GitHost) -> bool:
    return any(target.startswith(f"/{PATH}.git/") for target in host.requests)


@pytest.mark.parametrize(
    ("ref", "full"),
    [
        (None, "refs/heads/main"),
        ("HEAD", "refs/heads/main"),
        ("main", "refs/heads/main"),
        ("feat/x", "refs/heads/feat/x"),
        ("refs/tags/light", "refs/tags/light"),
        ("light", "refs/tags/light"),
        ("both", "refs/heads/both"),
    ],
)
def test_what_the_api_says_is_what_git_says_and_git_is_not_asked(
    ref: str | None, full: str, host: GitHost, api: Api, resolve: Callable[[str | None], ResolvedRef]
) -> None:
    assert resolve(ref) == ResolvedRef(full, head_of(host, full))
    assert not asked_git(host)
    assert api.told[-1] == 200


def test_the_same_again_is_asked_on_the_condition_that_it_has_changed(
    host: GitHost, api: Api, resolve: Callable[[str | None], ResolvedRef], tmp_path: Path
) -> None:
    first = resolve("main")
    assert resolve("main") == first
    assert api.told == [200, 304]
    bare = host.bare(PATH)
    pushed = git("commit-tree", f"{first.commit}^{{tree}}", "-p", first.commit, "-m", "Next", cwd=bare)
    git("update-ref", "refs/heads/main", pushed, cwd=bare)
    assert resolve("main").commit == pushed
    assert api.told == [200, 304, 200]
    assert not asked_git(host)


def test_a_tag_with_a_message_is_peeled_by_git(
    host: GitHost, api: Api, resolve: Callable[[str | None], ResolvedRef]
) -> None:
    assert resolve("v1") == ResolvedRef("refs/tags/v1", head_of(host))
    assert asked_git(host)


def test_what_is_not_there_is_told_by_git(
    host: GitHost, api: Api, resolve: Callable[[str | None], ResolvedRef]
) -> None:
    with pytest.raises(UnknownRef, match="no branch or tag 'nowhere'"):
        resolve("nowhere")
    assert api.told == [404, 404]


SILENT: Mapping[str, Answer] = {
    "broken": (500, {}, b""),
    "asked too often": (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "4000000000"}, b"{}"),
    "asked too fast": (429, {"Retry-After": "600"}, b"{}"),
}
SAYS_NOTHING: Mapping[str, Answer] = {
    "moved": (301, {"Location": "http://127.0.0.1:1/"}, b""),
    "forbidden": (403, {}, b"{}"),
    "no JSON": (200, {}, b"<html>"),
    "another's": (200, {}, b'{"ref": "refs/heads/main-2", "object": {"type": "commit", "sha": "' + b"1" * 40 + b'"}}'),
    "no commit": (200, {}, b'{"ref": "refs/heads/both", "object": {"type": "commit", "sha": "main"}}'),
    "not modified": (304, {}, b""),
}


@pytest.mark.parametrize("answer", [*SILENT.values(), *SAYS_NOTHING.values()], ids=[*SILENT, *SAYS_NOTHING])
def test_whatever_else_it_says_git_is_asked(
    answer: Answer, host: GitHost, api: Api, resolve: Callable[[str | None], ResolvedRef]
) -> None:
    api.says = lambda: answer
    assert resolve("both") == ResolvedRef("refs/heads/both", head_of(host))
    assert asked_git(host)
    again = len(api.told)
    assert again == 1, "it is not asked for the tag: a branch of that name may be there"
    api.says = None
    resolve("both")
    rests = answer in SILENT.values()
    assert len(api.told) == again + (not rests)


def test_an_api_that_hangs_is_not_waited_for_twice(
    host: GitHost, api: Api, resolve: Callable[[str | None], ResolvedRef]
) -> None:
    def stall() -> Answer:
        host.released.wait(20)
        return 200, {}, b""

    api.says = stall
    began = time.monotonic()
    assert resolve("main").commit == head_of(host)
    assert time.monotonic() - began < 8
    api.says = None
    assert resolve("main").commit == head_of(host)
    assert 304 not in api.told
    assert 200 not in api.told


def test_without_a_token_or_on_another_kind_of_host_only_git_is_asked(host: GitHost, api: Api) -> None:
    del host.passwords[f"/{PATH}.git"]
    policy = Policy([f"{host.base}/**"])
    assert RefResolver(policy).resolve(repository(host), "main").commit == head_of(host)
    known = (Credential(f"http://127.0.0.1:{host.port}", "", "x-access-token", TOKEN),)
    gitlab = canonical(host.url(PATH), {f"127.0.0.1:{host.port}": HostKind.GITLAB})
    assert RefResolver(policy, lambda: known).resolve(gitlab, "main").commit == head_of(host)
    assert api.told == []
