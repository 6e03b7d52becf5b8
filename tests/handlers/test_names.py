"""Every valid branch name of Git survives from each kind of request to each output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from builds.build import Build
from builds.report import event as told
from builds.transitions import change
from builds.triggers import BuildTemplate, TriggerRule
from eventing.http import decode, encode
from handlers import logs
from tests.handlers.harness import REPOSITORY, SECRET, Harness, frames, push, signed
from tests.parts.githost import GitHost, git
from tests.parts.refnames import NAMES

TAGGED = TriggerRule(name="all", build=BuildTemplate(tags=("{ref_name}",)))
BY_FULL_NAME = re.compile(r"-.*|HEAD|refs/.*|[0-9a-f]{40}")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_INTERVAL", 0.02)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    """A Git host on which each name is a branch with its own commit."""
    with GitHost(tmp_path / "git") as host:
        (tmp_path / "content").mkdir()
        (tmp_path / "content/page").touch()
        head, bare = host.create("ada/names", tmp_path / "content"), host.bare("ada/names")
        for name in NAMES:
            made = git("commit-tree", f"{head}^{{tree}}", "-m", name, cwd=bare)
            git("update-ref", f"refs/heads/{name}", made, cwd=bare)
        yield host


def commit_of(host: GitHost, name: str) -> str:
    return git("rev-parse", f"refs/heads/{name}", cwd=host.bare("ada/names"))


def is_shown(harness: Harness, build: Build, name: str) -> None:
    """Check that the list, the pages and the events in both modes carry the name."""
    (cause,) = build.causes
    assert cause.ref == f"refs/heads/{name}"
    listed = harness.client.get("/api/v1/builds").json["items"]
    assert f"refs/heads/{name}" in [each["ref"] for each in listed]
    assert harness.client.get(f"/api/v1/builds/{build.name}").json["ref"] == cause.ref
    for page in ("/", f"/builds/{build.name}"):
        assert harness.client.get(page).status_code == 200
    event = told(build, "queued", 1, source="/kiln", now=datetime(2026, 3, 1, tzinfo=UTC))
    for mode in ("binary", "structured"):
        headers, content = encode(event, mode)  # type: ignore[arg-type]
        assert all(value.isascii() and value.isprintable() for value in headers.values())
        (again,) = decode(headers, content)
        assert again == event
        assert again.data["ref"] == cause.ref  # type: ignore[index]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_webhook_of_it(name: str, harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(triggers=[TAGGED])
    answer = harness.client.post("/webhooks/github", **signed(push(ref=f"refs/heads/{name}")))
    assert answer.status_code == 202, answer.text
    (build,) = harness.builds()
    is_shown(harness, build, name)
    (tag,) = build.causes[0].tags
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", tag)


def test_the_api_by_its_full_and_its_short_name(harnesses: Callable[..., Harness], host: GitHost) -> None:
    harness = harnesses(allowed=[f"{host.base}/**"])
    for name in NAMES:
        for ref in (f"refs/heads/{name}", *([] if BY_FULL_NAME.fullmatch(name) else [name])):
            build = harness.ask(repository=host.url("ada/names"), commit=None, ref=ref)
            assert build.request.commit == commit_of(host, name)
            assert build.causes[-1].ref == f"refs/heads/{name}"
        is_shown(harness, change(build, causes=build.causes[:1]), name)


def test_binderhub_s_address_of_it(harnesses: Callable[..., Harness], host: GitHost) -> None:
    harness = harnesses(allowed=[f"{host.base}/**"])
    for name in NAMES:
        ref = f"refs/heads/{name}" if BY_FULL_NAME.fullmatch(name) else name
        url = f"/build/git/{quote(host.url('ada/names'), safe='')}/{quote(ref)}"
        with closing(harness.client.get(url, buffered=False)) as answer:
            said = next(frame for frame in frames(answer.response) if "data" in frame)  # type: ignore[arg-type]
        assert json.loads(said["data"])["phase"] == "waiting", said
        asked = {build.request.commit: build for build in harness.builds()}[commit_of(host, name)]
        assert asked.causes[-1].ref == f"refs/heads/{name}"


@pytest.mark.parametrize("ref", [f"refs/heads/{'a/' * 2000}b", "refs/heads/a..b", "refs/heads/.a"])
def test_a_ref_that_is_not_taken_is_200_and_says_why(
    ref: str, harness: Harness, harnesses: Callable[..., Harness]
) -> None:
    for each in (harness, harnesses(triggers=[TAGGED])):
        answer = each.client.post("/webhooks/github", **signed(push(ref=ref)))
        assert answer.status_code == 200, answer.text
        assert answer.json["builds"] == []
        assert answer.json["reason"]
        assert not each.builds()


def test_refs_that_only_look_alike_are_two(harnesses: Callable[..., Harness]) -> None:
    """A push to one ref must not supersede a build of the other."""
    harness = harnesses(triggers=[TAGGED])
    for number, name in enumerate(("caf\u00e9", "cafe\u0301", "Main", "main", "a\u200cb", "ab")):
        head = {**push()["head_commit"], "id": f"{number + 1}" * 40}  # type: ignore[dict-item]
        delivery = signed(push(ref=f"refs/heads/{name}", head_commit=head, after=head["id"]), delivery=f"d-{number}")
        assert harness.client.post("/webhooks/github", **delivery).status_code == 202
    causes = [build.causes[0] for build in harness.builds()]
    assert len({cause.ref for cause in causes}) == 6
    assert len({cause.tags for cause in causes}) == 6


def test_names_that_are_not_utf_8_supersede_nothing(harnesses: Callable[..., Harness]) -> None:
    """Hosts replace every such byte by one character, so two names may look the same here."""
    harness = harnesses(triggers=[TAGGED])
    for number, name in enumerate(("caf\ufffd", "cafe")):
        delivery = signed(push(ref=f"refs/heads/{name}"), delivery=f"d-{number}")
        assert harness.client.post("/webhooks/github", **delivery).status_code == 202
    (build,) = harness.builds()
    assert [cause.push is None for cause in build.causes] == [True, False]


@pytest.mark.parametrize("ref", ["pull/7/head", "refs/pull/7/head", "merge-requests/7/head"])
def test_a_proposed_change_from_the_api_and_binderhub_s_address(
    ref: str, harnesses: Callable[..., Harness], host: GitHost
) -> None:
    full = f"refs/{ref.removeprefix('refs/')}"
    git("update-ref", full, commit_of(host, "feature/a-b"), cwd=host.bare("ada/names"))
    harness = harnesses(allowed=[f"{host.base}/**"])
    url = f"/build/git/{quote(host.url('ada/names'), safe='')}/{ref}"
    with closing(harness.client.get(url, buffered=False)) as answer:
        said = next(frame for frame in frames(answer.response) if "data" in frame)  # type: ignore[arg-type]
    assert json.loads(said["data"])["phase"] == "waiting", said
    build = harness.ask(repository=host.url("ada/names"), commit=None, ref=ref, tags=["{ref_name}", "mine"])
    assert build.request.commit == commit_of(host, "feature/a-b")
    assert [(cause.ref, cause.push) for cause in build.causes] == [(full, None)] * 2
    assert harness.builds() == (build,)


def test_a_branch_that_is_called_as_a_commit_is(harness: Harness, harnesses: Callable[..., Harness]) -> None:
    """Its tag differs from the tag of that commit's own image. A request that names the latter is still refused."""
    name = "f" * 40
    tagged = harnesses(triggers=[TAGGED])
    assert tagged.client.post("/webhooks/github", **signed(push(ref=f"refs/heads/{name}"))).status_code == 202
    assert tagged.builds()[0].causes[0].tags == (f"_{name}",)
    answer = harness.client.post("/api/v1/builds", json={"repository": REPOSITORY, "commit": "1" * 40, "tags": [name]})
    assert answer.status_code == 400
    assert SECRET.decode() not in answer.text
