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
from tests.builds.making import AT, ask, ended, engine_in, replace
from tests.builds.rules import load
from tests.parts.githost import GitHost, commit, git
from tests.parts.refnames import NAMES

MAIN = "refs/heads/main"
RULE = TriggerRule(
    name="all",
    push=PushRule(branches=("main", "release/*"), tags=("v*",), paths=("binder/**",)),
    build=BuildTemplate(tags=("{ref_name}",)),
)


class House:
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
        return [self.engine.get(name) for name in dict.fromkeys(ask.name for ask in looked.asked)]

    def end(self, build: Build, state: State = State.SUCCEEDED, reason: Reason | None = None) -> None:
        done = ended(self.engine.get(build.name), state)
        self.engine.write(replace(done, status=replace(done.status, reason=reason)))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with GitHost(tmp_path / "host") as host:
        house = House(tmp_path, host, engine_in(tmp_path / "state"))
        yield house
        house.engine.close()


def test_the_default_branch_is_asked_for_once(house: House) -> None:
    head = house.commit()
    house.commit("other")
    git("tag", "v1", head, cwd=house.bare)
    sync = house.sync()
    (build,) = house.asked(sync)
    (cause,) = build.causes
    assert build.request.commit == head
    assert (cause.by, cause.kind, cause.ref, cause.trigger) == ("sync", Kind.SYNC, MAIN, "default")
    assert (cause.source, cause.id) == (house.url, f"sync:{MAIN}:{head}")
    for again in (sync, house.sync()):
        looked = house.look(again)
        assert (looked.asked, looked.comparison.known, looked.complete) == ((), 1, True)
    assert house.engine.get(build.name) == build


def test_every_name_that_git_takes(house: House) -> None:
    """Names that are not UTF-8 are skipped: no record can hold them."""
    head = house.commit()
    for name in (*NAMES, "latin-1-\udce9"):
        git("update-ref", f"refs/heads/{name}", head, cwd=house.bare)
    (build,) = house.asked(house.sync([TriggerRule(name="all")]))
    assert {cause.ref for cause in build.causes} == {f"refs/heads/{name}" for name in NAMES}


def test_each_selected_ref_asks_for_its_tags(house: House) -> None:
    """Annotated tags are peeled. Two refs of one commit share one build."""
    head, release = house.commit(), house.commit("release/1")
    git("tag", "-m", "Annotated", "v1", head, cwd=house.bare)
    git("tag", "not-selected", release, cwd=house.bare)
    looked = house.look(house.sync([RULE]))
    builds = {build.request.commit: build for build in house.builds(looked)}
    wanted = {commit: [(cause.ref, cause.tags) for cause in build.causes] for commit, build in builds.items()}
    assert wanted == {
        head: [(MAIN, ("main",)), ("refs/tags/v1", ("v1",))],
        release: [("refs/heads/release/1", ("release-1",))],
    }


def test_a_tag_that_came_later_joins_the_build_that_is_there(house: House) -> None:
    sync = house.sync([RULE])
    (build,) = house.asked(sync)
    house.end(build)
    git("tag", "v2", build.request.commit, cwd=house.bare)
    (again,) = house.asked(sync)
    assert (again.name, again.state) == (build.name, State.SUCCEEDED)
    assert [cause.tags for cause in again.unanswered] == [("v2",)]


def test_what_failed_is_not_tried_again(house: House) -> None:
    sync = house.sync([RULE])
    (build,) = house.asked(sync)
    house.end(build, State.FAILED, Reason.REPOSITORY)
    for again in (sync, house.sync([RULE])):
        assert house.asked(again) == []


def test_what_its_host_did_not_serve_is_tried_again(house: House) -> None:
    """A webhook may arrive before its host serves the commit.

    Each such failure causes another try, but none while one runs.
    """
    sync = house.sync([RULE])
    (build,) = house.asked(sync)
    for number in (1, 2):
        last = Attempt(number=number, node="local", written_at=house.now, state=State.FAILED, unserved=True)
        current = house.engine.get(build.name)
        attempts = (*current.status.attempts, last)
        house.engine.write(replace(current, status=replace(current.status, attempts=attempts)))
        house.end(build, State.FAILED, Reason.REPOSITORY)
        (again,) = house.asked(house.sync([RULE]))
        assert (again.name, again.state) == (build.name, State.QUEUED)
        assert [(cause.by, cause.tags, cause.push) for cause in again.unanswered] == [("sync", ("main",), None)]
        assert house.asked(sync) == []


def test_what_moved_while_nobody_told_supersedes_and_may_come_back(house: House) -> None:
    sync = house.sync([RULE])
    (first,) = house.asked(sync)
    house.commit()
    (second,) = house.asked(sync)
    assert [cause.push for cause in second.causes] == [Push(before=first.request.commit)]
    house.end(first, State.CANCELLED, Reason.SUPERSEDED)
    house.end(second)
    house.move(first.request.commit)
    (back,) = house.asked(sync)
    assert (back.name, back.state) == (first.name, State.QUEUED)
    assert [cause.push for cause in back.unanswered] == [None]
    assert house.asked(sync) == []
    house.end(back)
    house.move(second.request.commit)
    (again,) = house.asked(sync)
    assert (again.name, [cause.tags for cause in again.unanswered]) == (second.name, [("main",)])
    house.move(first.request.commit)
    (third,) = house.asked(sync)
    assert [cause.tags for cause in third.unanswered] == [("main",)], "however often"


def test_no_more_is_asked_for_than_there_is_room_and_the_rest_follows(house: House) -> None:
    for branch in ("release/1", "release/2", "release/3"):
        house.commit(branch)
    house.engine.accept([ask("somebody-elses")])
    sync = house.sync([RULE], most_waiting=3)
    looked = house.look(sync)
    assert (len(looked.asked), looked.left, looked.complete) == (2, 2, False)
    assert [build.causes[0].ref for build in house.builds(looked)] == [MAIN, "refs/heads/release/1"]
    for build in house.builds(looked):
        house.end(build)
    looked = house.look(sync)
    assert (len(looked.asked), looked.comparison.known, looked.left) == (2, 2, 0)


def test_a_full_queue_leaves_the_rest_for_later(house: House, tmp_path: Path) -> None:
    house.commit("release/1")
    house.engine.close()
    house.engine = engine_in(tmp_path / "small", max_queued=1)
    sync = house.sync([RULE])
    looked = house.look(sync)
    assert (len(looked.asked), looked.left) == (1, 1)
    house.end(house.builds(looked)[0])
    assert [build.causes[0].ref for build in house.asked(sync)] == ["refs/heads/release/1"]


def test_comparing_writes_nothing(house: House) -> None:
    compared = house.sync().compare(Listed(url=house.url))
    (missing,) = compared.missing
    with pytest.raises(NotFound):
        house.engine.get(missing.name)


def test_what_a_template_misses_is_said_and_holds_nothing_up(house: House) -> None:
    """A push made up for a ref has no pusher, and a trigger may name any repository."""
    gone = house.host.url("ada/gone")
    rules = [
        TriggerRule(name="a", push=PushRule(branches=("release/*",)), build=BuildTemplate(subdir="{data.pusher.name}")),
        TriggerRule(name="b", push=PushRule(branches=("main",)), build=BuildTemplate(repository=gone)),
        TriggerRule(
            name="c", push=PushRule(branches=("main",)), build=BuildTemplate(repository="http://127.0.0.1:1/a")
        ),
        TriggerRule(name="d", push=PushRule(branches=("main",))),
    ]
    house.commit("release/1")
    looked = house.look(house.sync(rules))
    assert [build.causes[0].trigger for build in house.builds(looked)] == ["d"]
    assert looked.complete
    assert [sentence.partition(": ")[0] for sentence in looked.comparison.refused] == [
        MAIN,
        MAIN,
        "refs/heads/release/1",
    ]
    assert "no such repository" in looked.comparison.refused[0]
    assert "{data.pusher.name}" in looked.comparison.refused[2]


def test_a_host_that_a_template_names_and_that_does_not_answer_is_asked_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "RESOLVE_TIMEOUT", 0.5)
    house.host.create("ada/other")
    house.host.hanging.add("/ada/other.git")
    looked = house.look(
        house.sync([TriggerRule(name="a", build=BuildTemplate(repository=house.host.url("ada/other")))])
    )
    assert (looked.asked, looked.complete, len(looked.comparison.unanswered)) == ((), False, 1)


@pytest.mark.parametrize(
    ("path", "error"), [("ada/gone", CannotBuild), ("ada/inside", RepositoryRefused), ("ada/hanging", Unreachable)]
)
def test_what_cannot_be_looked_at(
    path: str, error: type[RequestError], house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "LIST_TIMEOUT", 0.5)
    house.host.redirects["/ada/inside.git"] = "http://127.0.0.2:9/ada/page.git"
    house.host.hanging.add("/ada/hanging.git")
    with pytest.raises(error):
        house.look(house.sync(), house.host.url(path))


def test_what_is_not_allowed_is_not_asked(house: House) -> None:
    before = len(house.host.requests)
    with pytest.raises(RepositoryRefused):
        house.look(house.sync(), house.url.replace("127.0.0.1", "localhost"))
    assert len(house.host.requests) == before


def test_an_empty_repository_has_nothing_to_build(house: House) -> None:
    house.host.create("ada/empty")
    looked = house.look(house.sync(), house.host.url("ada/empty"))
    assert (looked.asked, looked.comparison.known, looked.complete) == ((), 0, True)


def test_a_stored_credential_is_used(house: House, tmp_path: Path) -> None:
    house.host.passwords["/ada/page.git"] = ("ada", "secret")
    with pytest.raises(CannotBuild, match="does not show"):
        house.look(house.sync(), house.host.url("ada/page"))
    (tmp_path / "git-credentials").write_text(f"http://ada:secret@127.0.0.1:{house.host.port}/ada/page\n")
    sync = house.sync(credentials=lambda: credentials(tmp_path / "git-credentials"))
    assert len(house.asked(sync, house.host.url("ada/page"))) == 1
