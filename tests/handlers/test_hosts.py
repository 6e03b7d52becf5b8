"""Webhooks of every Git host, through the route: one build of the right commit, or the right refusal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from builds.build import Kind
from builds.clients.git import ResolvedRef
from builds.errors import Unreachable
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.repository import HostKind, Policy, Repository, canonical
from builds.triggers import PushRule, TriggerRule
from tests.eventing.deliveries import (
    BEFORE,
    COMMIT,
    PUSHES,
    REPOSITORIES,
    SECRET,
    SIGNING,
    TAG,
    Delivery,
    bitbucket,
    bitbucket_push,
    cloud_change,
    cloud_ref,
    gitea,
    gitea_push,
    gitlab,
    gitlab_push,
    gitlab_signed,
    server,
    server_change,
    server_push,
)
from tests.handlers.harness import Harness
from tests.parts.published_data import published_data

EVERYTHING = TriggerRule(name="all", push=PushRule(branches=("**",), tags=("**",)))

words = pytest.mark.parametrize("word", PUSHES)


class Host:
    """A resolver for which `main` is the default branch and every ref points to one commit."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []

    def resolve(self, repository: Repository, ref: str | None) -> ResolvedRef:
        self.asked.append((repository.url, ref))
        if repository.host == "away.example":
            raise Unreachable("away.example does not answer.", retry_after=5)
        return ResolvedRef(ref or "refs/heads/main", COMMIT)


@pytest.fixture
def house_of(harnesses: Callable[..., Harness]) -> Callable[..., Harness]:
    """Return a factory of harnesses with secrets for every host and the host of `word` in their settings."""

    def make(
        word: str,
        hosts: Mapping[str, HostKind] | None = None,
        accounts: Mapping[str, str] | None = None,
        **settings: object,
    ) -> Harness:
        hosts = hosts or {"git.example.com": HostKind(word)}
        images = ImagePolicy("registry.example/kiln/")
        intake = Intake(
            instance="test", policy=Policy(), hosts=hosts, accounts=accounts, images=images, resolver=Host()
        )
        own = {"triggers": [EVERYTHING], "webhook_secrets": lambda _: (b"an old one", SECRET), "intake": intake}
        return harnesses(**own | settings)

    return make


HouseOf = Callable[..., Harness]


@words
def test_a_signed_push_is_a_build(house_of: HouseOf, word: str) -> None:
    harness = house_of(word, triggers=None)
    answer = harness.client.post(f"/webhooks/{word}", **PUSHES[word]().post)
    (build,) = harness.builds()
    assert answer.status_code == 202
    assert answer.json == {"builds": [{"name": build.name, "location": f"/api/v1/builds/{build.name}"}]}
    assert (build.request.repository, build.request.commit) == (canonical(REPOSITORIES[word]).url, COMMIT)
    (cause,) = build.causes
    assert (cause.by, cause.kind, cause.type) == (f"webhook:{word}", Kind.PUSH, f"com.{word}.push")
    assert (cause.ref, cause.id) == ("refs/heads/main", "d-1")


@words
def test_deliveries_that_repeat_are_one_build(house_of: HouseOf, word: str) -> None:
    harness = house_of(word)
    for id_ in ("d-1", "d-1", "d-2", "d-1"):
        assert harness.client.post(f"/webhooks/{word}", **PUSHES[word](id=id_).post).status_code == 202
    (build,) = harness.builds()
    assert [cause.id for cause in build.causes] == ["d-1", "d-2"]


@words
def test_a_wrong_or_missing_signature_is_401(house_of: HouseOf, word: str) -> None:
    harness = house_of(word)
    right = PUSHES[word]()
    unsigned = {
        name: value for name, value in right.headers.items() if not name.endswith(("Signature", "-256", "Token"))
    }
    wrong = [PUSHES[word](secret=b"another"), Delivery(unsigned, right.body)]
    if word != "gitlab":  # a secret token covers no body
        wrong.append(Delivery(right.headers, right.body.replace(COMMIT.encode(), b"d" * 40)))
    for delivery in wrong:
        answer = harness.client.post(f"/webhooks/{word}", **delivery.post)
        assert answer.status_code == 401
        assert SECRET.decode() not in answer.text
    assert not harness.builds()


@words
def test_without_a_secret_for_the_host_nothing_comes_in(house_of: HouseOf, word: str) -> None:
    harness = house_of(word, webhook_secrets=lambda other: () if other == word else (SECRET,))
    assert harness.client.post(f"/webhooks/{word}", **PUSHES[word]().post).status_code == 403
    assert not harness.builds()


@words
def test_one_host_s_secret_names_no_other_host_s_repository(house_of: HouseOf, word: str) -> None:
    host = REPOSITORIES[word].split("/")[2]
    for other in {*HostKind} - {word}:
        harness = house_of(word, hosts={host: other})
        assert harness.client.post(f"/webhooks/{word}", **PUSHES[word]().post).status_code == 403
        assert not harness.builds()


def test_what_gitlab_signed_long_ago_is_401(house_of: HouseOf) -> None:
    at = datetime(2026, 11, 29, 12, tzinfo=UTC)
    delivery = gitlab_signed(at=at)
    for minutes, status in ((0, 202), (4, 202), (6, 401), (600, 401)):
        now = at + timedelta(minutes=minutes)
        harness = house_of("gitlab", webhook_secrets=lambda _: (SECRET, SIGNING), now=lambda now=now: now)
        assert harness.client.post("/webhooks/gitlab", **delivery.post).status_code == status
        assert len(harness.builds()) == (status == 202)


def test_a_tag_that_gitlab_does_not_resolve_is_looked_up(house_of: HouseOf) -> None:
    tag = gitlab(gitlab_push(object_kind="tag_push", ref="refs/tags/v1", after=TAG, checkout_sha=None))
    harness = house_of("gitlab")
    assert harness.client.post("/webhooks/gitlab", **tag.post).status_code == 202
    assert [(build.request.commit, build.causes[0].ref) for build in harness.builds()] == [(COMMIT, "refs/tags/v1")]


def test_every_ref_of_a_delivery_is_built(house_of: HouseOf) -> None:
    """Bitbucket sends several refs in one delivery, including deleted ones. A redelivery adds no build."""
    harness = house_of("bitbucket")
    changes = [
        cloud_change(cloud_ref(commit="1" * 40), cloud_ref(commit=BEFORE)),
        cloud_change(None, cloud_ref("gone")),
        cloud_change(cloud_ref("v1", "2" * 40, "tag")),
        cloud_change(cloud_ref("v1.0", "2" * 40, "tag")),
    ]
    delivery = bitbucket(bitbucket_push(*changes))
    answers = [harness.client.post("/webhooks/bitbucket", **delivery.post) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    built = {build.request.commit: [cause.ref for cause in build.causes] for build in harness.builds()}
    assert built == {"1" * 40: ["refs/heads/main"], "2" * 40: ["refs/tags/v1", "refs/tags/v1.0"]}
    assert {build["name"] for build in answers[0].json["builds"]} == {build.name for build in harness.builds()}


@pytest.mark.parametrize("word", ["bitbucket", "bitbucket-server"])
def test_a_host_that_does_not_say_the_default_branch_is_asked_for_it(house_of: HouseOf, word: str) -> None:
    other = {
        "bitbucket": bitbucket(bitbucket_push(cloud_change(cloud_ref("side"), cloud_ref("side", BEFORE)))),
        "bitbucket-server": server(server_push(server_change("refs/heads/side"))),
    }
    harness = house_of(word, triggers=None)
    answer = harness.client.post(f"/webhooks/{word}", **other[word].post)
    assert (answer.status_code, harness.builds()) == (200, ())
    assert harness.client.post(f"/webhooks/{word}", **PUSHES[word]().post).status_code == 202


def test_it_is_not_asked_where_nobody_wants_to_know_or_it_is_a_stranger(house_of: HouseOf) -> None:
    host = Host()
    images = ImagePolicy("registry.example/kiln/")
    intake = Intake(instance="test", policy=Policy(), hosts={}, images=images, resolver=host)
    stranger = house_of("bitbucket-server", triggers=None, intake=intake)
    assert stranger.client.post("/webhooks/bitbucket-server", **server().post).status_code == 403
    tag = bitbucket(bitbucket_push(cloud_change(cloud_ref("v1", type="tag"))))
    default, everything = (house_of("bitbucket", intake=intake, triggers=rules) for rules in (None, [EVERYTHING]))
    assert default.client.post("/webhooks/bitbucket", **tag.post).status_code == 200
    assert everything.client.post("/webhooks/bitbucket", **bitbucket().post).status_code == 202
    assert not host.asked


def test_a_host_that_does_not_answer_is_503_so_that_it_sends_it_again(house_of: HouseOf) -> None:
    links = {"clone": [{"href": "https://away.example/r", "name": "http"}]}
    repository = {**server_push()["repository"], "links": links}
    harness = house_of("bitbucket-server", hosts={"away.example": HostKind.BITBUCKET_SERVER}, triggers=None)
    answer = harness.client.post("/webhooks/bitbucket-server", **server(server_push(repository=repository)).post)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


@words
def test_what_kiln_s_own_account_pushes_builds_nothing(house_of: HouseOf, word: str) -> None:
    """The rule applies to the webhook and to the same event from a broker."""
    host = REPOSITORIES[word].split("/")[2]
    for account, status in ((None, 202), ("kiln", 202), ("Ada", 200)):
        harness = house_of(word, accounts={host: account} if account else None)
        answer = harness.client.post(f"/webhooks/{word}", **PUSHES[word]().post)
        assert answer.status_code == status
        assert ("own account" in answer.json.get("reason", "")) is (status == 200)
        payload = json.loads(PUSHES[word]().body)
        event = {"specversion": "1.0", "id": "e", "source": "/broker", "type": f"com.{word}.push", "data": payload}
        kind = {"Content-Type": "application/cloudevents+json"}
        answer = harness.client.post("/events", data=json.dumps(event), headers=kind)
        assert answer.status_code == (204 if status == 200 else 202), answer.text
        assert bool(harness.builds()) is (status == 202)


def test_an_account_is_of_one_host(house_of: HouseOf) -> None:
    harness = house_of("gitea", accounts={"other.example.com": "ada", "git.example.com:8443": "ada"})
    assert harness.client.post("/webhooks/gitea", **gitea().post).status_code == 202


def test_a_test_of_bitbucket_s_connection_is_200_and_no_build(house_of: HouseOf) -> None:
    ping = {"data": b'{"test": true}', "headers": {"X-Event-Key": "diagnostics:ping", "X-Request-Id": "d-1"}}
    harness = house_of("bitbucket-server")
    answer = harness.client.post("/webhooks/bitbucket-server", **ping)
    assert (answer.status_code, answer.json["builds"]) == (200, [])
    assert harness.client.post("/webhooks/bitbucket", **ping).status_code == 401
    assert not harness.builds()


def test_what_gitea_really_sent(house_of: HouseOf) -> None:
    """Test deliveries and deletions get a 200 and no build. Each commit to which a ref pointed gets one build."""
    harness = house_of("gitea", webhook_secrets=lambda _: (b"recorded-not-secret",))
    built, nothing = set(), set()
    for path in sorted(published_data("gitea").glob("*.json")):
        recorded = json.loads(path.read_text())
        headers = {name: value for name, value in recorded["headers"].items() if name not in ("Host", "Content-Length")}
        answer = harness.client.post("/webhooks/gitea", data=recorded["body"].encode(), headers=headers)
        assert answer.status_code in (200, 202), (path.name, answer.text)
        (built if answer.status_code == 202 else nothing).add(path.stem)
        assert bool(answer.json["builds"]) is (answer.status_code == 202)
    assert built == {
        "push", "push-branch-new", "push-branch-new-commits", "push-commits", "push-empty-commit", "push-first",
        "push-form", "push-forced", "push-tag", "push-tag-annotated", "push-through-api",
    }  # fmt: skip
    assert {"test-delivery", "redelivery", "delete-tag", "delete-branch", "push-tag-deleted"} <= nothing
    refs = {
        cause.ref for build in harness.builds() for cause in build.causes if build.request.commit.startswith("abdb")
    }
    assert refs == {"refs/heads/topic", "refs/tags/v1", "refs/tags/v2"}


def test_paths_that_are_not_all_known_may_be_any(house_of: HouseOf) -> None:
    harness = house_of("gitea", triggers=[TriggerRule(name="binder", push=PushRule(paths=("docs/**",)))])
    assert harness.client.post("/webhooks/gitea", **gitea().post).status_code == 200
    cut = gitea(gitea_push(total_commits=6))
    assert harness.client.post("/webhooks/gitea", **cut.post).status_code == 202
