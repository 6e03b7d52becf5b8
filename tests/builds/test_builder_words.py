"""What the builder makes of words: log lines, secrets in them, the tool's progress, results that have to fit."""

from __future__ import annotations

import base64
import io
import json
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Image, Reason, Result, State
from builds.builder import log as logs
from builds.builder.log import Log
from builds.builder.outcome import Stage, exit_status
from builds.builder.redact import Redactor
from builds.builder.result import MAX_BYTES, fitted
from builds.builder.source import resolved
from builds.builder.tool import Progress, tool_line
from builds.errors import RepositoryRefused

SECRETS = st.text(st.characters(codec="utf-8"), min_size=8, max_size=40)


# Redaction


@given(secret=SECRETS, before=st.text(max_size=5), after=st.text(max_size=5), user=st.text(max_size=5))
def test_no_spelling_of_a_secret_is_left(secret: str, before: str, after: str, user: str) -> None:
    redact = Redactor([secret])
    pair = base64.b64encode(f"{user}:{secret}".encode()).decode()
    for spelling in (secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1]):
        assert spelling not in redact(f"{before}{spelling}{after}").replace("***", "\0")
    assert pair not in redact(pair)


@given(st.text())
def test_without_secrets_nothing_is_changed(text: str) -> None:
    assert Redactor()(text) == text


def test_a_short_value_is_masked_only_after_its_name() -> None:
    redact = Redactor((), {"VERBOSE": "1", "TOKEN": "canary-1"})
    assert redact("--build-arg VERBOSE=1 TOKEN=canary-1: 1 of 10, canary-1") == (
        "--build-arg VERBOSE=*** TOKEN=***: 1 of 10, ***"
    )


def test_each_line_of_a_long_secret_is_masked() -> None:
    assert Redactor(["first line\nsecond line"])("> second line") == "> ***"


# The log


def written(log: Log, out: io.BytesIO) -> list[dict[str, object]]:
    log.close()
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_lines_are_numbered_and_have_a_phase() -> None:
    out = io.BytesIO()
    log = Log(out)
    log.say("one\ntwo\r\n\x1b[31mthree\x1b[0m\x9b31m\x90\x00")
    log.phase = "build"
    log.say("")
    assert written(log, out) == [
        {"n": 1, "phase": None, "text": "one"},
        {"n": 2, "phase": None, "text": "two"},
        {"n": 3, "phase": None, "text": "three"},
        {"n": 4, "phase": "build", "text": ""},
    ]


def test_only_what_ends_a_line_on_a_terminal_ends_one() -> None:
    out = io.BytesIO()
    log = Log(out)
    log.say("#8 0.1 x\u2028#9 pushing layers\x0b\x0c\x85\x1c\n\nlast")
    assert [line["text"] for line in written(log, out)] == ["#8 0.1 x\u2028#9 pushing layers", "", "last"]


@pytest.mark.parametrize("lines", [3, 40, 400, 4000])
def test_a_long_log_keeps_its_head_and_its_tail(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "HEAD", 1000)
    monkeypatch.setattr(logs, "TAIL", 500)
    out = io.BytesIO()
    log = Log(out)
    for number in range(1, lines + 1):
        log.say(f"line {number}")
    kept = written(log, out)
    assert len(out.getvalue()) < 1700
    numbers = [line["n"] for line in kept]
    assert numbers == sorted(set(map(int, map(str, numbers))))
    assert kept[0]["text"] == "line 1"
    assert kept[-1] == {"n": lines, "phase": None, "text": f"line {lines}"}
    told = [str(line["text"]) for line in kept if "left out" in str(line["text"])]
    missing = lines - (len(kept) - len(told))
    assert told == ([f"[{missing} lines left out: a log ends at 0 MiB]"] if missing else [])


def test_a_line_has_an_end() -> None:
    out = io.BytesIO()
    log = Log(out)
    log.say("x" * 1_000_000)
    assert "[995904 characters left out]" in str(written(log, out)[0]["text"])


@given(st.text())
def test_any_text_can_be_logged(text: str) -> None:
    out = io.BytesIO()
    log = Log(out)
    log.say(text)
    ends = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").count("\n")
    assert [line["n"] for line in written(log, out)] == list(range(1, ends + 2))
    assert len(log.tail.encode()) <= logs.SHORT_TAIL


# The result


@given(message=st.text() | st.just("\0" * 9000), tail=st.text() | st.just("é\x01" * 2000), tags=st.integers(0, 100))
def test_a_result_always_fits(message: str, tail: str, tags: int) -> None:
    image = Image(
        repository="registry.example/image",
        tag="1" * 40,
        digest=f"sha256:{'a' * 64}",
        tags=tuple(f"{n:0128}" for n in range(tags)),
    )
    result = Result(state=State.FAILED, reason=Reason.REPOSITORY, message=message, log_tail=tail, image=image)
    encoded = fitted(result)
    assert len(encoded) <= MAX_BYTES
    read = msgspec.json.decode(encoded, type=Result)
    assert read.image
    assert read.image.digest == image.digest
    assert tail.endswith(read.log_tail)


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Result(state=State.SUCCEEDED), 0),
        (Result(state=State.FAILED, reason=Reason.REPOSITORY), 64),
        (Result(state=State.FAILED, reason=Reason.INFRASTRUCTURE), 69),
        (Result(state=State.FAILED, reason=Reason.TIMEOUT), 75),
        (Result(state=State.CANCELLED), 143),
    ],
)
def test_the_exit_status_says_the_same(result: Result, status: int) -> None:
    assert exit_status(result) == status


# The tool's words


def test_what_nobody_knows_is_the_repositorys_fault_only_once_a_step_ran() -> None:
    for step, reason in ((None, Reason.INFRASTRUCTURE), ("#4 [1/2] COPY a b", Reason.REPOSITORY)):
        progress = Progress(Stage.FETCH, 0.0)
        progress.take("Using DockerBuildPack builder", "building", 1.0)
        if step:
            progress.take(step, "building", 2.0)
        progress.take("ERROR: failed to solve: nobody has ever seen this", "building", 3.0)
        assert progress.failure().reason is reason
        assert "nobody has ever seen this" in progress.failure().message


@pytest.mark.parametrize(
    ("said", "counted", "out_of_memory"),
    [
        ("ERROR: failed to receive status: rpc error: code = Unavailable desc = error reading from server: EOF", 0, 0),
        ("ERROR: Cannot connect to the Docker daemon at unix:///run/kiln/docker.sock.", 0, 0),
        ('#4 ERROR: process "/bin/sh -c x" did not complete successfully: exit code: 137', 1, 1),
        ("ERROR: no space left on device", 1, 0),
    ],
)
def test_that_the_daemon_went_away_does_not_count_but_that_it_had_no_memory_does(
    said: str, counted: int, out_of_memory: int
) -> None:
    progress = Progress(Stage.BUILD, 0.0)
    progress.take("#4 [1/2] RUN x", "building", 1.0)
    progress.take(said, "building", 2.0)
    failure = progress.failure()
    assert (failure.reason, failure.counted, failure.out_of_memory) == (Reason.INFRASTRUCTURE, counted, out_of_memory)


def test_seconds_of_each_stage() -> None:
    progress = Progress(Stage.FETCH, 10.0)
    assert progress.timings(11.0).fetch == 1.0
    progress.take("Using DockerBuildPack builder", "building", 12.0)
    progress.take("#4 [1/2] COPY a b", "building", 13.0)
    progress.take("#7 pushing registry.example/a with docker", "building", 16.0)
    progress.end(16.5)
    timings = progress.timings(99.0)
    assert (timings.fetch, timings.build, timings.push) == (2.0, 4.0, 0.5)


@given(st.binary())
def test_any_line_of_the_tool_is_understood(raw: bytes) -> None:
    progress = Progress(Stage.FETCH, 0.0)
    line = tool_line(raw)
    for text in line.message.splitlines():
        progress.take(text, line.phase, 1.0)
    assert progress.failure().message


# Submodules


@pytest.mark.parametrize(
    ("parent", "address", "expected"),
    [
        ("https://h.example/a/b.git", "../c.git", "https://h.example/a/c.git"),
        ("https://h.example/a/b.git/", "./c", "https://h.example/a/b.git/c"),
        ("https://h.example/a/b", "../../d/e/", "https://h.example/d/e"),
        ("https://h.example/a/b", "../../../evil.example/x", "https://evil.example/x"),
        ("https://h.example/a/b", "https://other.example/x", "https://other.example/x"),
    ],
)
def test_a_relative_address_is_resolved_as_git_does(parent: str, address: str, expected: str) -> None:
    assert resolved(parent, address) == expected


def test_a_relative_address_cannot_leave_everything() -> None:
    with pytest.raises(RepositoryRefused):
        resolved("https://h.example/a", "../../../../../../x")
