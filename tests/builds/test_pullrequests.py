"""Triggers for pull requests: their matches, the builds they request, and the limits for forks."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Kind, Push
from builds.errors import Forbidden, RuleError, UnknownRef
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.private import Private, PrivateRule
from builds.pullrequests import PullRequestRule, asks_for
from builds.repository import Policy
from builds.triggers import DEFAULT, RequestedBuild, TriggerRule, reason, requested_builds
from eventing.event import Event
from eventing.hosts import DIALECTS, RequestFacts, request_of
from tests.builds.rules import load
from tests.builds.test_intake import NOW, Refs
from tests.builds.test_triggers import push, texts, triggers
from tests.eventing.deliveries import BEFORE, COMMIT, Delivery
from tests.eventing.pullrequests import AT as NOON
from tests.eventing.pullrequests import MOVED, OPENED, github, github_request

REPOSITORY = "https://github.com/octo/stats"


def event(delivery: Delivery, word: str = "github") -> Event:
    parsed = DIALECTS[word].parse(delivery.headers, delivery.body)
    assert isinstance(parsed, list)
    return parsed[0]


def told(action: str = "opened", **more: object) -> Event:
    return event(github(github_request(action, **more)))


def rule(text: str = "{}", build: str = "{}") -> str:
    return f"[{{name: previews, pull_requests: {text}, build: {build}}}]"


def asked(text: str, one: Event) -> bool:
    return bool(requested_builds(triggers(rule(text)), one))


def facts(**changes: object) -> RequestFacts:
    found = request_of(told())
    assert found is not None
    return msgspec.structs.replace(found, **changes)


def test_it_builds_the_head_and_tags_it_with_the_number() -> None:
    (want,) = requested_builds(triggers(rule()), told())
    assert (want.repository, want.ref, want.commit) == (f"{REPOSITORY}.git", "refs/pull/7/head", COMMIT)
    assert texts(want)[3] == ("pr-7",)
    assert (want.trigger, want.foreign, want.head) == ("previews", False, None)
    assert want.push is not None
    assert want.push.at is not None
    assert want.push == Push(before=None, at=want.push.at)
    assert want.push.at.isoformat() == NOON.replace("Z", "+00:00")


def test_a_moved_head_says_where_it_was() -> None:
    (want,) = requested_builds(triggers(rule()), event(MOVED["github"]()))
    assert want.push is not None
    assert want.push.before == BEFORE


def test_values_of_it_are_known_to_templates() -> None:
    build = '{tags: ["{base}-{number}-{head}", "{ref_name}"], subdir: "{base}", build_args: {PR: "{number}"}}'
    (want,) = requested_builds(triggers(rule(build=build)), told(base="release/1", head="x"))
    subdir, arguments, _, tags = texts(msgspec.structs.replace(want, tags=want.tags[:1]))
    assert (subdir, arguments, tags) == ("release/1", {"PR": "7"}, ("release/1-7-x",))


def test_tags_may_be_none() -> None:
    (want,) = requested_builds(triggers(rule(build="{tags: []}")), told())
    assert want.tags == ()


def test_pushes_and_pull_requests_are_apart() -> None:
    assert requested_builds(DEFAULT, told()) == []
    assert requested_builds(triggers("[{name: a, push: {}}]"), told()) == []
    assert requested_builds(triggers(rule()), push()) == []


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("{branches: [main]}", "main", True),
        ("{branches: [main]}", "next", False),
        ('{branches: ["release/*"]}', "release/1", True),
        ('{branches: ["**", "!wip/**"]}', "wip/a", False),
    ],
)
def test_branches_are_those_it_is_for(text: str, base: str, *, expected: bool) -> None:
    assert asked(text, told(base=base, head="wip/a")) is expected


@pytest.mark.parametrize(
    ("action", "changes", "text", "expected"),
    [
        ("opened", {}, "{}", True),
        ("reopened", {}, "{}", True),
        ("synchronize", {}, "{}", True),
        ("ready_for_review", {}, "{}", False),
        ("assigned", {}, "{}", False),
        ("edited", {"changes": {"title": {"from": "x"}}}, "{branches: [main]}", False),
        ("edited", {"changes": {"base": {}}}, "{branches: [main]}", True),
        ("edited", {"changes": {"base": {}}}, "{}", False),
        ("labeled", {"labels": ["preview"], "label": {"name": "preview"}}, "{}", False),
        ("labeled", {"labels": ["preview"], "label": {"name": "preview"}}, "{labels: [preview]}", True),
        ("labeled", {"labels": ["preview", "bug"], "label": {"name": "bug"}}, "{labels: [preview]}", False),
        ("labeled", {"labels": ["bug"], "label": {"name": "bug"}}, "{labels: [preview]}", False),
        ("opened", {"labels": ["preview"]}, "{labels: [other, preview]}", True),
        ("opened", {}, "{labels: [preview]}", False),
        ("closed", {}, "{}", False),
    ],
)
def test_what_is_news(action: str, changes: dict[str, object], text: str, *, expected: bool) -> None:
    assert asked(text, told(action, **changes)) is expected


def test_a_draft_is_built_like_any_other() -> None:
    payload = github_request()
    payload["pull_request"]["draft"] = True
    assert asked("{}", event(github(payload)))


class TestForks:
    def test_are_not_built_by_default(self) -> None:
        assert not asked("{}", told(fork=True))
        assert not asked("{from: same-repository}", told(fork=True))
        assert "fork" in reason(told(fork=True))

    def test_are_built_where_the_rule_says_so_as_strangers(self) -> None:
        (want,) = requested_builds(triggers(rule("{from: anyone}")), told(fork=True))
        assert want.foreign
        assert want.repository == f"{REPOSITORY}.git"
        (own,) = requested_builds(triggers(rule("{from: anyone}")), told())
        assert not own.foreign

    def test_are_strangers_to_rules_without_pull_requests_too(self) -> None:
        build = '{repository: "{data.repository.clone_url}", ref: "pull/{number}/head"}'.replace(
            "{number}", "{data.number}"
        )
        (want,) = requested_builds(triggers(f"[{{name: old, build: {build}}}]"), told("labeled", fork=True))
        assert want.foreign

    def test_are_not_built_where_the_host_serves_them_only_elsewhere(self) -> None:
        one = event(OPENED["bitbucket"](fork=True), "bitbucket")
        assert not asked("{from: anyone}", one)
        assert "fork" in reason(one)
        (own,) = requested_builds(triggers(rule()), event(OPENED["bitbucket"](), "bitbucket"))
        assert own.head == "refs/heads/topic", "there is no ref of the request's own to hold the tag to"

    @given(
        st.builds(
            PullRequestRule,
            branches=st.none() | st.just(("main",)) | st.just(("**",)),
            paths=st.none() | st.just(("a/**",)),
            labels=st.none() | st.just(("x",)),
        ),
        st.booleans(), st.booleans(), st.booleans(),
        st.sampled_from([(), ("x",)]), st.sampled_from([None, (), ("a/b",)]),
    )  # fmt: skip
    def test_never_by_a_rule_that_does_not_say_so(
        self, one: PullRequestRule, served: bool, moved: bool, retargeted: bool,
        labels: tuple[str, ...], paths: tuple[str, ...] | None,
    ) -> None:  # fmt: skip
        request = facts(fork=True, served=served, moved=moved, retargeted=retargeted, labels=labels, added=labels)
        assert not asks_for(one, request, lambda: paths)
        open_to_all = msgspec.structs.replace(one, from_="anyone")
        ours = msgspec.structs.replace(request, fork=False, served=True)
        assert asks_for(open_to_all, request, lambda: paths) == (served and asks_for(one, ours, lambda: paths))


class TestPaths:
    @pytest.mark.parametrize(
        ("changed", "expected"),
        [(None, True), (("README.md",), False), (("README.md", "binder/a/b"), True), ((), False)],
    )
    def test_are_asked_for(self, changed: tuple[str, ...] | None, *, expected: bool) -> None:
        rules = triggers(rule('{paths: ["binder/**"]}'))
        assert bool(requested_builds(rules, told(), changed=lambda _: changed)) is expected

    def test_only_where_they_decide(self) -> None:
        def never(request: RequestFacts) -> None:
            raise AssertionError(request)

        assert requested_builds(triggers(rule('{paths: ["a/**"]}')), told(fork=True), changed=never) == []
        assert requested_builds(triggers(rule('{paths: ["a/**"], branches: [next]}')), told(), changed=never) == []
        assert requested_builds(triggers(rule('{paths: ["a/**"]}')), told("assigned"), changed=never) == []
        assert len(requested_builds(triggers(rule()), told(), changed=never)) == 1

    def test_once_for_all_rules(self) -> None:
        asked_for: list[int] = []

        def changed(request: RequestFacts) -> tuple[str, ...]:
            asked_for.append(request.number)
            return ("a/b",)

        rules = load(
            [TriggerRule(name=name, pull_requests=PullRequestRule(paths=("a/**",))) for name in ("one", "two")]
        )
        assert len(requested_builds(rules, told(), changed=changed)) == 2
        assert asked_for == [7]


@pytest.mark.parametrize(
    "text",
    [
        "[{name: a, push: {}, pull_requests: {}}]",
        rule("{branches: []}"),
        rule("{branches: ['!main']}"),
        rule("{branches: [refs/heads/main]}"),
        rule("{paths: ['/a']}"),
        rule("{labels: []}"),
        rule("{labels: ['']}"),
        "[{name: a, build: {tags: ['{number}']}}]",
        "[{name: a, push: {}, build: {subdir: '{head}'}}]",
        rule("{from: anyone}", "{tags: ['{head}']}"),
        rule("{from: anyone}", "{tags: ['{data.pull_request.title}']}"),
        "[{name: a, pull_requests: {}, filters: [{exact: {type: com.github.push}}]}]",
        rule(build="{tags: ['{pr}']}"),
    ],
)
def test_rules_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(RuleError):
        triggers(text)


class TestCredentials:
    """Submissions by `ask`: their `credentials` decides whether a build gets the stored credentials."""

    def intake(self, *rules: PrivateRule, stored: bool = True, entitled: Refs | None = None) -> Intake:
        return Intake(
            instance="t",
            policy=Policy(),
            hosts={},
            images=ImagePolicy("registry.example/kiln/"),
            resolver=Refs(),
            entitled=entitled,
            private=Private(rules, stored=lambda _: stored),
        )

    def ask(self, intake: Intake, want: RequestedBuild) -> bool:
        who = "webhook:github"
        return intake.submission(want, source="/", id="1", type="t", by=who, kind=Kind.PUSH, now=NOW).cause.credentials

    def want(self, *, fork: bool) -> RequestedBuild:
        (want,) = requested_builds(triggers(rule("{from: anyone}")), told(fork=fork))
        return want

    def test_a_branch_of_its_own_has_them_and_a_fork_has_not(self) -> None:
        intake = self.intake()
        assert self.ask(intake, self.want(fork=False))
        assert not self.ask(intake, self.want(fork=True))

    def test_a_fork_of_a_repository_that_private_names_is_refused(self) -> None:
        intake = self.intake(PrivateRule(match=f"{REPOSITORY}"))
        assert self.ask(intake, self.want(fork=False))
        with pytest.raises(Forbidden, match="Forks"):
            self.ask(intake, self.want(fork=True))

    def test_a_fork_must_be_let_in_by_the_host_itself(self) -> None:
        """For a fork, Kiln asks the host without the stored credential, so a private repository stays private."""

        class Closed(Refs):
            def resolve(self, *_: object) -> object:  # type: ignore[override]
                raise UnknownRef("The repository does not exist, or is not public.")

        closed = self.intake(entitled=Refs())
        closed._resolver = Closed()
        with pytest.raises(UnknownRef):
            self.ask(closed, self.want(fork=True))
        assert self.ask(closed, self.want(fork=False))
