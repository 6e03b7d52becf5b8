"""The events of pull and merge requests of each host."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.errors import DecodeError
from eventing.event import Event
from eventing.hosts import DIALECTS, RequestFacts, push_of, request_of
from eventing.http import decode, encode
from tests.eventing.deliveries import BEFORE, COMMIT, REPOSITORIES, Delivery, server, server_push
from tests.eventing.events import json_values
from tests.eventing.pullrequests import (
    CLOSED,
    MOVED,
    OPENED,
    REFS,
    bitbucket,
    bitbucket_request,
    gitea,
    gitea_request,
    github,
    github_request,
    gitlab,
    gitlab_request,
    server_request,
)
from tests.parts.published_data import published_data

PAGES = {**REPOSITORIES, "github": "https://github.com/octo/stats"}
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)

words = pytest.mark.parametrize("word", OPENED)


def parsed(word: str, delivery: Delivery) -> Event:
    events = DIALECTS[word].parse(delivery.headers, delivery.body)
    assert isinstance(events, list)
    (event,) = events
    return event


def facts(word: str, delivery: Delivery) -> RequestFacts:
    found = request_of(parsed(word, delivery))
    assert found is not None
    return found


def asks(request: RequestFacts) -> bool:
    return request.moved or bool(request.added) or request.retargeted


@words
def test_one_that_was_opened(word: str) -> None:
    request = facts(word, OPENED[word]())
    assert (request.repository, request.number, request.ref) == (f"{PAGES[word]}.git", 7, REFS[word])
    assert (request.base, request.head, request.fork) == ("main", "topic", False)
    assert request.commit is not None
    assert COMMIT.startswith(request.commit)
    assert request.before is None
    assert request.at is not None
    assert request.at.replace(microsecond=0) == NOON
    assert (request.moved, request.closed) == (True, False)
    assert request.served is (word != "bitbucket")


@words
def test_its_event_is_the_adapters_and_travels(word: str) -> None:
    event = parsed(word, OPENED[word]())
    assert event.type.startswith(DIALECTS[word].requests[0] + ".")
    assert (event.id, event.subject, event.source) == ("d-1", "7", PAGES[word])
    (other,) = decode(*encode(event, "structured"))
    assert request_of(other) == facts(word, OPENED[word]())
    assert push_of(event) is None


@words
def test_a_head_that_moved(word: str) -> None:
    request = facts(word, MOVED[word]())
    assert request.moved
    assert request.before == (None if word == "bitbucket" else BEFORE)


@words
def test_the_end(word: str) -> None:
    for make in CLOSED[word]:
        request = facts(word, make())
        assert request.closed
        assert not asks(request)


@words
def test_a_fork_is_another_repository_than_the_one_that_tells(word: str) -> None:
    request = facts(word, OPENED[word](fork=True))
    assert request.fork
    assert request.repository == f"{PAGES[word]}.git"


def test_a_repository_that_has_gone_counts_as_a_fork() -> None:
    on_github, on_bitbucket = github_request(), bitbucket_request()
    on_github["pull_request"]["head"]["repo"] = None
    on_bitbucket["pullrequest"]["source"]["repository"] = None
    assert facts("github", github(on_github)).fork
    assert facts("bitbucket", bitbucket(on_bitbucket, "pullrequest:created")).fork
    assert facts("gitlab", gitlab(gitlab_request(attributes={"source_project_id": None}))).fork


def test_a_request_that_was_pushed_to_gitea_by_who_may_only_read_counts_as_a_fork() -> None:
    """`git push origin HEAD:refs/for/main` needs no write access, yet its head is in the repository itself."""
    payload = gitea_request()
    payload["pull_request"]["head"]["ref"] = "refs/pull/7/head"
    assert facts("gitea", gitea(payload, "pull_request")).fork


@pytest.mark.parametrize(
    "action", ["assigned", "review_requested", "ready_for_review", "converted_to_draft", "unlabeled"]
)
def test_what_no_build_would_see(action: str) -> None:
    request = facts("github", github(github_request(action)))
    assert not asks(request)
    assert not request.closed


class TestLabels:
    def test_github_names_the_new_one(self) -> None:
        payload = github_request("labeled", labels=["bug", "preview"], label={"name": "preview"})
        request = facts("github", github(payload))
        assert (request.labels, request.added, request.moved) == (("bug", "preview"), ("preview",), False)
        gone = facts("github", github(github_request("unlabeled", label={"name": "preview"})))
        assert (gone.added, gone.labels) == ((), ())

    def test_gitlab_names_those_before(self) -> None:
        before, after = [{"title": "bug"}], [{"title": "bug"}, {"title": "preview"}]
        changes = {"labels": {"previous": before, "current": after}}
        request = facts("gitlab", gitlab(gitlab_request("update", labels=["bug", "preview"], changes=changes)))
        assert (request.labels, request.added, request.moved) == (("bug", "preview"), ("preview",), False)

    def test_gitea_names_all(self) -> None:
        request = facts("gitea", gitea(gitea_request("label_updated", labels=["a", "b"]), "pull_request_label"))
        assert (request.labels, request.added) == (("a", "b"), ("a", "b"))

    @pytest.mark.parametrize("word", ["bitbucket", "bitbucket-server"])
    def test_bitbucket_has_none(self, word: str) -> None:
        assert facts(word, OPENED[word]()).labels == ()


class TestAnotherBranch:
    def test_github(self) -> None:
        edited = github_request("edited", changes={"base": {"ref": {"from": "main"}, "sha": {"from": BEFORE}}})
        assert facts("github", github(edited)).retargeted
        assert not facts("github", github(github_request("edited", changes={"title": {"from": "x"}}))).retargeted

    def test_gitea(self) -> None:
        assert facts(
            "gitea", gitea(gitea_request("edited", changes={"ref": {"from": "main"}}), "pull_request")
        ).retargeted
        assert not facts(
            "gitea", gitea(gitea_request("edited", changes={"title": {"from": "x"}}), "pull_request")
        ).retargeted

    def test_gitlab(self) -> None:
        changes = {"target_branch": {"previous": "main", "current": "next"}}
        assert facts("gitlab", gitlab(gitlab_request("update", changes=changes))).retargeted
        assert not facts("gitlab", gitlab(gitlab_request("update", changes={"title": {"previous": "x"}}))).retargeted

    def test_bitbucket_data_center(self) -> None:
        """Bitbucket Data Center always sends the previous target branch, even if it is unchanged."""
        for before, expected in [("next", True), ("main", False)]:
            payload = server_request("pr:modified", previousTarget={"id": f"refs/heads/{before}", "displayId": before})
            assert facts("bitbucket-server", server(payload, "pr:modified")).retargeted is expected


class TestBitbucketDataCenter:
    def test_links_of_the_repository_say_where_it_is(self) -> None:
        payload = server_request()
        payload["pullRequest"]["toRef"]["repository"] = server_push()["repository"]
        payload["pullRequest"]["links"] = {"self": [None]}  # as in the documentation, and without a base URL
        assert facts("bitbucket-server", server(payload, "pr:opened")).repository == f"{PAGES['bitbucket-server']}.git"

    def test_without_any_nobody_knows(self) -> None:
        payload = server_request()
        payload["pullRequest"]["links"] = {"self": [None]}
        with pytest.raises(DecodeError, match="base URL"):
            facts("bitbucket-server", server(payload, "pr:opened"))

    def test_a_person_s_repository(self) -> None:
        payload = server_request()
        payload["pullRequest"]["toRef"]["repository"]["project"] = {"key": "~ADA"}
        page = "https://git.example.com/users/ada/repos/sample/pull-requests/7"
        payload["pullRequest"]["links"] = {"self": [{"href": page}]}
        repository = facts("bitbucket-server", server(payload, "pr:opened")).repository
        assert repository == "https://git.example.com/scm/~ada/sample.git"


@pytest.mark.parametrize(
    ("name", "moved", "closed"), [("opened", True, False), ("synchronized", True, False), ("merged", False, True)]
)
def test_as_a_real_gitea_sent_it(name: str, moved: bool, closed: bool) -> None:
    recorded = json.loads(published_data(f"gitea/pull-request-{name}.json").read_text())
    request = facts("gitea", Delivery(recorded["headers"], recorded["body"].encode()))
    assert (request.moved, request.closed, request.fork) == (moved, closed, False)
    assert (request.number, request.base, request.head) == (1, "main", "topic")
    assert (request.before is not None) is (name == "synchronized")


@words
@given(data=st.data())
def test_whatever_a_host_sends_there_are_only_our_errors(word: str, data: st.DataObject) -> None:
    """Replace one value of a payload, at any depth, by an arbitrary one."""
    payload = json.loads(data.draw(st.sampled_from([OPENED[word](), MOVED[word](), CLOSED[word][0]()])).body)
    place: Any = payload
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inside = place[key]
        if not isinstance(inside, dict | list) or not inside or data.draw(st.booleans()):
            break
        place = inside
    place[key] = data.draw(json_values)
    event = parsed(word, OPENED[word]())
    try:
        request = request_of(msgspec.structs.replace(event, data=payload))
    except DecodeError:
        return
    assert request is not None
    assert request.number > 0
    assert request.ref.startswith("refs/pull/" if word in ("github", "gitea", "forgejo") else "refs/")
