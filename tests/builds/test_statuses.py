"""Commit statuses from the record to the host's API: the real controller, local engine and sender."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from builds import report
from builds.build import Build, Cause, Delivery, Kind, Node, Reason, Result, State
from builds.controller import Controller
from builds.engines import Submission, World
from builds.engines.local import LocalEngine
from builds.plan import Limits, Word
from builds.repository import HostKind, Repository
from builds.statuses import HostRule, Statuses, page_address
from eventing.delivery import EventSender
from eventing.event import Event
from eventing.sinks import Sink
from eventing.statuses import Login
from eventing.tracing import Trace
from tests.builds.engine_factories import local_engine, new_submission
from tests.parts.kiln import until
from tests.parts.sink import EventSink
from tests.parts.statushost import TOKEN, Say, StatusHost

COMMIT = "c" * 40
KINDS = ["github", "gitlab", "gitea", "forgejo", "bitbucket", "bitbucket-server"]
GREEN = {"gitlab": "success", "bitbucket": "SUCCESSFUL", "bitbucket-server": "SUCCESSFUL"}
PENDING = {"gitlab": "pending", "bitbucket": "INPROGRESS", "bitbucket-server": "INPROGRESS"}
CANCELLED = {"gitlab": "canceled", "bitbucket": "STOPPED", "bitbucket-server": "CANCELLED"}
RED = {"gitlab": "failed", "bitbucket": "FAILED", "bitbucket-server": "FAILED"}
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
IMAGE = f"r.example/x:t@sha256:{'0' * 64}"


STATUSES, COMMENT = HostRule(statuses=True), HostRule(comment=True)


class Ready(LocalEngine):
    """A local engine whose Docker daemon is ready."""

    change: Callable[[World], World] = staticmethod(lambda world: world)

    def observe(self, in_flight: Collection[str] = ()) -> World:
        return self.change(replace(super().observe(in_flight), nodes=(Node(name="local"),)))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Ready]:
    local = local_engine(tmp_path / "state", kind=Ready)
    assert isinstance(local, Ready)
    yield local
    local.close()


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Iterator[StatusHost]:
    with StatusHost(getattr(request, "param", "github")) as host:
        yield host


def never(*_: object) -> None:
    raise AssertionError


def event(build: Build, word: Word, attempt: int, now: datetime, cause: Cause | None) -> Event:
    return report.event(build, word, attempt, source="/test", now=now, cause=cause)


@contextmanager
def running(
    engine: LocalEngine,
    host: StatusHost,
    *,
    sinks: list[Sink] | None = None,
    login: Callable[[str, Repository], Login | None] = lambda *_: Login(secret=TOKEN),
    limits: Limits | None = None,
    rule: HostRule = STATUSES,
) -> Iterator[None]:
    """Run a controller that sends statuses to the host."""
    sender = EventSender()
    controller = Controller(
        engine,
        limits=limits or Limits(),
        sinks=sinks or [],
        statuses=Statuses(
            hosts={host.name: HostKind(host.kind)},
            rules={host.name: rule},
            logins=login,
            pages=page_address("https://kiln.example/", "/base/"),
        ),
        sender=sender,
        confirmer=never,
        inspector=never,
        events=event,
    )
    stop = threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop.is_set,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        engine.wake()
        thread.join(20)
        sender.close()


def pushed(
    host: StatusHost,
    name: str = "b",
    *,
    trigger: str | None = "courses",
    do: str = "succeed",
    id_: str = "1",
    **more: Any,
) -> Submission:
    """A submission from a webhook's push."""
    asked = new_submission(name, id_, repository=host.repository, args={"do": do})
    changes = {"by": f"webhook:{host.kind}", "kind": Kind.PUSH, "ref": "refs/heads/main", **more}
    return Submission(name=name, request=asked.request, cause=replace(asked.cause, trigger=trigger, **changes))


def settled(engine: LocalEngine, name: str = "b") -> Build:
    until(lambda: not engine.get(name).open)
    return engine.get(name)


def deliveries(build: Build) -> list[Delivery]:
    return [*build.status.deliveries]


# Statuses sent to a host ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", KINDS, indirect=True)
def test_a_push_is_pending_and_then_green_with_the_image_and_the_link(engine: Ready, host: StatusHost) -> None:
    engine.accept([pushed(host, trace=Trace(traceparent=TRACE))])
    with running(engine, host):
        build = settled(engine)
    states = host.states(COMMIT, "kiln/courses")
    assert states[0] == PENDING.get(host.kind, "pending")
    assert states[-1] == GREEN.get(host.kind, "success")
    assert len(states) == 3
    last = host.statuses[COMMIT, "kiln/courses"][-1]
    assert last["description"] in (IMAGE, f"r.example/x@sha256:{'0' * 64}")
    assert last.get("target_url", last.get("url")) == "https://kiln.example/base/builds/b"
    assert {(one.sink, one.state) for one in deliveries(build)} == {(f"statuses/{host.name}/kiln/courses", "delivered")}
    assert [one.type.split(".")[3] for one in deliveries(build)] == ["queued", "started", "succeeded"]
    assert {one.headers["traceparent"] for one in host.asked} == {TRACE}
    assert {one.headers["authorization"] for one in host.asked} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("host", KINDS, indirect=True)
def test_what_fails_is_red_and_says_why_without_a_mention(engine: Ready, host: StatusHost) -> None:
    words = "step 3: @everyone `rm`\n[click](https://evil.example) \u202e ### " + "x" * 400

    def failed(world: World) -> World:
        result = Result(state=State.FAILED, reason=Reason.REPOSITORY, message=words)
        seen = [replace(one, result=result) if one.result else one for one in world.sightings]
        return replace(world, sightings=tuple(seen))

    engine.change = failed
    engine.accept([pushed(host, trigger=None)])
    with running(engine, host):
        settled(engine)
    assert host.states(COMMIT, "kiln")[-1] == RED.get(host.kind, "failure")
    said = host.statuses[COMMIT, "kiln"][-1]["description"]
    assert said.startswith("repository: step 3: @\u200beveryone")
    assert said.isprintable() or said.replace("\u200b", "").isprintable()
    assert len(said) <= (140 if host.kind == "github" else 255)


@pytest.mark.parametrize("host", KINDS, indirect=True)
def test_what_is_cancelled_is_so_in_the_hosts_own_word(engine: Ready, host: StatusHost) -> None:
    engine.accept([pushed(host, do="wait")])
    with running(engine, host):
        until(lambda: len(host.states(COMMIT, "kiln/courses")) == 2)
        engine.cancel("b", by=None)
        settled(engine)
    assert host.states(COMMIT, "kiln/courses")[-1] == CANCELLED.get(host.kind, "error")
    assert host.statuses[COMMIT, "kiln/courses"][-1]["description"] == "Cancelled"


def test_a_server_of_an_older_bitbucket_is_told_by_the_older_resource(engine: Ready) -> None:
    with StatusHost("bitbucket-server", old=True) as host:
        engine.accept([pushed(host, do="wait")])
        with running(engine, host):
            until(lambda: len(host.states(COMMIT, "kiln/courses")) == 2)
            engine.cancel("b", by=None)
            settled(engine)
        assert host.states(COMMIT, "kiln/courses") == ["INPROGRESS", "INPROGRESS", "FAILED"]


def test_each_trigger_has_its_name_and_a_person_none(engine: Ready, host: StatusHost) -> None:
    engine.accept([pushed(host, do="wait"), pushed(host, trigger="tags", id_="2")])
    engine.accept([pushed(host, trigger=None, id_="3", by="user:mallory")])
    with running(engine, host):
        until(lambda: (engine.get("b").status.attempts or [None])[-1])
        until(lambda: host.states(COMMIT, "kiln/tags") == ["pending", "pending"])
        engine.cancel("b", by=None)
        settled(engine)
    assert {context for _, context in host.statuses} == {"kiln/courses", "kiln/tags"}


def test_a_build_of_another_host_is_not_told(engine: Ready, host: StatusHost) -> None:
    engine.accept([new_submission(args={"do": "succeed"})])
    with running(engine, host):
        settled(engine)
    assert host.asked == []


def test_a_build_with_stored_credentials_tells_nothing_that_it_has_read(engine: Ready, host: StatusHost) -> None:
    def failed(world: World) -> World:
        result = Result(state=State.FAILED, reason=Reason.REPOSITORY, message="line of a secret file")
        seen = [replace(one, result=result) if one.result else one for one in world.sightings]
        return replace(world, sightings=tuple(seen))

    engine.change = failed
    engine.accept([pushed(host, credentials=True)])
    with running(engine, host):
        settled(engine)
    assert host.statuses[COMMIT, "kiln/courses"][-1]["description"] == "The repository could not be built"


# Hosts that fail -----------------------------------------------------------------------------------------------------

LIMITS: Mapping[str, tuple[str, Say]] = {
    "GitHub's secondary limit": ("github", Say(403, {"Retry-After": "1"}, {"message": "secondary rate limit"})),
    "GitHub's primary limit": ("github", Say(403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "now"})),
    "GitHub's 429": ("github", Say(429, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "now"})),
    "GitLab's": ("gitlab", Say(429, {"RateLimit-Remaining": "0", "RateLimit-Reset": "now"}, b"Retry later")),
    "Bitbucket's": ("bitbucket", Say(429, {"Retry-After": "1"})),
    "a proxy's": ("gitea", Say(503, {"Retry-After": "1"})),
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_host_that_was_asked_too_much_is_left_alone_until_it_says(engine: Ready, tmp_path: Path, case: str) -> None:
    """All requests to this host wait; no other sink does."""
    kind, says = LIMITS[case]
    reset = str(int(time.time()) + 3)
    says = Say(
        says.status, {name: reset if value == "now" else value for name, value in says.headers.items()}, says.body
    )
    with StatusHost(kind) as host, EventSink() as hub:
        host.say(says)
        engine.accept([pushed(host), pushed(host, "other", id_="2")])
        with running(engine, host, sinks=[Sink(name="hub", url=hub.url)]):
            hub.wait_for(lambda got: sum(one.events[0].type.endswith("succeeded.v1") for one in got) == 2, 60)
            for name in ("b", "other"):
                settled(engine, name)
        first, second = host.asked[:2]
        assert first.status == says.status
        assert second.at - first.at >= 0.9, "it was asked again too soon"
        assert host.states(COMMIT, "kiln/courses")[-1] == GREEN.get(kind, "success")


def test_a_reset_in_half_an_hour_is_waited_for(engine: Ready, host: StatusHost) -> None:
    """Until then Kiln sends the host no request, about any build."""
    host.say(Say(403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(time.time()) + 1800)}))
    engine.accept([pushed(host), pushed(host, "other", id_="2")])
    with running(engine, host):
        until(lambda: all(engine.get(name).status.outbox for name in ("b", "other")))
        until(lambda: all(engine.get(name).status.outbox[0].deliveries[0].tries for name in ("b", "other")))
        until(lambda: all(engine.get(name).status.state is State.SUCCEEDED for name in ("b", "other")))
    assert len(host.asked) == 1
    now = datetime.now(UTC)
    for name in ("b", "other"):
        first, *later = [one.deliveries[0] for one in engine.get(name).status.outbox]
        assert timedelta(minutes=25) < first.due_at - now <= timedelta(minutes=30)
        assert [one.tries for one in later] == [0, 0]


FINAL: Mapping[str, tuple[Say, str]] = {
    "too many statuses": (Say(422, body={"message": "Validation Failed"}), "answered 422"),
    "no such repository": (Say(404, body={"message": "Not Found"}), "there is no such thing for the credential in"),
    "a token without the scope": (Say(403, body={"message": "Resource not accessible"}), "lacks the permission"),
    "a token that has expired": (Say(401, body={"message": "Bad credentials"}), "is not valid"),
    "another host": (Say(307, {"Location": "http://127.0.0.2:9/x"}), "redirects to other hosts"),
}


@pytest.mark.parametrize("case", FINAL)
def test_the_hosts_last_word_is_a_dead_letter_that_says_why(
    engine: Ready, host: StatusHost, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    says, why = FINAL[case]
    host.say(says, says, says)
    engine.accept([pushed(host)])
    with running(engine, host):
        build = settled(engine)
    assert [one.state for one in deliveries(build)] == ["dead"] * 3
    assert {one.tries for one in deliveries(build)} == {1}
    assert all(why in (one.error or "") for one in deliveries(build))
    assert TOKEN not in json.dumps([one.error for one in deliveries(build)]) + caplog.text
    assert caplog.text.count("Dead letter: sink statuses/") == 3
    assert len(host.asked) == 3


def test_a_repository_that_was_renamed_is_followed_on_its_own_host(engine: Ready, host: StatusHost) -> None:
    host.say(Say(307, {"Location": f"/api/v3/repos/lab/sample/statuses/{COMMIT}?moved=1"}))
    engine.accept([pushed(host)])
    with running(engine, host):
        settled(engine)
    assert host.states(COMMIT, "kiln/courses") == ["pending", "pending", "success"]
    assert host.asked[1].body == host.asked[0].body


def test_without_a_credential_nothing_is_sent(engine: Ready, host: StatusHost) -> None:
    engine.accept([pushed(host)])
    with running(engine, host, login=lambda *_: None):
        build = settled(engine)
    assert host.asked == []
    assert {one.error for one in deliveries(build)} == {f"no credential for this repository in statuses/{host.name}"}


def test_gitlab_that_has_the_state_already_is_done(engine: Ready) -> None:
    """A 409, or a 400 for a status that does not change, counts as delivered. A 409 over another state is retried."""
    with StatusHost("gitlab") as host:
        host.statuses[COMMIT, "kiln/courses"].append({"state": "pending", "name": "kiln/courses", "description": ""})
        engine.accept([pushed(host)])
        with running(engine, host):
            until(lambda: len(host.asked) >= 2)
            build = settled(engine)
        assert [one.state for one in deliveries(build)] == ["delivered"] * 3
        assert host.states(COMMIT, "kiln/courses")[-1] == "success"


def test_a_conflict_over_another_state_is_tried_again(engine: Ready) -> None:
    with StatusHost("gitlab") as host:
        host.statuses[COMMIT, "kiln/courses"].append({"state": "success", "name": "kiln/courses", "description": ""})
        host.say(Say(409, body={"message": "locked"}))
        engine.accept([pushed(host)])
        with running(engine, host):
            settled(engine)
        assert host.states(COMMIT, "kiln/courses") == ["success", "pending", "running", "success"]


# Order, and a change of controller -----------------------------------------------------------------------------------


def test_statuses_keep_their_order_over_failures(engine: Ready, host: StatusHost) -> None:
    """The first status fails for longer than the retries of one send, and its successors wait."""
    host.say(*[Say(502)] * 4)
    engine.accept([pushed(host)])
    with running(engine, host):
        build = settled(engine)
    assert [one.body["description"] for one in host.asked[:5]] == ["Queued"] * 5
    assert host.states(COMMIT, "kiln/courses") == ["pending", "pending", "success"]
    assert [one.body["description"] for one in host.asked[-3:]][-1].endswith("0" * 64)
    assert {one.state for one in deliveries(build)} == {"delivered"}


def test_a_host_that_was_down_is_told_by_the_next_controller(engine: Ready, host: StatusHost) -> None:
    host.stop()
    engine.accept([pushed(host)])
    with running(engine, host):
        until(
            lambda: engine.get("b").status.state == "succeeded" and engine.get("b").status.outbox[0].deliveries[0].tries
        )
    waiting = engine.get("b")
    assert waiting.open
    assert "reached" in (waiting.status.outbox[0].deliveries[0].error or "")
    host.start()
    with running(engine, host):
        build = settled(engine)
    assert host.states(COMMIT, "kiln/courses") == ["pending", "pending", "success"]
    assert {one.state for one in deliveries(build)} == {"delivered"}


def test_what_a_host_did_not_take_in_time_is_a_dead_letter(engine: Ready, host: StatusHost) -> None:
    host.stop()
    engine.accept([pushed(host)])
    with running(engine, host, limits=Limits(delivery_period=timedelta(seconds=1))):
        build = settled(engine)
    assert {one.state for one in deliveries(build)} == {"dead"}


def test_a_silent_host_keeps_no_sink_waiting(engine: Ready, host: StatusHost) -> None:
    host.say(*[Say(201, after=20)] * 3)
    with EventSink() as hub:
        engine.accept([pushed(host)])
        with running(engine, host, sinks=[Sink(name="hub", url=hub.url)]):
            hub.wait_for_event("dev.kiln.build.succeeded.v1", 60)
            assert host.states(COMMIT, "kiln/courses") == []


def test_the_address_of_a_page() -> None:
    assert page_address("https://kiln.example", "/") == "https://kiln.example/builds/"
    assert page_address("https://kiln.example/", "/base/") == "https://kiln.example/base/builds/"
    assert page_address("https://hub.example/services/binder/", "/services/binder/") == (
        "https://hub.example/services/binder/builds/"
    )


def test_a_deleted_record_turns_pending_into_cancelled(tmp_path: Path, engine: Ready, host: StatusHost) -> None:
    engine.accept([pushed(host, do="wait")])
    with running(engine, host):
        until(lambda: len(host.states(COMMIT, "kiln/courses")) == 2)
        with closing(sqlite3.connect(tmp_path / "state" / "kiln.db")) as connection, connection:
            connection.execute("DELETE FROM builds WHERE name = 'b'")
        until(lambda: host.states(COMMIT, "kiln/courses")[-1] == "error")
    assert host.statuses[COMMIT, "kiln/courses"][-1]["description"].startswith("Cancelled")


# The comment of a pull request ---------------------------------------------------------------------------------------

REFS = {"gitlab": "refs/merge-requests/7/head", "bitbucket": "refs/pull-requests/7/from"}
REFS["bitbucket-server"] = REFS["bitbucket"]
ANOTHERS = "[kiln-comment]: #\n\nnot Kiln's"


def requested(host: StatusHost, name: str = "b", **more: Any) -> Submission:
    """A submission from a webhook's pull request."""
    return pushed(host, name, ref=REFS.get(host.kind, "refs/pull/7/head"), **more)


@pytest.mark.parametrize("host", KINDS, indirect=True)
def test_a_request_has_one_comment_that_is_kept_up_to_date(engine: Ready, host: StatusHost) -> None:
    """A user who copies the mark has a comment of their own, and a restart makes no second one."""
    for number in range(120):
        host.comment(f"a remark, {number}", "ada")
    host.comment(ANOTHERS, "mallory")
    engine.accept([requested(host)])
    with running(engine, host, rule=COMMENT):
        build = settled(engine)
    assert [one.sink for one in deliveries(build)] == [f"comments/{host.name}/7/kiln/courses"]
    (ours,) = [one["text"] for one in host.comments if one["author"] == "kiln"]
    assert f"docker run --rm -it -p 8888:8888 r.example/x@sha256:{'0' * 64}\n" in ours
    assert "[The build](<https://kiln.example/base/builds/b>)" in ours
    assert host.statuses == {}

    engine.accept([requested(host, "other", trigger="tags", id_="2"), requested(host, "again", id_="3")])
    with running(engine, host, rule=COMMENT):
        settled(engine, "other")
        settled(engine, "again")
    (now,) = [one["text"] for one in host.comments if one["author"] == "kiln"]
    assert now.count("docker run") == 2
    assert "builds/other>" in now
    assert "builds/again>" in now
    assert "builds/b>" not in now
    assert [one["text"] for one in host.comments if one["author"] == "mallory"] == [ANOTHERS]


def test_a_host_that_does_not_tell_whose_the_token_is_says_what_may_be_changed_with_it(engine: Ready) -> None:
    with StatusHost("bitbucket") as host:
        host.tells_account = False
        host.comment(ANOTHERS, "mallory")
        engine.accept([requested(host)])
        with running(engine, host, rule=COMMENT):
            settled(engine)
        engine.accept([requested(host, "other", id_="2")])
        with running(engine, host, rule=COMMENT):
            settled(engine, "other")
        assert [one["author"] for one in host.comments] == ["mallory", "kiln"]
        assert "builds/other>" in host.comments[1]["text"]
        assert host.comments[0]["text"] == ANOTHERS


def test_an_answer_that_was_lost_makes_no_second_comment(engine: Ready, host: StatusHost) -> None:
    """The host has created the comment, but its answer was lost. The next try finds the comment."""
    engine.accept([requested(host)])
    made = host._made

    def lost(**given: Any) -> Say:
        made(**given)
        return Say(502)

    host._made = lost  # type: ignore[method-assign]
    with running(engine, host, rule=COMMENT):
        settled(engine)
    assert [one["author"] for one in host.comments] == ["kiln"]


def test_a_build_of_a_former_head_changes_nothing(engine: Ready, host: StatusHost) -> None:
    host.head = "d" * 40
    engine.accept([requested(host)])
    with running(engine, host, rule=COMMENT):
        build = settled(engine)
    assert host.comments == []
    assert {one.state for one in deliveries(build)} == {"delivered"}


def test_a_comment_shows_a_failure_as_code_and_a_push_has_none(engine: Ready, host: StatusHost) -> None:
    words = "[kiln-comment]: #\n```\n@everyone <img src=x> [click](https://evil.example)"

    def failed(world: World) -> World:
        result = Result(state=State.FAILED, reason=Reason.REPOSITORY, message=words)
        seen = [replace(one, result=result) if one.result else one for one in world.sightings]
        return replace(world, sightings=tuple(seen))

    engine.change = failed
    engine.accept([requested(host)])
    engine.accept([pushed(host, "other", id_="2")])
    with running(engine, host, rule=COMMENT):
        settled(engine)
        settled(engine, "other")
    (comment,) = host.comments
    lines = comment["text"].split("\n")
    assert lines.count("[kiln-comment]: #") == 1
    (at,) = [number for number, line in enumerate(lines) if "everyone" in line]
    assert lines[at - 1] == lines[at + 1] == "````"
    assert lines[at].startswith("repository: [kiln-comment]: # ``` @\u200beveryone <img src=x>")


@pytest.mark.parametrize("status", [401, 404])
def test_a_request_that_may_not_be_seen_is_a_dead_letter(engine: Ready, host: StatusHost, status: int) -> None:
    host.say(Say(status))
    engine.accept([requested(host)])
    with running(engine, host, rule=COMMENT):
        build = settled(engine)
    assert [(one.state, one.tries) for one in deliveries(build)] == [("dead", 1)]
    assert host.comments == []
