"""Polling a listed repository, with real Git on both ends and the records of a real engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from builds.build import Attempt, Build, Kind, Push, Reason, State
from builds.clients.git import RefResolver, credentials, refs
from builds.engines import NotFound
from builds.engines.local import LocalEngine
from builds.errors import CannotBuild, RepositoryRefused, RequestError, Unreachable
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.repository import Policy
from builds.sync.missing import Listed
from builds.sync.reconciler import Sync, SyncReport
from builds.triggers import DEFAULT, BuildTemplate, PushRule, TriggerRule
from tests.builds.engine_factories import AT, local_engine, new_submission, replace, settled_build
from tests.builds.rules import load
from tests.parts.githost import GitHost, commit, git
from tests.parts.refnames import NAMES

MAIN = "refs/heads/main"
RULE = TriggerRule(
    name="all",
    push=PushRule(branches=("main", "release/*"), tags=("v*",), paths=("binder/**",)),
    build=BuildTemplate(tags=("{ref_name}",)),
)


class Harness:
    """A Git host with the repository `ada/page`, an engine, and the reconcilers between them."""

    def __init__(self, folder: Path, host: GitHost, engine: LocalEngine) -> None:
        self.host, self.engine = host, engine
        self.now = AT
        self._content = folder / "content"
        self._content.mkdir()
        host.create("ada/page")
        self.commit()

    @property
    def url(self) -> str:
        return self.host.url("ada/page").removesuffix(".git")

    @property
    def bare(self) -> Path:
        return self.host.bare("ada/page")

    def commit(self, branch: str = "main") -> str:
        (self._content / "page").write_text(f"{self.now} {branch}")
        return commit(self.bare, self._content, branch)

    def move(self, target: str, ref: str = MAIN) -> None:
        git("update-ref", ref, target, cwd=self.bare)

    def sync(self, rules: Sequence[TriggerRule] | None = None, *, most_waiting: int = 100, **more: Any) -> Sync:
        policy = Policy([f"{self.host.base}/**"])
        resolver = RefResolver(policy, **more)
        images = ImagePolicy("registry.example/")
        return Sync(
            records=self.engine,
            intake=Intake(instance="test", policy=policy, hosts={}, images=images, resolver=resolver),
            lister=resolver,
            triggers=DEFAULT if rules is None else load(rules),
            max_waiting=most_waiting,
            clock=lambda: self.now,
        )

    def look(self, sync: Sync, url: str | None = None) -> SyncReport:
        self.now += timedelta(minutes=10)
        return sync.reconcile(Listed(url=url or self.url))

    def asked(self, sync: Sync, url: str | None = None) -> list[Build]:
        """The builds that a poll requests."""
        return self.builds(self.look(sync, url))

    def builds(self, looked: SyncReport) -> list[Build]:
        return [self.engine.get(name) for name in dict.fromkeys(new_submission.name for new_submission in looked.asked)]

    def end(self, build: Build, state: State = State.SUCCEEDED, reason: Reason | None = None) -> None:
        done = settled_build(self.engine.get(build.name), state)
        self.engine.write(replace(done, status=replace(done.status, reason=reason)))


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with GitHost(tmp_path / "host") as host:
        harness = Harness(tmp_path, host, local_engine(tmp_path / "state"))
        yield harness
        harness.engine.close()


def test_the_default_branch_is_asked_for_once(harness: Harness) -> None:
    head = harness.commit()
    harness.commit("other")
    git("tag", "v1", head, cwd=harness.bare)
    sync = harness.sync()
    (build,) = harness.asked(sync)
    (cause,) = build.causes
    assert build.request.commit == head
    assert (cause.by, cause.kind, cause.ref, cause.trigger) == ("sync", Kind.SYNC, MAIN, "default")
    assert (cause.source, cause.id) == (harness.url, f"sync:{MAIN}:{head}")
    for again in (sync, harness.sync()):
        looked = harness.look(again)
        assert (looked.asked, looked.comparison.known, looked.complete) == ((), 1, True)
    assert harness.engine.get(build.name) == build


def test_every_name_that_git_takes(harness: Harness) -> None:
    """Names that are not UTF-8 are skipped: no record can hold them."""
    head = harness.commit()
    for name in (*NAMES, "latin-1-\udce9"):
        git("update-ref", f"refs/heads/{name}", head, cwd=harness.bare)
    (build,) = harness.asked(harness.sync([TriggerRule(name="all")]))
    assert {cause.ref for cause in build.causes} == {f"refs/heads/{name}" for name in NAMES}


def test_each_selected_ref_asks_for_its_tags(harness: Harness) -> None:
    """Annotated tags are peeled. Two refs of one commit share one build."""
    head, release = harness.commit(), harness.commit("release/1")
    git("tag", "-m", "Annotated", "v1", head, cwd=harness.bare)
    git("tag", "not-selected", release, cwd=harness.bare)
    looked = harness.look(harness.sync([RULE]))
    builds = {build.request.commit: build for build in harness.builds(looked)}
    wanted = {commit: [(cause.ref, cause.tags) for cause in build.causes] for commit, build in builds.items()}
    assert wanted == {
        head: [(MAIN, ("main",)), ("refs/tags/v1", ("v1",))],
        release: [("refs/heads/release/1", ("release-1",))],
    }


def test_a_tag_that_came_later_joins_the_build_that_is_there(harness: Harness) -> None:
    sync = harness.sync([RULE])
    (build,) = harness.asked(sync)
    harness.end(build)
    git("tag", "v2", build.request.commit, cwd=harness.bare)
    (again,) = harness.asked(sync)
    assert (again.name, again.state) == (build.name, State.SUCCEEDED)
    assert [cause.tags for cause in again.unanswered] == [("v2",)]


def test_what_failed_is_not_tried_again(harness: Harness) -> None:
    sync = harness.sync([RULE])
    (build,) = harness.asked(sync)
    harness.end(build, State.FAILED, Reason.REPOSITORY)
    for again in (sync, harness.sync([RULE])):
        assert harness.asked(again) == []


def test_what_its_host_did_not_serve_is_tried_again(harness: Harness) -> None:
    """A webhook may arrive before its host serves the commit.

    Each such failure causes another try, but none while one runs.
    """
    sync = harness.sync([RULE])
    (build,) = harness.asked(sync)
    for number in (1, 2):
        last = Attempt(number=number, node="local", written_at=harness.now, state=State.FAILED, unserved=True)
        current = harness.engine.get(build.name)
        attempts = (*current.status.attempts, last)
        harness.engine.write(replace(current, status=replace(current.status, attempts=attempts)))
        harness.end(build, State.FAILED, Reason.REPOSITORY)
        (again,) = harness.asked(harness.sync([RULE]))
        assert (again.name, again.state) == (build.name, State.QUEUED)
        assert [(cause.by, cause.tags, cause.push) for cause in again.unanswered] == [("sync", ("main",), None)]
        assert harness.asked(sync) == []


def test_what_moved_while_nobody_told_supersedes_and_may_come_back(harness: Harness) -> None:
    sync = harness.sync([RULE])
    (first,) = harness.asked(sync)
    harness.commit()
    (second,) = harness.asked(sync)
    assert [cause.push for cause in second.causes] == [Push(before=first.request.commit)]
    harness.end(first, State.CANCELLED, Reason.SUPERSEDED)
    harness.end(second)
    harness.move(first.request.commit)
    (back,) = harness.asked(sync)
    assert (back.name, back.state) == (first.name, State.QUEUED)
    assert [cause.push for cause in back.unanswered] == [None]
    assert harness.asked(sync) == []
    harness.end(back)
    harness.move(second.request.commit)
    (again,) = harness.asked(sync)
    assert (again.name, [cause.tags for cause in again.unanswered]) == (second.name, [("main",)])
    harness.move(first.request.commit)
    (third,) = harness.asked(sync)
    assert [cause.tags for cause in third.unanswered] == [("main",)], "however often"


def test_no_more_is_asked_for_than_there_is_room_and_the_rest_follows(harness: Harness) -> None:
    for branch in ("release/1", "release/2", "release/3"):
        harness.commit(branch)
    harness.engine.accept([new_submission("somebody-elses")])
    sync = harness.sync([RULE], most_waiting=3)
    looked = harness.look(sync)
    assert (len(looked.asked), looked.left, looked.complete) == (2, 2, False)
    assert [build.causes[0].ref for build in harness.builds(looked)] == [MAIN, "refs/heads/release/1"]
    for build in harness.builds(looked):
        harness.end(build)
    looked = harness.look(sync)
    assert (len(looked.asked), looked.comparison.known, looked.left) == (2, 2, 0)


def test_a_full_queue_leaves_the_rest_for_later(harness: Harness, tmp_path: Path) -> None:
    harness.commit("release/1")
    harness.engine.close()
    harness.engine = local_engine(tmp_path / "small", max_queued=1)
    sync = harness.sync([RULE])
    looked = harness.look(sync)
    assert (len(looked.asked), looked.left) == (1, 1)
    harness.end(harness.builds(looked)[0])
    assert [build.causes[0].ref for build in harness.asked(sync)] == ["refs/heads/release/1"]


def test_comparing_writes_nothing(harness: Harness) -> None:
    compared = harness.sync().compare(Listed(url=harness.url))
    (missing,) = compared.missing
    with pytest.raises(NotFound):
        harness.engine.get(missing.name)


def test_what_a_template_misses_is_said_and_holds_nothing_up(harness: Harness) -> None:
    """A push made up for a ref has no pusher, and a trigger may name any repository."""
    gone = harness.host.url("ada/gone")
    rules = [
        TriggerRule(name="a", push=PushRule(branches=("release/*",)), build=BuildTemplate(subdir="{data.pusher.name}")),
        TriggerRule(name="b", push=PushRule(branches=("main",)), build=BuildTemplate(repository=gone)),
        TriggerRule(
            name="c", push=PushRule(branches=("main",)), build=BuildTemplate(repository="http://127.0.0.1:1/a")
        ),
        TriggerRule(name="d", push=PushRule(branches=("main",))),
    ]
    harness.commit("release/1")
    looked = harness.look(harness.sync(rules))
    assert [build.causes[0].trigger for build in harness.builds(looked)] == ["d"]
    assert looked.complete
    assert [sentence.partition(": ")[0] for sentence in looked.comparison.refused] == [
        MAIN,
        MAIN,
        "refs/heads/release/1",
    ]
    assert "no such repository" in looked.comparison.refused[0]
    assert "{data.pusher.name}" in looked.comparison.refused[2]


def test_a_host_that_a_template_names_and_that_does_not_answer_is_asked_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "RESOLVE_TIMEOUT", 0.5)
    harness.host.create("ada/other")
    harness.host.hanging.add("/ada/other.git")
    looked = harness.look(
        harness.sync([TriggerRule(name="a", build=BuildTemplate(repository=harness.host.url("ada/other")))])
    )
    assert (looked.asked, looked.complete, len(looked.comparison.unanswered)) == ((), False, 1)


@pytest.mark.parametrize(
    ("path", "error"), [("ada/gone", CannotBuild), ("ada/inside", RepositoryRefused), ("ada/hanging", Unreachable)]
)
def test_what_cannot_be_looked_at(
    path: str, error: type[RequestError], harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "LIST_TIMEOUT", 0.5)
    harness.host.redirects["/ada/inside.git"] = "http://127.0.0.2:9/ada/page.git"
    harness.host.hanging.add("/ada/hanging.git")
    with pytest.raises(error):
        harness.look(harness.sync(), harness.host.url(path))


def test_what_is_not_allowed_is_not_asked(harness: Harness) -> None:
    before = len(harness.host.requests)
    with pytest.raises(RepositoryRefused):
        harness.look(harness.sync(), harness.url.replace("127.0.0.1", "localhost"))
    assert len(harness.host.requests) == before


def test_an_empty_repository_has_nothing_to_build(harness: Harness) -> None:
    harness.host.create("ada/empty")
    looked = harness.look(harness.sync(), harness.host.url("ada/empty"))
    assert (looked.asked, looked.comparison.known, looked.complete) == ((), 0, True)


def test_a_stored_credential_is_used(harness: Harness, tmp_path: Path) -> None:
    harness.host.passwords["/ada/page.git"] = ("ada", "secret")
    with pytest.raises(CannotBuild, match="denies access"):
        harness.look(harness.sync(), harness.host.url("ada/page"))
    (tmp_path / "git-credentials").write_text(f"http://ada:secret@127.0.0.1:{harness.host.port}/ada/page\n")
    sync = harness.sync(credentials=lambda: credentials(tmp_path / "git-credentials"))
    assert len(harness.asked(sync, harness.host.url("ada/page"))) == 1
