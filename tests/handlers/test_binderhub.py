"""BinderHub's API as its clients see it: messages in order, one final message, and only status 200."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from werkzeug.test import TestResponse

from builds.build import Build, State
from builds.engines import Unavailable
from builds.transitions import change
from handlers import logs
from tests.handlers.harness import COMMIT, PREFIX, TOKENS, Harness, bearer, frames
from tests.parts.githost import GitHost, git

SPEC = f"/build/gh/octo/stats/{COMMIT}"
URL = f"{SPEC}?build_only=true"
DIGEST = "sha256:" + "b" * 64

Message = Mapping[str, Any]


def there(image: str, tag: str, build: str) -> str:
    """Answer as a registry that has every image."""
    return DIGEST


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_INTERVAL", 0.02)
    monkeypatch.setattr(logs, "CHANGE_TIMEOUT", 0.1)


@contextmanager
def stream(harness: Harness, url: str = URL, **headers: str) -> Iterator[tuple[TestResponse, Iterator[Message]]]:
    """Yield an answer and an iterator over its messages, each with its `id`."""
    answer = harness.client.get(url, headers=headers, buffered=False)
    assert (answer.status_code, answer.content_type) == (200, "text/event-stream"), answer.text
    with closing(answer):
        yield answer, messages(frames(answer.response))  # type: ignore[arg-type]


def messages(found: Iterator[Mapping[str, str]]) -> Iterator[Message]:
    for frame in found:
        if "data" in frame:
            assert "event" not in frame  # EventSource's onmessage gets only unnamed events
            yield {**json.loads(frame["data"]), **({"id": frame["id"]} if "id" in frame else {})}


def everything(harness: Harness, url: str = URL, **headers: str) -> list[Message]:
    with stream(harness, url, **headers) as (_, said):
        return list(said)


def phases(said: Sequence[Message]) -> list[str]:
    return [message["phase"] for message in said]


def the_refusal(harness: Harness, url: str = URL, **headers: str) -> Message:
    (said,) = everything(harness, url, **headers)
    assert said["phase"] == "failed"
    assert re.fullmatch(r".*\w.*\n", said["message"])
    return said


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    with GitHost(tmp_path / "git") as host:
        content = tmp_path / "content"
        content.mkdir()
        (content / "README.md").write_text("hello")
        head = host.create("team/course", content)
        for branch in ("feature/x", "v1"):
            git("update-ref", f"refs/heads/{branch}", head, cwd=host.bare("team/course"))
        yield host


def spec_of(host: GitHost, ref: str, path: str = "team/course") -> str:
    return f"/build/git/{quote(host.url(path), safe='')}/{ref}"


# A build from the request to its end ----------------------------------------------------------------------------------


def test_a_cold_build_is_told_to_the_end(harness: Harness) -> None:
    with stream(harness) as (answer, said):
        assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-cache", "no")
        first = next(said)
        assert (first["phase"], first["message"]) == ("waiting", "Waiting for build to start...\n")
        (build,) = harness.builds()
        assert (build.request.repository, build.request.commit) == ("https://github.com/octo/stats", COMMIT)
        (cause,) = build.causes
        assert (cause.kind, cause.type, cause.source) == ("person", "dev.kiln.build.requested.v1", SPEC)
        harness.run(build.name)
        harness.say(build.name, "Step 1/2", "  <b>é</b>")
        lines = [next(said), next(said)]
        assert [(line["phase"], line["message"], line["id"]) for line in lines] == [
            ("building", "Step 1/2\n", f"{build.name}:1:1"),
            ("building", "  <b>é</b>\n", f"{build.name}:1:2"),
        ]
        harness.end(build.name)
        (end,) = said
    assert end == {
        "phase": "ready",
        "message": "Done! Image built\n",
        "imageName": f"{build.request.image}:{COMMIT}",
        "imageDigest": "sha256:" + "a" * 64,
        "id": f"{build.name}:1:2",
    }
    assert build.request.image.startswith(PREFIX)


def test_a_failed_build_says_why_and_that_it_waits_for_another_try(harness: Harness) -> None:
    with stream(harness) as (_, said):
        next(said)
        name = harness.builds()[0].name
        harness.run(name)
        harness.say(name, "one")
        assert next(said)["id"] == f"{name}:1:1"
        explain(harness, harness.end(name, retry=True), waiting="Retried after 12:00:00 UTC: the network.")
        assert next(said)["message"] == "Retried after 12:00:00 UTC: the network.\n"
        harness.run(name)
        harness.say(name, "two", attempt=2)
        assert next(said)["id"] == f"{name}:2:1"
        explain(harness, harness.end(name, attempt=2, state=State.FAILED), message="The step COPY failed.")
        (end,) = said
    assert (end["phase"], end["message"]) == ("failed", "The step COPY failed.\n")
    assert "imageName" not in end


def explain(harness: Harness, build: Build, **changes: object) -> None:
    harness.engine.write(change(build, status=change(build.status, **changes)))


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_an_end_without_a_reason_still_has_a_message(harness: Harness, state: State) -> None:
    name = harness.run(harness.ask().name).name
    harness.end(name, state=state)
    (*_, end) = everything(harness)
    assert end["phase"] == "failed"
    assert state in end["message"]


def test_who_waits_is_told_why_and_who_else_does(harness: Harness) -> None:
    others = [harness.ask(subdir=str(number)).name for number in range(2)]
    with stream(harness) as (_, said):
        assert "2 other builds wait" in next(said)["message"]
        build = next(build for build in harness.builds() if build.name not in others)
        explain(harness, build, waiting="No node has a ready Docker daemon.")
        assert next(said)["message"].startswith("No node has a ready Docker daemon.")


def test_an_image_that_is_there_is_ready_at_once_and_nothing_is_built(harnesses: Callable[..., Harness]) -> None:
    asked: list[tuple[str, str]] = []
    names: list[str] = []

    def find(image: str, tag: str, build: str) -> str:
        asked.append((image, tag))
        names.append(build)
        return DIGEST

    harness = harnesses(find_image=find)
    (end,) = everything(harness)
    assert end == {
        "phase": "ready",
        "message": "Done! Found built image\n",
        "imageName": ":".join(asked[0]),
        "imageDigest": DIGEST,
    }
    assert not harness.builds()
    assert names == [harness.ask().name], "only what this very build has pushed"


@pytest.mark.parametrize(("after", "uses"), [(timedelta(hours=6), 2), (None, 1)])
def test_the_use_of_an_image_that_may_be_deleted_is_noted(
    harnesses: Callable[..., Harness], after: timedelta | None, uses: int
) -> None:
    """Kiln notes the use at most once per interval, so that not every use causes a write."""
    moment = [datetime.now(UTC)]
    harness = harnesses(find_image=there, note_use_after=after, now=lambda: moment[0])
    build = harness.ask()
    for hours in (1, 7, 8):
        moment[0] += timedelta(hours=hours - (moment[0] - build.created_at) / timedelta(hours=1))
        assert phases(everything(harness))[-1] == "ready"
    assert len(harness.engine.get(build.name).causes) == uses


@pytest.mark.parametrize("query", ["", "?build_only=false", "?build_only=TRUE", "?build_only=true&build_token=x.y.z"])
def test_it_never_launches_and_says_so(harnesses: Callable[..., Harness], query: str) -> None:
    said = everything(harnesses(find_image=there), f"{SPEC}{query}")
    assert phases(said)[-1] == "ready"
    assert ("JupyterHub launches it" in said[0]["message"]) == ("true" not in query.lower())


def test_two_viewers_see_one_build(harness: Harness) -> None:
    with stream(harness) as (_, first), stream(harness) as (_, second):
        (build,) = harness.builds()
        assert len(build.causes) == 2
        harness.run(build.name)
        harness.say(build.name, "one")
        harness.end(build.name)
        seen = [list(first), list(second)]
    assert seen[0] == seen[1]
    assert phases(seen[0])[-2:] == ["building", "ready"]


@pytest.mark.parametrize("accept", [None, "*/*", "text/event-stream", "text/event-stream, */*", "application/json"])
def test_any_accept_will_do(harnesses: Callable[..., Harness], accept: str | None) -> None:
    said = everything(harnesses(find_image=there), URL, **({"Accept": accept} if accept else {}))
    assert phases(said) == ["ready"]


def test_a_build_in_silence_is_kept_alive(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "KEEPALIVE", 0.05)
    with closing(harness.client.get(URL, buffered=False)) as answer:
        seen = frames(answer.response)  # type: ignore[arg-type]
        assert "data" in next(seen)
        assert "comment" in next(seen)
    assert logs.KEEPALIVE <= 25


# Specs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        f"gh/octo/stats/{COMMIT}",
        f"gh/Octo/Stats/{COMMIT}/",
        f"gh/octo%2Fstats/{COMMIT}",
        f"git/https%3A%2F%2Fgithub.com%2Focto%2Fstats/{COMMIT}",
        f"git/https%3a%2f%2fgithub.com%2focto%2fstats.git/{COMMIT}",
    ],
)
@pytest.mark.parametrize("base", ["/", "/services/binder/"])
def test_however_it_is_written_it_is_one_build(harnesses: Callable[..., Harness], spec: str, base: str) -> None:
    harness = harnesses(base_path=base)
    name = house_name(harness, f"{base}build/{spec}?build_only=true")
    assert name == house_name(harnesses(), URL)


def house_name(harness: Harness, url: str) -> str:
    with stream(harness, url) as (_, said):
        assert next(said)["phase"] == "waiting"
    (build,) = harness.builds()
    return build.name


def test_a_server_that_tells_no_raw_path_still_takes_what_needs_none(harness: Harness) -> None:
    for environ in ({"RAW_URI": "", "REQUEST_URI": ""}, {"RAW_URI": "/elsewhere"}, {"RAW_URI": f"http://h{SPEC}?x"}):
        answer = harness.client.get(SPEC, environ_overrides=environ, buffered=False)
        with closing(answer):
            assert json.loads(next(frames(answer.response))["data"])["phase"] == "waiting"  # type: ignore[arg-type]
    assert len(harness.builds()) == 1


def test_refs_are_looked_up(harnesses: Callable[..., Harness], host: GitHost) -> None:
    harness = harnesses(allowed=[f"{host.base}/**"], find_image=there)
    for ref in ("main", "HEAD", "feature/x", "feature%2Fx", "v1"):
        assert phases(everything(harness, f"{spec_of(host, ref)}?build_only=true")) == ["ready"]
    assert "no branch or tag 'nowhere'" in the_refusal(harness, spec_of(host, "nowhere"))["message"]
    assert "HEAD" in the_refusal(harness, spec_of(host, "nowhere"))["message"]
    assert "complete" in the_refusal(harness, spec_of(host, "abc1234"))["message"]
    missing = the_refusal(harness, spec_of(host, "main", path="team/none"))
    assert (missing["status_code"], "no such repository" in missing["message"]) == (422, True)


def test_a_default_branch_by_its_old_name_is_built_with_advice(
    harnesses: Callable[..., Harness], host: GitHost
) -> None:
    harness = harnesses(allowed=[f"{host.base}/**"], find_image=there)
    note, end = everything(harness, f"{spec_of(host, 'master')}?build_only=true")
    assert note["phase"] == "waiting"
    assert all(word in note["message"] for word in ("'master'", "HEAD", "Update your links"))
    assert end["phase"] == "ready"


# Refusals: 200, and one event with the reason -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ("zenodo/10.5281/zenodo.3242074", 422),
        ("nope/a/b/c", 422),
        ("gh/octo", 400),
        ("gh/octo/stats", 400),
        ("gh/octo/sta%20ts/HEAD", 400),
        ("gh/octo/stats/-x", 400),
        ("gh/octo/stats/a..b", 400),
        ("git/https:%2F%2F127.0.0.1%2Fa/HEAD", 422),
        ("git/file%3A%2F%2F%2Fetc/HEAD", 422),
        ("git/git%40github.com%3Aa%2Fb/HEAD", 422),
        ("git/https%3A%2F%2Fada:canary@github.com%2Fa%2Fb/HEAD", 422),
        (f"gh/octo/stats/{COMMIT}?token=canary", 400),
    ],
)
def test_what_is_refused_is_one_event(harness: Harness, spec: str, status: int) -> None:
    about: dict[str, str] = {}
    answer = harness.client.get(f"/build/{spec}", environ_overrides={"kiln.log": about})
    (said,) = messages(frames(iter([answer.data])))
    assert (answer.status_code, said["phase"], said["status_code"]) == (200, "failed", status)
    assert said["message"].endswith(".\n")
    assert "canary" not in answer.text
    assert about["refused"].startswith(str(status))
    assert not harness.builds()


def test_a_token_is_asked_for(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"], find_image=there)
    assert the_refusal(harness)["status_code"] == 401
    assert the_refusal(harness, Authorization="Bearer wrong")["status_code"] == 401
    assert phases(everything(harness, **bearer())) == ["ready"]
    for path in ("/versions", "/health", "/api/repoproviders"):
        assert harness.client.get(path).status_code == 200


def test_who_asked_is_in_the_record(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"])
    with stream(harness, **bearer("second")):
        assert harness.builds()[0].causes[0].by == "token:second"


def test_a_full_queue_is_told_and_gives_its_place_back(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(max_queued=1, max_viewers=1)
    harness.ask(subdir="other")
    for _ in range(2):
        said = the_refusal(harness)
        assert (said["status_code"], "KILN_MAX_QUEUED" in said["message"]) == (503, True)
    assert len(harness.builds()) == 1


def test_viewers_have_a_limit_and_who_finds_none_asked_for_nothing(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(max_viewers=1)
    for _ in range(3):
        with stream(harness) as (_, said):
            next(said)
            refusal = the_refusal(harness)
            assert (refusal["status_code"], "being followed" in refusal["message"]) == (503, True)
    assert len(harness.builds()[0].causes) == 3


def test_a_fault_of_ours_is_told_without_itself(
    harnesses: Callable[..., Harness], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(image: str, tag: str, build: str) -> str:
        raise RuntimeError("a canary inside")

    said = the_refusal(harnesses(find_image=broken))
    assert said["status_code"] == 500
    assert "canary" not in said["message"]
    assert "a canary inside" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"), [(Unavailable("disk"), 503), (RuntimeError("a canary inside"), 500)], ids=["records", "bug"]
)
def test_a_stream_that_breaks_off_ends_with_a_message(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def broken(*_: object) -> None:
        raise error

    with stream(harness) as (_, said):
        next(said)
        monkeypatch.setattr(harness.engine, "changed", broken)
        (end,) = said
    assert (end["phase"], end["status_code"]) == ("failed", status)
    assert "canary" not in end["message"]


def test_when_web_ends_the_build_goes_on_and_the_viewer_is_told(harness: Harness) -> None:
    with stream(harness) as (_, said):
        next(said)
        harness.services.stopping.set()
        (end,) = said
    assert (end["phase"], end["status_code"]) == ("failed", 503)
    assert "build continues" in end["message"]
    assert harness.builds()[0].cancel is None


def test_a_record_that_goes_away_ends_the_stream_with_a_message(harness: Harness) -> None:
    with stream(harness) as (_, said):
        next(said)
        harness.engine.forget(harness.builds()[0])
        (end,) = said
    assert (end["phase"], end["status_code"]) == ("failed", 404)


def test_scripts_find_the_words_that_they_search_for(harness: Harness, harnesses: Callable[..., Harness]) -> None:
    """The messages are spelled as BinderHub writes them, with `json.dumps`."""
    with closing(harness.client.get(URL, buffered=False)) as answer:
        name = harness.builds()[0].name
        harness.run(name)
        harness.say(name, "é", "a:b,c")
        harness.end(name)
        said = answer.text
    assert '"phase": "ready"' in said
    assert f"data: {json.dumps({'phase': 'building', 'message': 'a:b,c' + chr(10)})}\n\n" in said
    assert '"phase": "failed"' in harnesses(auth=["token"]).client.get(URL).text
    assert '"ok": true' in harness.client.get("/health").text
    assert '"id": "gh"' in harness.client.get("/api/repoproviders").text


@pytest.mark.parametrize("target", [None, "//build//gh//octo//stats//{commit}", "http://kiln.example{spec}?x=//y"])
@pytest.mark.parametrize("spec", ["/build/gh/octo/stats//{commit}", "/build/gh//octo//stats/{commit}/"])
def test_empty_parts_are_no_parts(harness: Harness, spec: str, target: str | None) -> None:
    path = spec.format(commit=COMMIT)
    raw = None if target is None else target.format(commit=COMMIT, spec=path)
    environ = {} if raw is None else {"RAW_URI": raw}
    with closing(harness.client.get(path, environ_overrides=environ, buffered=False)) as answer:
        next(frames(answer.response))  # type: ignore[arg-type]
    (build,) = harness.builds()
    assert (build.request.repository, build.request.commit) == ("https://github.com/octo/stats", COMMIT)


@pytest.mark.parametrize("base", ["/", "/services/binder/", "/user/a%40b/"])
def test_an_encoded_address_stays_one_part_under_any_base_path(harnesses: Callable[..., Harness], base: str) -> None:
    harness = harnesses(base_path=base)
    raw = f"{base}build/git/https%3A%2F%2Fgithub.com%2Focto%2Fstats//{COMMIT}"
    with closing(harness.client.get(raw, environ_overrides={"RAW_URI": raw}, buffered=False)) as answer:
        next(frames(answer.response))  # type: ignore[arg-type]
    assert harness.builds()[0].request.repository == "https://github.com/octo/stats"


# Reconnecting ---------------------------------------------------------------------------------------------------------


def test_who_comes_back_goes_on_where_they_were_and_asks_for_nothing(harness: Harness) -> None:
    with stream(harness) as (_, said):
        next(said)
        name = harness.builds()[0].name
        harness.run(name)
        harness.say(name, "one", "two")
        last = next(said)["id"]
    with stream(harness, **{"Last-Event-ID": last}) as (_, said):
        two = next(said)
        assert (two["message"], two["id"]) == ("two\n", f"{name}:1:2")
        harness.end(name)
        (end,) = said
    assert end["phase"] == "ready"
    assert len(harness.builds()[0].causes) == 1


def test_who_comes_back_after_the_end_is_told_it_however_late(harnesses: Callable[..., Harness]) -> None:
    late: list[timedelta] = [timedelta()]
    harness = harnesses(now=lambda: datetime.now(UTC) + late[0])
    name = harness.run(harness.ask().name).name
    harness.say(name, "one")
    harness.end(name, state=State.FAILED)
    late[0] = timedelta(days=1)
    for _ in range(3):
        (end,) = everything(harness, **{"Last-Event-ID": f"{name}:1:1"})
        assert end["phase"] == "failed"
    build = harness.engine.get(name)
    assert (len(build.causes), build.state) == (1, State.FAILED)


def test_a_moving_branch_takes_nobody_to_another_build(harnesses: Callable[..., Harness], host: GitHost) -> None:
    harness = harnesses(allowed=[f"{host.base}/**"])
    with stream(harness, spec_of(host, "v1")) as (_, said):
        next(said)
        first = next(said)["id"]
    moved = git("commit-tree", "main^{tree}", "-m", "next", cwd=host.bare("team/course"))
    git("update-ref", "refs/heads/v1", moved, cwd=host.bare("team/course"))
    with stream(harness, spec_of(host, "v1"), **{"Last-Event-ID": first}) as (_, said):
        assert next(said)["id"] == first
    assert len(harness.builds()) == 1


@pytest.mark.parametrize(
    "last", ["", "x", "1:1", ":1:1", "build-other:1:1", "{name}:9:1", "{name}:1", "build-../../x:1:1"]
)
def test_an_id_that_is_none_of_this_repository_is_no_id(harness: Harness, last: str) -> None:
    harness.ask(repository="https://github.com/octo/other")
    other = harness.builds()[0].name
    for given in (last.format(name=other), f"{other}:1:0"):
        if given.startswith("build-other"):
            assert the_refusal(harness, **{"Last-Event-ID": given})["status_code"] == 404
            continue
        with stream(harness, **{"Last-Event-ID": given}) as (_, said):
            assert next(said)["phase"] == "waiting"
    assert len(harness.builds()) == 2


@pytest.mark.parametrize("state", [State.FAILED, State.SUCCEEDED, State.CANCELLED])
def test_soon_after_the_end_it_is_told_and_later_it_is_asked_for_again(
    harnesses: Callable[..., Harness], state: State
) -> None:
    late: list[timedelta] = [timedelta()]
    harness = harnesses(now=lambda: datetime.now(UTC) + late[0])
    name = harness.run(harness.ask().name).name
    harness.say(name, "one")
    harness.end(name, state=state)
    late[0] = timedelta(seconds=55)
    said = everything(harness)
    assert phases(said) == ["building", "ready" if state is State.SUCCEEDED else "failed"]
    assert len(harness.engine.get(name).causes) == 1
    late[0] = timedelta(seconds=65)
    with stream(harness) as (_, more):
        assert next(more)["phase"] == "waiting"
        build = harness.engine.get(name)
        assert len(build.causes) == 2
        harness.run(change_round(harness, build).name)
        harness.say(name, "again", attempt=2)
        assert next(more)["message"] == "again\n"
        harness.end(name, attempt=2)
        assert phases(list(more)) == ["ready"]


def change_round(harness: Harness, build: Build) -> Build:
    """Open the next round, as a controller does."""
    status = change(build.status, state=State.QUEUED, round=build.status.round + 1, attempt=2, round_began_with=2)
    return harness.engine.write(change(build, status=change(status, image=None, finished_at=None)))


def test_an_image_that_is_confirmed_is_the_answer(harnesses: Callable[..., Harness]) -> None:
    """Web could not ask the registry in time; the controller confirms that the image exists."""
    late: list[timedelta] = [timedelta()]
    harness = harnesses(now=lambda: datetime.now(UTC) + late[0])
    name = harness.run(harness.ask().name).name
    harness.end(name)
    late[0] = timedelta(seconds=65)
    with stream(harness) as (_, said):
        assert "registry" in next(said)["message"]
        build = harness.engine.get(name)
        answered = tuple(cause.key for cause in build.causes)
        harness.engine.write(change(build, status=change(build.status, answered=answered)))
        (end,) = said
    assert (end["phase"], end["imageName"]) == ("ready", f"{build.request.image}:{COMMIT}")


# Other sites, other methods ------------------------------------------------------------------------------------------


def test_another_sites_script_may_ask_with_a_token(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"])
    headers = {
        "Origin": "https://hub.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization,x-xsrftoken",
    }
    answer = harness.client.options(URL, headers=headers)
    assert answer.status_code == 200
    allowed = answer.headers["Access-Control-Allow-Headers"].lower()
    assert all(name in allowed for name in ("authorization", "x-xsrftoken", "last-event-id"))
    refused = harness.client.get(URL, headers={"Origin": "https://hub.example"})
    for one in (answer, refused):
        assert one.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in one.headers
    assert "Access-Control-Allow-Origin" not in harness.client.get("/api/v1/builds").headers
    assert not harness.builds()


def test_head_and_options_start_nothing(harness: Harness) -> None:
    assert harness.client.head(URL).status_code == 200
    assert harness.client.options(URL).status_code == 200
    assert harness.client.post(URL).status_code == 405
    assert not harness.builds()


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Host": "kiln.example"},
        {"X-Forwarded-For": "10.0.0.1"},
    ],
)
def test_an_image_on_another_sites_page_starts_nothing(
    harnesses: Callable[..., Harness], headers: dict[str, str]
) -> None:
    """A browser's address and cookies come with every request, so neither authorizes another site's page."""
    harness = harnesses(loopback_only=True)
    assert the_refusal(harness, **headers)["status_code"] == 403
    assert not harness.builds()


def test_nor_does_it_by_the_cookie_of_somebody_who_is_logged_in(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"])
    client = harness.client
    page = client.get("/", headers={"Accept": "text/html"})
    form = re.search(r'name="form" value="([^"]+)"', page.text)
    assert form
    client.post("/login", data={"form": form[1], "token": TOKENS["ci"].decode()})
    (shown,) = re.findall(r'name="xsrf" content="([^"]+)"', client.get("/", headers={"Accept": "text/html"}).text)
    for headers, status in (
        ({"Sec-Fetch-Site": "same-site", "X-Xsrftoken": shown}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "X-Xsrftoken": shown}, None),
    ):
        with closing(client.get(URL, headers=headers, buffered=False)) as answer:
            said = json.loads(next(frames(answer.response))["data"])  # type: ignore[arg-type]
        assert said.get("status_code") == status
    assert len(harness.builds()) == 1


# The other endpoints --------------------------------------------------------------------------------------------------


def test_versions(harnesses: Callable[..., Harness]) -> None:
    answer = harnesses(base_path="/services/binder/").client.get("/services/binder/versions")
    assert answer.json == {
        "builder_info": {"build_image": "registry.example/builder:1"},
        "binderhub": "1.0.0+kiln.0.0.0",
        "builder": "registry.example/builder:1",
    }


@pytest.mark.parametrize("auth", ["none", "token", "network", "local"])
def test_these_are_open_to_everybody(harnesses: Callable[..., Harness], auth: str) -> None:
    client = harnesses(auth=[auth], loopback_only=auth == "local").client
    for path in ("/versions", "/health", "/api/repoproviders", "/versions/"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}, {"Cookie": "x=y"}):
            answer = client.get(path, headers=headers)
            assert (answer.status_code, answer.mimetype) == (200, "application/json")
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert client.head(path).status_code == 200
        assert client.options(path).status_code == 200


def test_health(harnesses: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    harness = harnesses()
    answer = harness.client.get("/health")
    good = [{"service": "Docker registry", "ok": True}, {"service": "Records", "ok": True}]
    assert (answer.status_code, answer.json) == (200, {"ok": True, "checks": good})
    deaf = harnesses(registry_answers=lambda: False)
    answer = deaf.client.get("/health")
    assert (answer.status_code, answer.json["ok"], answer.json["checks"][0]["ok"]) == (503, False, False)
    assert deaf.client.head("/health").status_code == 503

    def away(**_: object) -> None:
        raise Unavailable("disk")

    monkeypatch.setattr(harness.engine, "list", away)
    answer = harness.client.get("/health")
    assert (answer.status_code, answer.json["checks"][1]["ok"]) == (503, False)


def test_repository_providers(harness: Harness) -> None:
    found = {each["id"]: each for each in harness.client.get("/api/repoproviders").json}
    assert [*found] == ["gh", "gist", "git", "gl"]
    assert found["gh"]["ref"] == {"enabled": True, "default": "HEAD"}
