"""Webhooks of every Git host, through the route: one build of the right commit, or the right refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from builds.build import Kind
from builds.clients.git import Resolved
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.repository import HostKind, Policy, Repository
from builds.triggers import PushRule, TriggerRule
from tests.eventing.deliveries import (
    COMMIT,
    PUSHES,
    REPOSITORIES,
    SECRET,
    SIGNING,
    TAG,
    Delivery,
    gitea,
    gitea_push,
    gitlab,
    gitlab_push,
    gitlab_signed,
)
from tests.handlers.house import House
from tests.parts.published import published

EVERYTHING = TriggerRule(name="all", push=PushRule(branches=("**",), tags=("**",)))

words = pytest.mark.parametrize("word", PUSHES)


@pytest.fixture
def house_of(houses: Callable[..., House]) -> Callable[..., House]:
    """A house that has secrets for every host, and knows the host of `word`."""

    def make(word: str, **settings: object) -> House:
        own = {"triggers": [EVERYTHING], "webhook_secrets": lambda _: (b"an old one", SECRET)}
        return houses(**own | {"hosts": {"git.example.com": HostKind(word)}} | settings)

    return make


HouseOf = Callable[..., House]


@words
def test_a_signed_push_is_a_build(house_of: HouseOf, word: str) -> None:
    house = house_of(word, triggers=None)
    answer = house.client.post(f"/webhooks/{word}", **PUSHES[word]().post)
    (build,) = house.builds()
    assert answer.status_code == 202
    assert answer.json == {"builds": [{"name": build.name, "location": f"/api/v1/builds/{build.name}"}]}
    assert (build.request.repository, build.request.commit) == (REPOSITORIES[word], COMMIT)
    (cause,) = build.causes
    assert (cause.by, cause.kind, cause.type) == (f"webhook:{word}", Kind.PUSH, f"com.{word}.push")
    assert (cause.ref, cause.id) == ("refs/heads/main", "d-1")


@words
def test_deliveries_that_repeat_are_one_build(house_of: HouseOf, word: str) -> None:
    house = house_of(word)
    for id_ in ("d-1", "d-1", "d-2", "d-1"):
        assert house.client.post(f"/webhooks/{word}", **PUSHES[word](id=id_).post).status_code == 202
    (build,) = house.builds()
    assert [cause.id for cause in build.causes] == ["d-1", "d-2"]


@words
def test_a_wrong_or_missing_signature_is_401(house_of: HouseOf, word: str) -> None:
    house = house_of(word)
    right = PUSHES[word]()
    unsigned = {name: value for name, value in right.headers.items() if not name.lower().endswith(("e", "token"))}
    wrong = [PUSHES[word](secret=b"another"), Delivery(unsigned, right.body)]
    if word != "gitlab":  # a token signs nothing
        wrong.append(Delivery(right.headers, right.body.replace(b"refs/heads/main", b"refs/heads/side")))
    for delivery in wrong:
        answer = house.client.post(f"/webhooks/{word}", **delivery.post)
        assert answer.status_code == 401
        assert SECRET.decode() not in answer.text
    assert not house.builds()


@words
def test_without_a_secret_for_the_host_nothing_comes_in(house_of: HouseOf, word: str) -> None:
    house = house_of(word, webhook_secrets=lambda other: () if other == word else (SECRET,))
    assert house.client.post(f"/webhooks/{word}", **PUSHES[word]().post).status_code == 403
    assert not house.builds()


@words
def test_one_host_s_secret_names_no_other_host_s_repository(house_of: HouseOf, word: str) -> None:
    host = REPOSITORIES[word].split("/")[2]
    for other in {*HostKind} - {word}:
        house = house_of(word, hosts={host: other})
        assert house.client.post(f"/webhooks/{word}", **PUSHES[word]().post).status_code == 403
        assert not house.builds()


def test_what_gitlab_signed_long_ago_is_401(house_of: HouseOf) -> None:
    at = datetime(2026, 11, 29, 12, tzinfo=UTC)
    delivery = gitlab_signed(at=at)
    for minutes, status in ((0, 202), (4, 202), (6, 401), (600, 401)):
        now = at + timedelta(minutes=minutes)
        house = house_of("gitlab", webhook_secrets=lambda _: (SECRET, SIGNING), now=lambda now=now: now)
        assert house.client.post("/webhooks/gitlab", **delivery.post).status_code == status
        assert len(house.builds()) == (status == 202)


def test_a_tag_that_gitlab_does_not_resolve_is_looked_up(house_of: HouseOf) -> None:
    tag = gitlab(gitlab_push(object_kind="tag_push", ref="refs/tags/v1", after=TAG, checkout_sha=None))
    asked = []

    class Resolver:
        def resolve(self, repository: Repository, ref: str | None) -> Resolved:
            asked.append((repository.url, ref))
            return Resolved(ref, COMMIT)

    intake = Intake(
        instance="test", policy=Policy(), hosts={}, images=ImagePolicy("registry.example/"), resolver=Resolver()
    )
    house = house_of("gitlab", intake=intake)
    assert house.client.post("/webhooks/gitlab", **tag.post).status_code == 202
    assert asked == [(REPOSITORIES["gitlab"], "refs/tags/v1")]
    assert house.builds()[0].request.commit == COMMIT


def test_what_gitea_really_sent(house_of: HouseOf) -> None:
    """A test delivery, and what deletes, is 200 and no build; each commit that a ref pointed at is one build."""
    house = house_of("gitea", webhook_secrets=lambda _: (b"recorded-not-secret",))
    built, nothing = set(), set()
    for path in sorted(published("gitea").glob("*.json")):
        recorded = json.loads(path.read_text())
        headers = {name: value for name, value in recorded["headers"].items() if name not in ("Host", "Content-Length")}
        answer = house.client.post("/webhooks/gitea", data=recorded["body"].encode(), headers=headers)
        assert answer.status_code in (200, 202), (path.name, answer.text)
        (built if answer.status_code == 202 else nothing).add(path.stem)
        assert bool(answer.json["builds"]) is (answer.status_code == 202)
    assert built == {
        "push", "push-branch-new", "push-branch-new-commits", "push-commits", "push-empty-commit", "push-first",
        "push-form", "push-forced", "push-tag", "push-tag-annotated", "push-through-api",
    }  # fmt: skip
    assert {"test-delivery", "redelivery", "delete-tag", "delete-branch", "push-tag-deleted"} <= nothing
    refs = {cause.ref for build in house.builds() for cause in build.causes if build.request.commit.startswith("abdb")}
    assert refs == {"refs/heads/topic", "refs/tags/v1", "refs/tags/v2"}


def test_paths_that_are_not_all_known_may_be_any(house_of: HouseOf) -> None:
    house = house_of("gitea", triggers=[TriggerRule(name="binder", push=PushRule(paths=("docs/**",)))])
    assert house.client.post("/webhooks/gitea", **gitea().post).status_code == 200
    cut = gitea(gitea_push(total_commits=6))
    assert house.client.post("/webhooks/gitea", **cut.post).status_code == 202
