"""Commits that no clone has, and names that git could take for them."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from builds.builder.spec import Tags
from builds.image import legal_tag
from builds.repository import short_name
from tests.docker.builder.conftest import asked
from tests.parts.building import Builder
from tests.parts.githost import GitHost, commit, git
from tests.parts.refnames import NAMES
from tests.parts.registry import Registry

CHANGE = "refs/pull/1/head"


@pytest.fixture
def proposed(host: GitHost, path: str, tmp_path: Path) -> str:
    """The commit of a pull request. The commit on the branch cannot be built."""
    content = tmp_path / "content"
    content.mkdir()
    (content / "Dockerfile").write_text("FROM nowhere.invalid/x\n")
    host.create(path, content)
    bare = host.bare(path)
    (content / "Dockerfile").write_text(f"FROM scratch\nCOPY Dockerfile /\nENV RUN={secrets.token_hex(8)}\n")
    made = commit(bare, content, branch="change")
    git("update-ref", CHANGE, made, cwd=bare)
    git("update-ref", "-d", "refs/heads/change", cwd=bare)
    return made


def test_the_commit_of_a_pull_request(
    proposed: str, path: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    attempt = builder.run(asked(host, path, proposed, registry))
    assert attempt.status == 0, attempt.text


@pytest.mark.parametrize("named", [True, False])
def test_a_host_that_gives_only_what_refs_lead_to(
    named: bool, proposed: str, path: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    bare = host.bare(path)
    newer = git("commit-tree", f"{proposed}^{{tree}}", "-p", proposed, "-m", "Newer", cwd=bare)
    git("update-ref", CHANGE, newer, cwd=bare)
    host.old.add(f"/{path}.git")
    refs = ("refs/pull/2/head", CHANGE) if named else ()
    attempt = builder.run(asked(host, path, proposed, registry), refs=refs)
    assert attempt.status == (0 if named else 64), attempt.text


def test_a_commit_that_its_branch_has_left(
    proposed: str, path: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    git("update-ref", "-d", CHANGE, cwd=host.bare(path))
    attempt = builder.run(asked(host, path, proposed, registry))
    assert attempt.status == 0, attempt.text


def test_beside_every_other_name(proposed: str, path: str, builder: Builder, host: GitHost, registry: Registry) -> None:
    """A branch and a tag that are called as the commit is stand for another, which cannot be built."""
    bare = host.bare(path)
    other = git("rev-parse", "main", cwd=bare)
    for name in (*NAMES, proposed, "latin-1-\udce9"):
        git("update-ref", f"refs/heads/{name}", other, cwd=bare)
        git("update-ref", f"refs/tags/{name}", other, cwd=bare)
    attempt = builder.run(asked(host, path, proposed, registry))
    assert attempt.status == 0, attempt.text
    host.old.add(f"/{path}.git")
    attempt = builder.run(asked(host, path, proposed, registry), refs=(CHANGE,), force=True)
    assert attempt.status == 0, attempt.text


def test_a_tag_that_two_names_make_is_set_for_one(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    head = host.create(path, tmp_path / "content")
    refs = ("refs/heads/a/b", "refs/heads/a+b", "refs/tags/v1", "refs/heads/v1", "refs/heads/a\U0001f680")
    for ref in refs:
        git("update-ref", ref, head, cwd=host.bare(path))
    request = asked(host, path, head, registry)
    tags = [Tags(ref=ref, names=(legal_tag(short_name(ref)),)) for ref in refs]
    some = builder.run(request, tags=(tags[0], tags[4], Tags(ref=refs[2], names=("v1", "latest"))))
    assert some.result.image, some.text
    assert {*some.result.image.tags} == {"latest", "a-"}, some.text
    assert "The tag v1 is not set: it belongs to refs/heads/v1" in some.text
    every = builder.run(request, tags=tuple(tags))
    assert every.result.image, every.text
    assert {*every.result.image.tags} == {"a-b", "v1", "a-"}, every.text
