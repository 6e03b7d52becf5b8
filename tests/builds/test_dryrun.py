"""A dry run reports what the real path would build, and why each other trigger would not.

It sends no request to a Git host.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Kind
from builds.dryrun import DryRun, Who, dry_run
from builds.errors import Forbidden
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.private import Private, PrivateRule
from builds.pullrequests import PullRequestRule
from builds.repository import Policy
from builds.triggers import BuildTemplate, PushRule, TriggerRule, explain, requested_builds
from eventing.errors import DecodeError, SavedError
from eventing.event import Event
from eventing.saved import parse
from tests.builds.rules import load
from tests.builds.test_triggers import event, push

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MAIN = TriggerRule(name="main", push=PushRule(branches=("main",)))
TAGS = TriggerRule(name="tags", push=PushRule(tags=("v*",)))
PATHS = TriggerRule(name="paths", push=PushRule(branches=("**",), paths=("binder/**",)))
OURS = TriggerRule(name="ours", filters=({"prefix": {"source": "https://github.com/our-org/"}},))
NOT_OURS = TriggerRule(name="not-ours", filters=({"not": {"prefix": {"source": "https://github.com/our-org/"}}},))
ANY = TriggerRule(name="any", filters=({"any": [{"suffix": {"subject": "/dev"}}, {"exact": {"id": "7"}}]},))
ALL = TriggerRule(name="all", filters=({"all": [{"exact": {"type": "com.github.push"}}, {"prefix": {"id": "1"}}]},))
LABEL = TriggerRule(name="when", when=({"exact": {"data.ref": "refs/heads/dev"}},))
LACKING = TriggerRule(name="lacking", build=BuildTemplate(ref="{data.course.ref}"))
RULES = (MAIN, TAGS, PATHS, OURS, NOT_OURS, ANY, ALL, LABEL)


class Nobody:
    """A resolver that a dry run must not use."""

    def resolve(self, *_: object) -> NoReturn:
        raise AssertionError("somebody was asked")

    commit = changed = resolve


def intake(**more: Any) -> Intake:
    settings = {
        "policy": Policy(),
        "hosts": {},
        "images": ImagePolicy("registry.example/kiln/"),
        "resolver": Nobody(),
        "event_source": "/kiln",
        **more,
    }
    return Intake(instance="test", **settings)


def structured(of: Event, **more: Any) -> bytes:
    attributes = {"specversion": "1.0", "id": of.id, "source": of.source, "type": of.type, "subject": of.subject}
    return json.dumps(
        {**{name: value for name, value in attributes.items() if value}, "data": of.data, **more}
    ).encode()


def run(of: Event, *rules: TriggerRule, who: Who = Who(), through: Intake | None = None, **more: Any) -> DryRun:  # noqa: B008
    return dry_run(parse(structured(of, **more)), load(rules), through or intake(), who, NOW)


refs = st.sampled_from(["refs/heads/main", "refs/heads/dev", "refs/tags/v1", "refs/tags/other"])
events = st.one_of(
    st.builds(push, refs, files=st.sampled_from([["README.md"], ["binder/x", "a"]])),
    st.just(event({"ref": "refs/heads/dev", "repository": {"clone_url": "https://github.com/a/b"}})),
)


@given(st.lists(st.sampled_from(RULES), unique_by=lambda rule: rule.name), events)
def test_a_trigger_that_matches_is_one_that_builds(rules: list[TriggerRule], told: Event) -> None:
    triggers = load([rule for rule in rules if told.type == "com.github.push" or rule.push])
    verdicts = explain(triggers, told, lambda facts: facts.default_branch)
    builds = requested_builds(triggers, told)
    assert [verdict.trigger for verdict in verdicts] == [trigger.name for trigger in triggers]
    assert [verdict.trigger for verdict in verdicts if verdict.matches] == [build.trigger for build in builds]
    assert [verdict.build for verdict in verdicts if verdict.build] == builds
    assert all(check.why != "" for verdict in verdicts for check in verdict.checks)


@pytest.mark.parametrize(
    ("rule", "place", "why"),
    [
        (TAGS, "push", "no pattern of push.tags matches refs/tags/other"),
        (MAIN, "push", "no pattern of push.branches matches refs/heads/dev"),
        (PATHS, "push", "no pattern of push.paths matches a changed file"),
        (NOT_OURS, "filters[0]", 'it must not match {"prefix": {"source": "https://github.com/our-org/"}}'),
        (ANY, "filters[0]", '/main", and must end with "/dev"; and id is "1", and must be "7"'),
        (LABEL, "when[0]", 'data.ref is "refs/heads/main", and must be "refs/heads/dev"'),
        (TriggerRule(name="x", when=({"exists": "data.course"},)), "when[0]", "the event has no data.course"),
    ],
)
def test_what_does_not_match_is_told_with_its_place(rule: TriggerRule, place: str, why: str) -> None:
    told = push({"tags": "refs/tags/other", "main": "refs/heads/dev"}.get(rule.name, "refs/heads/main"))
    (outcome,) = run(told, rule).outcomes
    (verdict,) = outcome.verdicts
    assert outcome.builds == ()
    assert not verdict.matches
    (check,) = [check for check in verdict.checks if not check.holds]
    assert check.place == place
    assert check.why is not None
    assert check.why.endswith(why)


def test_a_push_is_no_pull_request() -> None:
    rule = TriggerRule(name="pulls", pull_requests=PullRequestRule(branches=("main",)))
    (verdict,) = explain(load([rule]), push(), lambda facts: facts.default_branch)
    assert [check.why for check in verdict.checks] == ["the event is not about a pull request"]


def test_what_would_be_built_is_what_the_real_way_names() -> None:
    (outcome,) = run(push(), OURS, who=Who(by="token:ci")).outcomes
    (planned,) = outcome.builds
    (wanted,) = requested_builds(load([OURS]), push())
    real = intake().submission(
        wanted, source=push().source, id="1", type=push().type, by="token:ci", kind=Kind.PUSH, now=NOW
    )
    assert planned.submission == real
    assert planned.facts["build"] == real.name
    assert planned.facts["image"] == f"{real.request.image}:{real.request.commit}"


def test_a_request_needs_no_trigger_and_its_ref_is_not_looked_up() -> None:
    told = event({"repository": "https://github.com/a/b", "ref": "main"}, type="dev.kiln.build.requested.v1")
    (outcome,) = run(told).outcomes
    (planned,) = outcome.builds
    assert planned.trigger is None
    assert planned.facts["commit"] == "to be looked up"
    assert "build" not in planned.facts
    (other,) = run(
        push(repository={"clone_url": "https://github.com/a/b", "url": "https://github.com/a/b"}), MAIN
    ).outcomes
    assert other.builds


@pytest.mark.parametrize(
    ("told", "more", "why"),
    [
        (push(deleted=True, after="0" * 40, head_commit=None), {}, "deletes the ref"),
        (event(type="dev.kiln.build.succeeded.v1"), {}, "Kiln's own events"),
        (push(), {"source": "/kiln"}, "Kiln pushed or sent it"),
        (push(), {"knativebrokerttl": 0}, "maximum number of brokers"),
    ],
)
def test_why_no_trigger_is_asked(told: Event, more: dict[str, Any], why: str) -> None:
    (outcome,) = run(told, OURS, **more).outcomes
    assert why in (outcome.why or "")
    assert outcome.builds == ()


def test_where_one_trigger_lacks_a_value_nothing_is_built() -> None:
    (outcome,) = run(push(), OURS, LACKING).outcomes
    assert outcome.builds == ()
    assert [verdict.lacks is not None for verdict in outcome.verdicts] == [False, True]


def test_a_webhook_is_its_hosts_and_speaks_for_no_other() -> None:
    body = json.dumps(push().data).encode()
    private = Private([PrivateRule(match="https://github.com/our-org/*")])
    (outcome,) = dry_run(parse(body, "github"), load([OURS]), intake(private=private), Who(by="user:ada"), NOW).outcomes
    assert [planned.refused for planned in outcome.builds] == [None], "`private` admits webhooks by default"
    (other,) = run(push(), OURS, who=Who(by="user:ada"), through=intake(private=private)).outcomes
    assert [type(planned.refused) for planned in other.builds] == [Forbidden]
    elsewhere = body.replace(b"github.com", b"git.example")
    with pytest.raises(Forbidden):
        dry_run(parse(elsewhere, "github"), load([OURS]), intake(), Who(), NOW)
    head = b"POST /webhooks/github HTTP/1.1\nX-GitHub-Event: ping\nX-GitHub-Delivery: 1\n"
    ping = head + b"Content-Type: application/json\n\n{}"
    assert dry_run(parse(ping), (), intake(), Who(), NOW).ignored


def test_what_is_no_event_is_told() -> None:
    with pytest.raises(SavedError):
        parse(b"{}")
    with pytest.raises(DecodeError):
        run(push(), OURS, id="")
