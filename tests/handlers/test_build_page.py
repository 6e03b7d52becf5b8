"""The page of a build without a browser: its steps, the reason of its failure, and its actions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Delivery, DeliveryState, Reason, State
from builds.explanation import MAX_QUOTED, decisive_lines, explain
from handlers.auth import Gate
from handlers.buildpage import PHASES, steps
from tests.handlers.harness import Harness, Named, frames
from tests.handlers.markup import check_structure
from tests.handlers.test_pages import HTML, form

SECONDS = st.none() | st.floats(0, 1e4)


@given(
    st.sampled_from([*State]),
    st.booleans(),
    st.fixed_dictionaries(dict.fromkeys(("queued", *PHASES), SECONDS)),
    st.none() | st.sampled_from(PHASES),
)
def test_steps_are_done_in_order_up_to_one(
    state: State, started: bool, durations: dict[str, float | None], phase: str | None
) -> None:
    build = {"state": state.value, "started_at": "2026-01-01T00:00:00Z" if started else None, "durations": durations}
    states = [step.state for step in steps(build, phase)]
    done = states.index(next((one for one in states if one != "done"), ""), 0) if {*states} != {"done"} else len(states)
    assert states[:done] == ["done"] * done
    assert [one for one in states[done + 1 :] if one] == []
    assert (len(states) == done) is (state is State.SUCCEEDED)
    if state is State.QUEUED:
        assert states == ["current", "", "", ""]


def test_a_running_build_is_at_the_step_that_its_log_is_about() -> None:
    durations = {"queued": 1.0, "fetch": None, "build": None, "push": None}
    build = {"state": "running", "started_at": "2026-01-01T00:00:00Z", "durations": durations}
    assert [step.state for step in steps(build, "build")] == ["done", "done", "current", ""]
    assert [step.state for step in steps({**build, "state": "failed"}, "build")] == ["done", "done", "failed", ""]


PARTS = ("", "?part=facts", "?attempt=1", "?attempt=1&part=facts")
"""Queries of a build's page. Each shows the facts, of which the steps are those of the latest attempt."""


def marked(harness: Harness, name: str, query: str) -> tuple[str, str]:
    """The first step that the page does not show as done, and how it is marked."""
    page = BeautifulSoup(harness.client.get(f"/builds/{name}{query}", headers=HTML).text, "html.parser")
    (step, *_) = (one for one in page.select(".steps li") if one["class"] != ["done"])
    return str(step["data-step"]), " ".join(step["class"])


@pytest.mark.parametrize("query", PARTS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_failure_without_durations_is_at_the_step_of_its_log(harness: Harness, phase: str, query: str) -> None:
    """An attempt that Kiln or a lost node ended has no result, and so no durations."""
    name = harness.run(harness.ask().name).name
    harness.say(name, "the first attempt", phase="push" if phase != "push" else "fetch")
    harness.end(name, retry=True)
    harness.run(name)
    harness.say(name, "Trace 1.", phase="", attempt=2)
    harness.say(name, "the last words", phase=phase, attempt=2)
    if "part=facts" not in query:  # the script marks the step of a running build
        assert marked(harness, name, query) == (phase, "current")
    harness.end(name, attempt=2, state=State.FAILED, reason=Reason.INFRASTRUCTURE)
    assert marked(harness, name, query) == (phase, "failed")


def ended(**facts: Any) -> dict[str, Any]:
    return {"state": "failed", "reason": "repository", "message": None, "log": {"tail": ""}, **facts}


def test_a_failure_quotes_the_lines_that_tell() -> None:
    tail = "#9 1.0 Collecting a\n#9 1.1 ERROR: No matching distribution\n#9 1.2 notice: a new pip\n#9 2 time: 37.1"
    message = "RUN pip install: exit code 1; it said: ERROR: No matching distribution"
    found = explain(ended(message=message, log={"tail": tail}))
    assert found
    assert found.sentence == "RUN pip install: exit code 1"
    assert found.quoted == ("ERROR: No matching distribution",)
    assert "push" in found.next_step
    elsewhere = explain(ended(message=message))
    assert elsewhere
    assert elsewhere.quoted == ("ERROR: No matching distribution",)


@given(st.lists(st.text(max_size=30) | st.just("fatal: no such thing")), st.text(max_size=50))
def test_few_lines_are_quoted_and_only_what_the_log_says(tail: list[str], message: str) -> None:
    quoted = decisive_lines(tail, message)
    assert len(quoted) <= MAX_QUOTED
    assert all(any(line in said for said in tail) for line in quoted)


@pytest.mark.parametrize("reason", [*Reason])
def test_each_end_without_an_image_says_what_to_do(reason: Reason) -> None:
    found = explain(ended(reason=reason.value))
    assert found
    assert found.next_step.endswith(".")


def test_what_goes_well_is_not_explain() -> None:
    for state in ("queued", "running", "succeeded"):
        assert explain(ended(state=state, reason=None)) is None


def test_the_stream_of_the_page_has_no_control_sequence(harness: Harness) -> None:
    build = harness.run(harness.ask().name)
    harness.say(build.name, "\x1b[1;31mred\x1b[0m plain\x1b]0;t\x07", "10%\r20%", "<b>")
    harness.end(build.name)
    accept = {"Accept": "text/event-stream"}
    answer = harness.client.get(f"/builds/{build.name}/log", headers=accept)
    told = [frame for frame in frames(iter([answer.data])) if frame.get("event") == "log"]
    assert [frame["id"] for frame in told] == ["1:1", "1:2", "1:3"]
    assert [json.loads(frame["data"]) for frame in told] == [
        {"line": "red plain", "phase": "build", "runs": [["bold fg-1", "red"], ["", " plain"]]},
        {"line": "20%", "phase": "build"},
        {"line": "<b>", "phase": "build"},
    ]
    resumed = harness.client.get(f"/builds/{build.name}/log", headers={**accept, "Last-Event-ID": "1:2"})
    assert [frame["id"] for frame in frames(iter([resumed.data])) if frame.get("event") == "log"] == ["1:3"]


def test_the_log_is_a_file_and_an_attempt_has_its_own(harness: Harness) -> None:
    build = harness.run(harness.ask().name)
    harness.say(build.name, "first try")
    harness.end(build.name, retry=True)
    harness.run(build.name)
    harness.say(build.name, "second try", attempt=2)
    answer = harness.client.get(f"/builds/{build.name}/log?attempt=1")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{build.name}-1.log"'
    assert (answer.mimetype, answer.text) == ("text/plain", "first try\n")
    page = harness.client.get(f"/builds/{build.name}?attempt=1", headers=HTML).text
    assert f'data-stream="/builds/{build.name}/log?attempt=1"' in page
    assert "first try" in page
    assert "second try" not in page
    assert harness.client.get(f"/builds/{build.name}?attempt=3", headers=HTML).status_code == 404


def test_the_facts_come_without_the_log(harness: Harness) -> None:
    build = harness.run(harness.ask().name)
    harness.say(build.name, "Step 1")
    facts = harness.client.get(f"/builds/{build.name}?part=facts", headers=HTML).text
    assert 'id="facts"' in facts
    assert "Step 1" not in facts


def test_building_again_takes_its_form_and_opens_the_next_round(harness: Harness) -> None:
    client = harness.client
    build = harness.run(harness.ask().name)
    path = f"/builds/{build.name}/rebuild"
    assert "Build again" not in client.get(f"/builds/{build.name}", headers=HTML).text
    harness.end(build.name, state=State.FAILED, reason=Reason.INFRASTRUCTURE)
    page = client.get(f"/builds/{build.name}", headers=HTML)
    assert "Build again" in page.text
    assert client.post(path, data={"form": "x" * 43}, headers=HTML).status_code == 403
    assert harness.engine.get(build.name).state is State.FAILED
    answer = client.post(path, data={"form": form(page)}, headers=HTML)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/builds/{build.name}")
    assert harness.engine.get(build.name).state is State.QUEUED


def test_a_refused_event_is_sent_again_by_its_form(harness: Harness) -> None:
    client = harness.client
    build = harness.run(harness.ask().name)
    at = harness.services.now()
    had = [Delivery(sink="hub", event="1", type="queued", state=DeliveryState.DELIVERED, due_at=at)]
    had += [Delivery(sink="hub", event="2", type="end", state=DeliveryState.DEAD, due_at=at, error="answered 400")]
    harness.end(build.name, deliveries=tuple(had))
    page = client.get(f"/builds/{build.name}", headers=HTML)
    found = BeautifulSoup(page.text, "html.parser")
    check_structure(found)
    (button,) = found.select("form[action$='/resend']")
    data = {one["name"]: one["value"] for one in button.find_all("input")}
    assert data["sink"] == "hub"
    path = f"/builds/{build.name}/resend"
    assert client.post(path, data={**data, "form": "x" * 43}, headers=HTML).status_code == 403
    assert harness.engine.get(build.name).resending == ()
    for sink in ("hub", "unknown"):
        answer = client.post(path, data={**data, "sink": sink}, headers=HTML)
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/builds/{build.name}")
    assert harness.engine.get(build.name).resending == ("hub",)


def test_an_image_that_is_there_is_built_again_only_for_those_who_may(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth_gate=Gate((Named("user:ada"),)))
    build = harness.run(harness.ask().name)
    harness.end(build.name)
    page = harness.client.get(f"/builds/{build.name}", headers=HTML)
    assert "docker pull" in page.text
    assert "Build again" not in page.text
    data = {"form": form(page)}
    assert harness.client.post(f"/builds/{build.name}/rebuild", data=data, headers=HTML).status_code == 403
