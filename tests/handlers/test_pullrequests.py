"""Pull and merge requests of every Git host, through the route: Kiln builds the head until the request is closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builds.build import Attempt, Build, Kind
from builds.builder.spec import Surroundings, spec_for
from builds.clients.git import RefResolver, ResolvedRef, Stored
from builds.engines.kubernetes.jobs import GIT_CREDENTIALS, job
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.private import Private
from builds.pullrequests import PullRequestRule
from builds.repository import HostKind, Policy, Repository, canonical
from builds.triggers import PushRule, TriggerRule
from tests.builds.test_kubernetes_jobs import OWNER, RELEASE, with_secrets
from tests.eventing.deliveries import BEFORE, COMMIT, REPOSITORIES, SECRET, Delivery
from tests.eventing.pullrequests import CLOSED, MOVED, OPENED, REFS, github, github_request
from tests.handlers.harness import PREFIX, REPOSITORY, Harness, push, signed, structured
from tests.parts.githost import GitHost, commit, git

PAGES = {**REPOSITORIES, "github": REPOSITORY}
PREVIEWS = TriggerRule(name="previews", pull_requests=PullRequestRule())
ANYONE = TriggerRule(name="previews", pull_requests=PullRequestRule(from_="anyone"))
PUSHES = TriggerRule(name="pushes", push=PushRule(branches=("**",)))

words = pytest.mark.parametrize("word", OPENED)


class Host:
    """A Git host whose repositories are all public, and which completes abbreviated commits."""

    def resolve(self, repository: Repository, ref: str | None) -> ResolvedRef:  # noqa: ARG002
        return ResolvedRef(ref or "refs/heads/main", COMMIT)

    def commit(self, repository: Repository, digits: str) -> str:  # noqa: ARG002
        return digits[0] * 40

    def changed(self, repository: Repository, number: int) -> tuple[str, ...]:  # noqa: ARG002
        return ("binder/environment.yml",)


@pytest.fixture
def house_of(harnesses: Callable[..., Harness]) -> Callable[..., Harness]:
    """Return a factory of harnesses with secrets for every host and the host of `word` in their settings."""

    def make(word: str = "github", *triggers: TriggerRule, **settings: Any) -> Harness:
        hosts = {} if word == "github" else {"git.example.com": HostKind(word)}
        images = ImagePolicy(PREFIX)
        intake = Intake(instance="test", policy=Policy(), hosts=hosts, images=images, resolver=Host())
        rules = [*triggers] or [PREVIEWS]
        return harnesses(**{"triggers": rules, "webhook_secrets": lambda _: (SECRET,), "intake": intake, **settings})

    return make


HouseOf = Callable[..., Harness]


def send(harness: Harness, word: str, delivery: Delivery) -> Any:
    return harness.client.post(f"/webhooks/{word}", **delivery.post)


@words
def test_its_head_is_built(house_of: HouseOf, word: str) -> None:
    harness = house_of(word)
    assert send(harness, word, OPENED[word]()).status_code == 202
    (build,) = harness.builds()
    assert (build.request.repository, build.request.commit) == (canonical(PAGES[word]).url, COMMIT)
    (cause,) = build.causes
    assert (cause.by, cause.kind, cause.trigger) == (f"webhook:{word}", Kind.PUSH, "previews")
    assert (cause.ref, cause.tags) == (REFS[word], ("pr-7",))


@words
def test_it_is_left_when_it_is_closed(house_of: HouseOf, word: str) -> None:
    """Closing withdraws queued and running builds of all its heads."""
    for close in CLOSED[word]:
        harness = house_of(word)
        older = {"commit": BEFORE[:12] if word == "bitbucket" else BEFORE}
        send(harness, word, OPENED[word](**older))
        harness.run(harness.builds()[0].name)
        assert send(harness, word, MOVED[word]()).status_code == 202
        answer = send(harness, word, close())
        assert (answer.status_code, answer.json["builds"]) == (200, [])
        assert "closed" in answer.json["reason"]
        assert {build.request.commit: [c.withdrawn for c in build.causes] for build in harness.builds()} == {
            BEFORE: [True],
            COMMIT: [True],
        }
        assert send(harness, word, OPENED[word](id="d-9")).status_code == 202, "it was opened again"
        (again,) = [build for build in harness.builds() if build.request.commit == COMMIT]
        assert [cause.withdrawn for cause in again.causes] == [True, False]


@words
def test_a_fork_is_built_only_where_a_rule_says_so(house_of: HouseOf, word: str) -> None:
    answer = send(house_of(word), word, OPENED[word](fork=True))
    assert (answer.status_code, answer.json["builds"]) == (200, [])
    assert "fork" in answer.json["reason"]
    harness = house_of(word, ANYONE)
    answer = send(harness, word, OPENED[word](fork=True))
    if word == "bitbucket":
        assert (answer.status_code, harness.builds()) == (200, ())
        assert "fork" in answer.json["reason"]
        return
    assert answer.status_code == 202
    (build,) = harness.builds()
    assert build.request.repository == canonical(PAGES[word]).url
    assert not build.causes[0].credentials


def test_a_push_and_a_request_of_one_commit_are_one_build_which_the_push_keeps(house_of: HouseOf) -> None:
    harness = house_of("github", PREVIEWS, PUSHES)
    send(harness, "github", OPENED["github"]())
    pushed = push(ref="refs/heads/topic", after=COMMIT, head_commit={"id": COMMIT})
    harness.client.post("/webhooks/github", **signed(pushed, delivery="p-1"))
    send(harness, "github", CLOSED["github"][0]())
    (build,) = harness.builds()
    refs = [(cause.ref, cause.withdrawn) for cause in build.causes]
    assert refs == [(REFS["github"], True), ("refs/heads/topic", False)]


def test_who_asked_for_its_ref_still_waits_when_it_is_closed(house_of: HouseOf) -> None:
    harness = house_of()
    harness.ask(commit=COMMIT, ref=REFS["github"])
    send(harness, "github", OPENED["github"]())
    send(harness, "github", OPENED["github"](number=8, id="d-8"))
    send(harness, "github", CLOSED["github"][0]())
    (build,) = harness.builds()
    assert [(cause.ref, cause.withdrawn) for cause in build.causes] == [
        (REFS["github"], False),
        (REFS["github"], True),
        ("refs/pull/8/head", False),
    ]


def test_a_host_of_another_kind_closes_nothing(house_of: HouseOf) -> None:
    """A secret for GitHub gives no authority over repositories elsewhere."""
    harness = house_of("gitea")
    send(harness, "gitea", OPENED["gitea"]())
    elsewhere = github(github_request("closed", repository=PAGES["gitea"]))
    assert send(harness, "github", elsewhere).status_code == 403
    (build,) = harness.builds()
    assert not build.causes[0].withdrawn


def test_as_a_cloudevent(house_of: HouseOf) -> None:
    harness = house_of()

    def post(action: str, id_: str) -> int:
        event = {
            "specversion": "1.0",
            "id": id_,
            "source": REPOSITORY,
            "type": "dev.knative.source.github.pull_request",
            "datacontenttype": "application/json",
            "data": github_request(action),
        }
        return int(harness.client.post("/events", **structured(event)).status_code)

    assert post("opened", "1") == 202
    (build,) = harness.builds()
    assert build.causes[0].tags == ("pr-7",)
    assert post("assigned", "2") == 204
    assert post("closed", "3") == 204
    assert harness.engine.get(build.name).causes[0].withdrawn


@pytest.mark.parametrize(("paths", "status"), [("binder/**", 202), ("docs/**", 200)])
def test_the_host_is_asked_for_paths(house_of: HouseOf, paths: str, status: int) -> None:
    rule = TriggerRule(name="previews", pull_requests=PullRequestRule(paths=(paths,)))
    assert send(house_of("gitea", rule), "gitea", OPENED["gitea"]()).status_code == status


def test_the_second_page_of_builds_is_left_as_well(house_of: HouseOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.submissions.PAGE", 2)
    harness = house_of()
    for number in range(1, 6):
        send(harness, "github", OPENED["github"](commit=f"{number}" * 40, id=f"d-{number + 10}"))
    send(harness, "github", CLOSED["github"][0]())
    assert [build.causes[0].withdrawn for build in harness.builds()] == [True] * 5


# Credentials of builders


CANARY = "a-canary-of-the-credential"


class Scene:
    """A repository on a real Git host, its fork, and a stored credential for it, which web may use."""

    def __init__(self, harnesses: Callable[..., Harness], host: GitHost, folder: Path) -> None:
        source = folder / "source"
        source.mkdir()
        (source / "Dockerfile").write_text("FROM scratch\n")
        host.create("org/course", source)
        host.create("mallory/course", source)
        (source / "Dockerfile").write_text("FROM scratch\nRUN env; cat /etc/kiln/* ~/.git-credentials\n")
        self.host, self.page = host, f"{host.base}/org/course"
        self.theirs = self._commit("mallory/course", source)
        git(
            "fetch",
            "--quiet",
            str(host.bare("mallory/course")),
            f"{self.theirs}:refs/pull/7/head",
            cwd=host.bare("org/course"),
        )
        self.ours = self._commit("org/course", source)
        self.secrets = folder / "git-credentials"
        self.secrets.write_text(host.base.replace("://", f"://kiln:{CANARY}@") + "/org/course\n")
        policy, stored = Policy([f"{host.base}/**"]), Stored(self.secrets)
        netloc = host.base.removeprefix("http://")
        intake = Intake(
            instance="test",
            policy=policy,
            hosts={netloc: HostKind.GITHUB},
            images=ImagePolicy(PREFIX),
            resolver=RefResolver(policy),
            private=Private(stored=stored.fits, hosts={netloc: HostKind.GITHUB}),
        )
        own = {"triggers": [ANYONE], "webhook_secrets": lambda _: (SECRET,), "intake": intake}
        self.harness = harnesses(**own)

    def _commit(self, name: str, source: Path) -> str:
        return commit(self.host.bare(name), source, message=name)

    def opened(self, *, fork: bool) -> Build:
        payload = github_request(commit=self.theirs if fork else self.ours, fork=fork, repository=self.page)
        answer = send(self.harness, "github", github(payload, id=f"d-{fork}"))
        assert answer.status_code == 202, answer.text
        return self.harness.engine.get(answer.json["builds"][0]["name"])

    def given(self, build: Build) -> tuple[Surroundings, list[str]]:
        """Return the surroundings of the local engine's builder, and the Secret volumes of the pod on Kubernetes."""
        attempt = Attempt(number=1, node="n", written_at=build.created_at)
        local = spec_for(build, attempt, Surroundings(git_credentials=str(self.secrets))).surroundings
        spec = spec_for(build, attempt, Surroundings(git_credentials=GIT_CREDENTIALS))
        template = with_secrets()
        made = job(build, attempt, spec, template=template, image="i", release=RELEASE, owner=OWNER, git_keys=("k",))
        pod = made["spec"]["template"]["spec"]
        return local, [volume["name"] for volume in pod["volumes"] if "secret" in volume]


@pytest.fixture
def scene(harnesses: Callable[..., Harness], tmp_path: Path) -> Any:
    with GitHost(tmp_path / "host") as host:
        yield Scene(harnesses, host, tmp_path)


def test_a_fork_s_build_is_given_no_stored_credential_on_either_engine(scene: Scene) -> None:
    ours, pod = scene.given(scene.opened(fork=False))
    assert ours.git_credentials is not None
    assert "git-credentials" in pod
    theirs, pod = scene.given(scene.opened(fork=True))
    assert theirs.git_credentials is None
    assert "git-credentials" not in pod
    assert CANARY not in msgspec.json.encode(theirs).decode()


def test_a_fork_of_what_the_host_shows_to_nobody_is_not_built(scene: Scene) -> None:
    scene.host.passwords["/org/course.git"] = ("kiln", CANARY)
    payload = github_request(commit=scene.theirs, fork=True, repository=scene.page)
    answer = send(scene.harness, "github", github(payload))
    assert (answer.status_code, answer.json["builds"]) == (200, [])
    assert scene.harness.builds() == ()
    assert CANARY not in answer.text
