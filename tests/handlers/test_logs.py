"""A log as text and as server-sent events.

Every client gets the same line numbers, may resume, and follows all attempts to the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from builds.build import Build, State
from builds.transitions import change
from handlers import logs
from handlers.problems import Problem
from tests.handlers.harness import Harness, frames

SSE = {"Accept": "text/event-stream"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_INTERVAL", 0.02)


@pytest.fixture
def running(harness: Harness) -> Build:
    return harness.run(harness.ask().name)


def stream(client: FlaskClient, name: str, **headers: str) -> tuple[TestResponse, Iterator[dict[str, str]]]:
    answer = client.get(f"/api/v1/builds/{name}/log", headers={**SSE, **headers}, buffered=False)
    return answer, frames(answer.response)  # type: ignore[arg-type]


def said(frame: dict[str, str]) -> str:
    line: str = json.loads(frame["data"])["line"]
    return line


def test_text_is_what_is_there_now(harness: Harness, running: Build) -> None:
    harness.say(running.name, "one", "<b>zwei</b> \x1b[31mé")
    answer = harness.client.get(f"/api/v1/builds/{running.name}/log")
    assert (answer.status_code, answer.content_type) == (200, "text/plain; charset=utf-8")
    assert answer.text == "one\n<b>zwei</b> \x1b[31mé\n"


def test_json_lines_are_what_is_there_now_with_their_phases(harness: Harness, running: Build) -> None:
    harness.say(running.name, "Trace 1.", phase="")
    harness.say(running.name, "one", "\u2028<b>zwei</b> \x1b[31mé")
    answer = harness.client.get(f"/api/v1/builds/{running.name}/log", headers={"Accept": "application/x-ndjson"})
    assert (answer.status_code, answer.content_type) == (200, "application/x-ndjson")
    assert [json.loads(line) for line in answer.text.removesuffix("\n").split("\n")] == [
        {"line": "Trace 1.", "phase": None},
        {"line": "one", "phase": "build"},
        {"line": "\u2028<b>zwei</b> \x1b[31mé", "phase": "build"},
    ]


def test_a_log_that_cannot_be_read_is_503_and_is_read_again(harness: Harness, running: Build) -> None:
    harness.say(running.name, "one")
    path = harness.folder / "attempts" / f"{running.name}-1" / "log"
    kept = path.rename(path.with_name("kept"))
    path.mkdir()
    for accept in ("*/*", "text/html", "text/plain", "application/x-ndjson"):
        answer = harness.client.get(f"/api/v1/builds/{running.name}/log", headers={"Accept": accept})
        assert (answer.status_code, answer.mimetype) == (503, "application/problem+json")
        assert (answer.json["detail"], "Retry-After" in answer.headers) == (
            "The log is unavailable. Retry.",
            True,
        )
    page = harness.client.get(f"/builds/{running.name}", headers={"Accept": "text/html"})
    assert (page.status_code, "The log is not readable now" in page.text) == (200, True)
    answer, events = stream(harness.client, running.name)
    with closing(answer):
        assert json.loads(next(events)["data"])["state"] == "running"
        path.rmdir()
        kept.rename(path)
        assert said(next(events)) == "one"
    assert harness.client.get(f"/api/v1/builds/{running.name}/log").text == "one\n"


def test_a_log_that_stays_unreadable_keeps_nobody_from_the_end(
    harness: Harness, running: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "UNREADABLE", 0.2)
    harness.say(running.name, "one")
    harness.end(running.name, retry=True)
    path = harness.folder / "attempts" / f"{running.name}-1" / "log"
    path.rename(path.with_name("kept"))
    path.mkdir()
    harness.run(running.name)
    harness.say(running.name, "two", attempt=2)
    harness.end(running.name, attempt=2)
    answer, events = stream(harness.client, running.name)
    with closing(answer):
        seen = list(events)
    assert [said(frame) for frame in seen if frame["event"] == "log"] == ["two"]
    assert json.loads(seen[-1]["data"])["state"] == "succeeded"


def test_a_forced_build_is_followed_from_its_next_attempt(harness: Harness, running: Build) -> None:
    """The stream must not replay the log of the previous attempt."""
    harness.say(running.name, "old")
    harness.end(running.name)
    harness.ask(force=True)
    answer, events = stream(harness.client, running.name)
    with closing(answer):
        assert json.loads(next(events)["data"])["state"] == "queued"
        waiting = harness.engine.get(running.name)
        status = change(waiting.status, state=State.QUEUED, attempt=2, round=2, round_began_with=2, finished_at=None)
        harness.engine.write(change(waiting, status=status))
        harness.run(running.name)
        harness.say(running.name, "new", attempt=2)
        harness.end(running.name, attempt=2)
        assert [said(frame) for frame in events if frame["event"] == "log"] == ["new"]


def test_a_build_that_waits_has_an_empty_log(harness: Harness) -> None:
    assert harness.client.get(f"/api/v1/builds/{harness.ask().name}/log").text == ""


def test_a_log_is_followed_from_the_first_line_to_the_end(harness: Harness, running: Build) -> None:
    harness.say(running.name, "one", "two")
    answer, events = stream(harness.client, running.name)
    with closing(answer):
        assert answer.mimetype == "text/event-stream"
        assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-cache", "no")
        first = next(events)
        assert (first["event"], json.loads(first["data"])["state"]) == ("state", "running")
        assert "id" not in first
        assert "tail" not in json.loads(first["data"])["log"]
        assert [(frame["id"], said(frame)) for frame in (next(events), next(events))] == [
            ("1:1", "one"),
            ("1:2", "two"),
        ]
        harness.say(running.name, "three")
        three = next(events)
        assert (three["event"], three["id"], json.loads(three["data"])) == (
            "log",
            "1:3",
            {"line": "three", "phase": "build"},
        )
        harness.end(running.name)
        *_, last = events
        assert (last["event"], json.loads(last["data"])["state"]) == ("state", "succeeded")


def test_it_goes_on_into_the_next_attempt(harness: Harness, running: Build) -> None:
    harness.say(running.name, "one")
    answer, events = stream(harness.client, running.name)
    with closing(answer), ThreadPoolExecutor(1) as pool:
        everything = pool.submit(list, events)
        harness.end(running.name, retry=True)
        harness.run(running.name)
        harness.say(running.name, "again", attempt=2)
        harness.end(running.name, attempt=2, state=State.FAILED)
        seen = everything.result(timeout=20)
    assert [frame["id"] for frame in seen if frame.get("event") == "log"] == ["1:1", "2:1"]
    states = [json.loads(frame["data"])["state"] for frame in seen if frame.get("event") == "state"]
    assert states[-1] == "failed"
    assert states.count("failed") == 1


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("1:1", ["1:2", "2:1", "2:2"]),
        ("1:2", ["2:1", "2:2"]),
        ("2:1", ["2:2"]),
        ("2:2", []),
        ("1:99", ["2:1", "2:2"]),
        *(
            (bad, ["1:1", "1:2", "2:1", "2:2"])
            for bad in ("", "x", "1", "0:1", "-1:1", "3:1", "1:1 ", "٣:1", "9" * 99 + ":1")
        ),
    ],
)
def test_it_resumes_anywhere_and_after_nonsense_begins_anew(
    harness: Harness, running: Build, last: str, expected: list[str]
) -> None:
    harness.say(running.name, "a", "b")
    harness.end(running.name, retry=True)
    harness.run(running.name)
    harness.say(running.name, "c", "d", attempt=2)
    harness.end(running.name, attempt=2)
    answer, events = stream(harness.client, running.name, **{"Last-Event-ID": last.encode().decode("latin-1")})
    with closing(answer):
        seen = list(events)
    assert [frame["id"] for frame in seen if "id" in frame] == expected
    assert seen[-1]["event"] == "state"


def test_one_attempt_can_be_asked_for(harness: Harness, running: Build) -> None:
    harness.say(running.name, "a")
    harness.end(running.name, retry=True)
    harness.run(running.name)
    harness.say(running.name, "b", attempt=2)
    path = f"/api/v1/builds/{running.name}/log"
    assert harness.client.get(path).text == "b\n"
    assert harness.client.get(f"{path}?attempt=1").text == "a\n"
    assert [harness.client.get(f"{path}?attempt={bad}").status_code for bad in ("3", "0", "x", "-1", "")] == [
        404,
        404,
        *[400] * 3,
    ]


def test_viewers_have_a_limit_and_every_place_is_given_back(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(max_viewers=2)
    name = harness.run(harness.ask().name).name
    for _ in range(3):
        answers = [stream(harness.client, name)[0] for _ in range(2)]
        refused, _ = stream(harness.client, name)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert harness.client.get(f"/api/v1/builds/{name}/log").status_code == 200
        assert harness.client.head(f"/api/v1/builds/{name}/log", headers=SSE).status_code == 200
        next(iter(answers[0].response))
        for answer in answers:  # one was read from, the other never
            answer.close()
            answer.close()


def test_silence_is_broken(harness: Harness, running: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "KEEPALIVE", 0.05)
    answer, events = stream(harness.client, running.name)
    with closing(answer):
        assert next(events)["event"] == "state"
        assert "comment" in next(events)


def test_a_hostile_line_is_one_line_of_json(harness: Harness, running: Build) -> None:
    hostile = "data: x\r\u2028\u0085 event: state</script>"
    harness.say(running.name, hostile.replace("\u2028", "").replace("\u0085", "").replace("\r", ""))
    answer, events = stream(harness.client, running.name)
    with closing(answer):
        next(events)
        assert said(next(events)).startswith("data: x")


def test_a_record_that_goes_away_ends_the_stream(harness: Harness, running: Build) -> None:
    answer, events = stream(harness.client, running.name)
    with closing(answer):
        next(events)
        harness.end(running.name)
        harness.engine.forget(harness.engine.get(running.name))
        assert len(list(events)) <= 1


def test_one_person_does_not_have_all_the_places() -> None:
    viewers = logs.Viewers(8)
    mine = [viewers.enter("user:mallory") for _ in range(2)]
    with pytest.raises(Problem) as refused:
        viewers.enter("user:mallory")
    assert refused.value.status == 429
    others = [viewers.enter(by) for by in ("user:ada", *["token:ci"] * 5)]
    with pytest.raises(Problem) as full:
        viewers.enter("user:kim")
    assert full.value.status == 503
    for leave in (*mine, *mine, *others):
        leave()
    assert viewers.enter("user:mallory")
