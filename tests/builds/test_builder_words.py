"""The text that the builder reads and writes: log lines, redaction, the tool's progress, results within their limit."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Image, Reason, Request, Result, State
from builds.builder import log as logs
from builds.builder.daemons.podman import Steps
from builds.builder.evidence import FOUND, MAX_SERVICES, PROBE, PYPI, PYPI_FILES, lacks_package, needed
from builds.builder.log import Log
from builds.builder.outcome import PODMAN, AttemptStage, Evidence, FailedCommand, exit_status, failure, telling
from builds.builder.output import Output
from builds.builder.redact import Redactor
from builds.builder.result import MAX_BYTES, MAX_MESSAGE, MAX_MOVED, fitted, message_of
from builds.builder.source import resolved
from builds.builder.spec import Spec
from builds.builder.tool import OTHER_FRONTEND, ToolLine, ToolProgress, command, tool_line
from builds.clients.registry import Configuration
from builds.errors import RepositoryRefused
from builds.options import Options
from tests.parts.registry import free_port

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
        {"n": 3, "phase": None, "text": "\x1b[31mthree\x1b[0m\x1b[31m"},
        {"n": 4, "phase": "build", "text": ""},
    ]
    assert log.tail == "one\ntwo\nthree\n"


def test_only_a_newline_ends_a_line() -> None:
    out = io.BytesIO()
    log = Log(out)
    log.say("#8 0.1 x\u2028#9 pushing layers\x0b\x0c\x85\x1c\n10%\r20%\r30%\r\n\nlast")
    assert [line["text"] for line in written(log, out)] == ["#8 0.1 x\u2028#9 pushing layers", "30%", "", "last"]


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
    ends = text.replace("\r\n", "\n").removesuffix("\n").count("\n")
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


# Messages of the tool


def report(**parts: object) -> str:
    return json.dumps(parts)


def vertex(name: str, error: str = "", *, digest: str = "sha256:1") -> str:
    ended = {"completed": "2026-01-01T00:00:02Z", "error": error} if error else {}
    return report(vertexes=[{"digest": digest, "name": name, "started": "2026-01-01T00:00:00Z", **ended}])


def output(text: str, *, digest: str = "sha256:1") -> str:
    data = base64.b64encode(text.encode()).decode()
    return report(logs=[{"vertex": digest, "timestamp": "2026-01-01T00:00:01Z", "data": data}])


def progress(*messages: str, buildpack: str = "PythonBuildPack") -> ToolProgress:
    """The progress after the fetch and these messages of the build."""
    made = ToolProgress(AttemptStage.FETCH, 0.0)
    for number, message in enumerate((f"Using {buildpack} builder\n", *messages), 1):
        deque(made.take(ToolLine(message, "building"), float(number)))
    return made


FAILED = 'process "/bin/sh -c x" did not complete successfully: exit code: '


@given(st.text())
def test_no_output_of_a_step_decides_anything(text: str) -> None:
    told = progress(
        vertex("[1/1] RUN x"), output(text), vertex("[1/1] RUN x", f"{FAILED}1"), f"ERROR: failed to solve: {FAILED}1\n"
    ).account()
    failed = failure(told, Evidence())
    assert failed.reason is Reason.REPOSITORY
    assert failed.message.startswith("A step of the build failed. [1/1] RUN x: exit code: 1")


@pytest.mark.parametrize(
    ("seen", "code", "reason", "counted", "out_of_memory"),
    [
        (Evidence(), 137, Reason.REPOSITORY, True, False),
        (Evidence(out_of_memory=True), 137, Reason.INFRASTRUCTURE, True, True),
        (Evidence(out_of_memory=True), 1, Reason.REPOSITORY, True, False),
        (Evidence(daemon="It was restarted."), 1, Reason.INFRASTRUCTURE, False, False),
        (Evidence(disk_full=True), 1, Reason.INFRASTRUCTURE, True, False),
        (Evidence(service="https://index.example"), 1, Reason.INFRASTRUCTURE, True, False),
    ],
)
def test_evidence_decides_about_a_failed_step(
    seen: Evidence, code: int, reason: Reason, counted: bool, out_of_memory: bool
) -> None:
    told = progress(vertex("[1/1] RUN x", f"{FAILED}{code}"), f"ERROR: failed to solve: {FAILED}{code}").account()
    failed = failure(told, seen)
    assert (failed.reason, failed.counted, failed.out_of_memory) == (reason, counted, out_of_memory)


def test_a_missing_package_is_doubtful_only_if_an_index_has_it_now() -> None:
    found_none = ("ERROR: Could not find a version that satisfies the requirement x (from versions: none)", NO_PACKAGE)
    assert lacks_package(step(*found_none))
    assert not lacks_package(
        step("ERROR: Could not find a version that satisfies the requirement x==9 (from versions: 1)")
    )
    assert not lacks_package(step("(from versions: none)"))
    account = progress().account()._replace(step=step(*found_none))
    for has_package in (True, False):
        failed = failure(account, Evidence(has_package=has_package))
        assert (failed.reason, failed.doubtful) == (Reason.REPOSITORY, has_package)
    assert failure(account, Evidence(has_package=True, service="https://index.example")).doubtful is False


def test_what_nobody_knows_is_the_repositorys_fault_once_the_daemon_builds() -> None:
    unknown = "ERROR: failed to solve: an error of no known form"
    for begun, reason in ((False, Reason.INFRASTRUCTURE), (True, Reason.REPOSITORY)):
        messages = [vertex("[internal] load build definition from Dockerfile")] if begun else []
        failed = failure(progress(*messages, unknown).account(), Evidence())
        assert failed.reason is reason
        assert "an error of no known form" in failed.message


def test_a_build_that_was_cancelled_from_outside_is_not_the_repositorys() -> None:
    begun = vertex("[1/1] RUN x")
    for rest in ((), (vertex("[1/1] RUN x", "context canceled"), "ERROR: failed to solve: Canceled: context canceled")):
        assert failure(progress(begun, *rest).account(), Evidence()).reason is Reason.INFRASTRUCTURE


@pytest.mark.parametrize("split", ["\n", None])
def test_reports_come_on_one_line_or_on_several(split: str | None) -> None:
    text = vertex("[1/1] RUN x", f"{FAILED}7")
    lines = json.dumps(json.loads(text), indent=2).splitlines() if split else [text]
    step = progress(*lines).account().step
    assert step
    assert step.exit == "exit code: 7"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (["python 3.6.15 does not exist", "critical libmamba failed", "time: 37.177"], "python 3.6.15 does not exist"),
        (["E: Unable to locate package nope", "Reading state"], "E: Unable to locate package nope"),
        (
            ["ERROR: No matching distribution found for x", "[notice] A new release"],
            "ERROR: No matching distribution found for x",
        ),
        (["  File x", "ValueError: no", "", "time: 0.1"], "ValueError: no"),
        (["begun", "there is no such tool"], "there is no such tool"),
        (
            [
                "error    libmamba Could not solve for environment specs",
                "    The following package could not be installed",
                "    └─ x does not exist (perhaps a typo or a missing channel).",
                "critical libmamba Could not solve for environment specs",
                "time: 37.177",
            ],
            "└─ x does not exist (perhaps a typo or a missing channel).",
        ),
        (
            [
                "ERROR: Invalid requirement: 'numpy>>3': Expected end",
                "  numpy>>3",
                "       ^",
                "critical libmamba Could not solve for environment specs",
                "time: 1.194",
            ],
            "ERROR: Invalid requirement: 'numpy>>3': Expected end",
        ),
        (
            [
                "error: command 'gcc' failed with exit code 1",
                "ERROR: Failed building wheel for x",
                "critical libmamba pip failed to install packages",
            ],
            "error: command 'gcc' failed with exit code 1",
        ),
        (
            [
                "ERROR: Cannot install a and b because these package versions have conflicting dependencies.",
                "",
                "The conflict is caused by:",
                "    The user requested urllib3==1.20",
                "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/",
            ],
            "ERROR: Cannot install a and b because these package versions have conflicting dependencies.",
        ),
        (
            ["critical libmamba Could not solve for environment specs"],
            "critical libmamba Could not solve for environment specs",
        ),
        (
            ['  File "/home/jovyan/x.py", line 1', "    print(", "         ^", "SyntaxError: '(' was never closed"],
            """SyntaxError: '(' was never closed (File "/home/jovyan/x.py", line 1)""",
        ),
        ([], ""),
    ],
)
def test_the_line_that_tells_is_quoted(output: list[str], expected: str) -> None:
    assert telling(output) == expected


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            """[16/19] RUN TIMEFORMAT='time: %3R' bash -c 'time ${MAMBA_EXE} env update --file "environment.yml" \
            && time ${MAMBA_EXE} clean --all -f -y && ${MAMBA_EXE} list -p ${P} '""",
            '[16/19] RUN ${MAMBA_EXE} env update --file "environment.yml"',
        ),
        (
            "[10/19] RUN TIMEFORMAT='time: %3R' bash -c 'time /tmp/install-base-env.bash' && rm -rf /tmp/env",
            "[10/19] RUN /tmp/install-base-env.bash",
        ),
        (
            "[15/18] RUN apt-get -qq update && apt-get install --yes --no-install-recommends x y && apt-get purge && z",
            "[15/18] RUN apt-get install x y",
        ),
        (
            "[2/9] RUN apt-get -qq update &&     apt-get -qq install --yes locales > /dev/null && apt-get -qq purge",
            "[2/9] RUN apt-get install locales",
        ),
        (
            '[16/19] RUN /srv/conda/envs/notebook/bin/pip install --no-cache-dir -r "binder/requirements.txt"',
            '[16/19] RUN pip install -r "binder/requirements.txt"',
        ),
        ("[2/2] RUN echo 'x' && exit 3", "[2/2] RUN echo 'x' && exit 3"),
    ],
)
def test_a_message_names_the_command_that_a_step_is_about(name: str, short: str) -> None:
    told = progress(vertex(name), vertex(name, f"{FAILED}1"), f"ERROR: failed to solve: {FAILED}1").account()
    assert failure(told, Evidence()).message == f"A step of the build failed. {short}: exit code: 1"


def test_an_exception_of_the_tool_is_told_whole() -> None:
    made = ToolProgress(AttemptStage.FETCH, 0.0)
    text = 'Error during build: while parsing a block mapping\n  in "environment.yml", line 3, column 2'
    assert [*made.take(ToolLine(text, "failed"), 1.0)] == text.splitlines()
    assert failure(made.account(), Evidence()).message == (
        "repo2docker cannot read the repository's configuration files."
        ' while parsing a block mapping in "environment.yml", line 3, column 2'
    )


NO_PACKAGE = "ERROR: No matching distribution found for x"


def step(*output: str, name: str = "[9/9] RUN pip install -r requirements.txt") -> FailedCommand:
    return FailedCommand(name, "exit code: 1", output, of_tool=True)


@pytest.mark.parametrize(
    ("output", "addresses"),
    [
        (
            ["Looking in indexes: https://user:secret@mirror.example:8443/simple, http://b.example", NO_PACKAGE],
            ["https://mirror.example:8443/simple/x/", "http://b.example/x/"],
        ),
        (["curl: (6) Could not resolve host: micro.mamba.pm"], ["https://micro.mamba.pm/"]),
        (
            ["WARNING: HTTPSConnectionPool(host='index.example', port=443): Max retries exceeded"],
            ["https://index.example/"],
        ),
        (["ERROR: HTTPConnectionPool(host='i.example', port=8080): Read timed out."], ["http://i.example:8080/"]),
        (["NameResolutionError(Failed to resolve 'index.example' ([Errno -2]))"], ["https://index.example/"]),
        (["W: Failed to fetch http://deb.example/dists/x/InRelease  Temporary failure resolving 'deb.example'"],
         ["http://deb.example/dists/x/InRelease", "https://deb.example/"]),
        (
            ["critical libmamba Download error (7) Could not connect [https://conda.example/noarch/repodata.json]"],
            ["https://conda.example/noarch/repodata.json"],
        ),
        (["Collecting x", NO_PACKAGE], [f"{PYPI}/x/"]),
        (
            ["ERROR: Could not find a version that satisfies the requirement A.b__C>=1 (from versions: none)"],
            [f"{PYPI}/a-b-c/"],
        ),
        (["Looking in links: /wheels", NO_PACKAGE], []),
        (["Looking in indexes: http://b.example/simple/", *["Collecting y"] * 300], ["http://b.example/simple/"]),
        (
            ["WARNING: Retrying after connection broken by 'ReadTimeoutError()': /simple/x/"],
            [f"{PYPI}/", f"{PYPI_FILES}/"],
        ),
        (["+ wget -qO- https://anaconda.example/a.tar.bz2", "+ tar -xvj", "bzip2: Compressed file ends unexpectedly"],
         ["https://anaconda.example/a.tar.bz2"]),
        (["https://conda.example/linux-64/python-3.10.conda#ab", "python 3.6 does not exist"], []),
        (["ERROR: externally managed. See https://docs.example for more", "[notice] https://new.example"], []),
        (["E: Unable to locate package x"], []),
        (
            ["Warning: unable to access index for repository https://cran.example/src/contrib:"],
            ["https://cran.example/src/contrib"],
        ),
        (
            ["ERROR: RequestError: HTTP/1.1 503 Service Unavailable while requesting https://pkg.example/registries"],
            ["https://pkg.example/registries"],
        ),
        (["npm error 503 Service Unavailable - GET https://npm.example/x"], ["https://npm.example/x"]),
    ],
)  # fmt: skip
def test_services_that_a_step_needs(output: list[str], addresses: list[str]) -> None:
    kept = Output()
    deque(map(kept.append, output))
    assert needed(step(*kept)) == addresses


def test_a_command_names_what_it_downloads() -> None:
    assert needed(step(name="RUN curl -sSL https://julia.example/1.tar.gz | tar -xz")) == [
        "https://julia.example/1.tar.gz"
    ]


@given(st.lists(st.text()), st.text())
def test_what_a_step_needs_is_never_much(output: list[str], name: str) -> None:
    assert len(needed(step(*output, name=name))) <= MAX_SERVICES


@pytest.fixture(scope="module")
def answers() -> Iterator[str]:
    """Yield the address of a server that answers `/N` with status N.

    The body of a 206 never ends. `/reset` resets the connection, and `/silent` does not answer.
    """
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            word = self.path.strip("/")
            if word == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            elif word == "silent":
                stop.wait(60)
            else:
                self.send_response(int(word))
                self.send_header("Content-Length", "1000000" if word == "206" else "0")
                self.end_headers()
                stop.wait(60 if word == "206" else 0)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        stop.set()
        server.shutdown()


def probed(*addresses: str, path: str | None = None) -> int:
    command = ["/bin/sh", "-c", PROBE.replace("--max-time 8", "--max-time 1"), "probe", *addresses]
    environment = {**os.environ, "no_proxy": "127.0.0.1"} | ({"PATH": path} if path is not None else {})
    return subprocess.run(command, check=False, env=environment).returncode


def test_the_probe_tells_which_service_is_down(answers: str) -> None:
    assert probed(*(f"{answers}/{status}" for status in (404, 403))) == 0
    up = [f"{answers}/{status}" for status in (200, 206, 404, 403)]
    assert probed(*up) == FOUND
    assert probed(up[2], up[0]) == FOUND
    for down in ("429", "500", "503", "reset", "silent"):
        assert probed(up[0], f"{answers}/{down}", f"{answers}/500") == 102, down
    assert probed(f"http://127.0.0.1:{free_port()}/") == 101


def test_without_curl_the_probe_knows_nothing(answers: str) -> None:
    assert probed(f"{answers}/503", path="/nowhere") == 99


def test_seconds_of_each_stage() -> None:
    made = ToolProgress(AttemptStage.FETCH, 10.0)
    assert made.timings(11.0).fetch == 1.0
    deque(made.take(ToolLine("Using DockerBuildPack builder", "building"), 12.0))
    deque(made.take(ToolLine(vertex("[1/2] COPY a b"), "building"), 13.0))
    deque(made.take(ToolLine(vertex("pushing registry.example/a with docker", digest="2"), "building"), 16.0))
    made.end(16.5)
    timings = made.timings(99.0)
    assert (timings.fetch, timings.build, timings.push) == (2.0, 4.0, 0.5)


def layer(name: str, seconds: int, current: int = 0, *, done: bool = False) -> str:
    at = f"2026-01-01T00:00:{seconds:02}Z"
    status = {"vertex": "2", "id": f"pushing layer {name}", "timestamp": at, "current": current}
    return report(statuses=[status | ({"completed": at} if done else {})])


def test_a_push_is_summed_up() -> None:
    made = ToolProgress(AttemptStage.FETCH, 0.0)
    deque(made.take(ToolLine("Using DockerBuildPack builder", "building"), 0.0))
    reports = [vertex("pushing registry.example/a with docker", digest="2")]
    reports += [layer(f"layer{n}", 1) for n in range(20)]
    reports += [layer("layer0", second, second * 2_000_000) for second in range(1, 9)]
    reports += [layer(f"layer{n}", 9, done=True) for n in range(20)]
    ended = {"started": "2026-01-01T00:00:00Z", "completed": "2026-01-01T00:00:09Z"}
    reports += [report(vertexes=[{"digest": "2", "name": "pushing registry.example/a with docker", **ended}])]
    lines = [line for text in reports for line in made.take(ToolLine(text, "building"), 1.0)]
    assert lines == [
        "#1 pushing registry.example/a with docker",
        "#1 pushing layers: 0 of 20 done, 2.0 MB sent",
        "#1 pushing layers: 0 of 20 done, 12.0 MB sent",
        "#1 pushed layers: 20, 16.0 MB sent",
        "#1 DONE 9.0s",
    ]


# Messages of Podman


def podman(*lines: tuple[str, str], buildpack: str = "DockerBuildPack") -> ToolProgress:
    """The progress after the fetch and these lines of `podman build`, each with its stream."""
    made = ToolProgress(AttemptStage.FETCH, 0.0, progress_parser=Steps(), idiom=PODMAN)
    messages = [f"Using {buildpack} builder\n", *(json.dumps({stream: text}) + "\n" for stream, text in lines)]
    for number, message in enumerate(messages, 1):
        deque(made.take(ToolLine(message, "building"), float(number)))
    return made


BEGUN = ("stdout", "STEP 1/2: FROM r.example/base:1 AS x")


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        ('building at STEP "RUN x": while running runtime: exit status 3', "repository", "RUN x: exit code: 3"),
        (
            'building at STEP "RUN <<E\nno space left on device\nE": while running runtime: exit status 1',
            "repository",
            "exit code: 1",
        ),
        (
            (
                "creating build container: initializing source docker://r.example/base:1: reading manifest 1 in "
                "r.example/base: manifest unknown"
            ),
            "repository",
            "An image or file that the Dockerfile names does not exist.",
        ),
        (
            (
                "creating build container: initializing source docker://r.example/base:1: pinging container registry "
                'r.example: Get "https://r.example/v2/": dial tcp: lookup r.example: no such host'
            ),
            "infrastructure",
            "r.example could not be reached by the Podman service.",
        ),
        (
            (
                "creating build container: initializing source docker://r.example/base:1: reading manifest 1 in "
                "r.example/base: received unexpected HTTP status: 503 Service Unavailable"
            ),
            "infrastructure",
            "r.example could not be reached by the Podman service.",
        ),
        (
            (
                'building at STEP "COPY missing /": checking on sources under "/var/tmp/x/build": copier: stat: '
                '"/missing": no such file or directory'
            ),
            "repository",
            "The Dockerfile cannot be built.",
        ),
        (
            (
                'creating build container: short-name "python:3.13" did not resolve to an alias and no '
                'unqualified-search registries are defined in "/etc/containers/registries.conf"'
            ),
            "infrastructure",
            "The configuration of the Podman service is incomplete.",
        ),
        ('no contents in "/var/tmp/libpod_builder1/build/Dockerfile"', "repository", "The Dockerfile cannot be built."),
        ("server probably quit: unexpected EOF", "infrastructure", "The Podman service does not answer"),
        (
            "unable to connect to Podman socket: Get http://d/v5.4.2/libpod/_ping: dial unix /x: connect: refused",
            "infrastructure",
            "The Podman service does not answer",
        ),
        (
            'write /x: no space left on device: building at STEP "RUN x": while running runtime: exit status 1',
            "infrastructure",
            "The disk is full.",
        ),
        (
            "creating build container: creating container: write /x: no space left on device",
            "infrastructure",
            "The disk is full.",
        ),
    ],
)
def test_podman_s_errors(error: str, reason: str, words: str) -> None:
    failed = failure(
        podman(BEGUN, *(("stderr", line) for line in f"Error: {error}\n".split("\n"))).account(), Evidence()
    )
    assert failed.reason == reason, failed.message
    assert words in failed.message


@given(st.lists(st.text()))
def test_no_output_of_podman_s_steps_decides_anything(texts: list[str]) -> None:
    lies = (text for words in texts for text in (words, f"Error: {words}", f"STEP 2/2: {words}"))
    error = 'Error: building at STEP "RUN x": while running runtime: exit status 1'
    told = podman(BEGUN, ("stdout", "STEP 2/2: RUN x"), *(("stdout", lie) for lie in lies), ("stderr", error)).account()
    failed = failure(told, Evidence())
    assert failed.reason is Reason.REPOSITORY
    assert failed.message.startswith("A step of the build failed. RUN x: exit code: 1")
    assert told.base == "r.example/base:1"


def test_podman_says_so_where_a_step_was_killed() -> None:
    error = 'Error: building at STEP "RUN x": while running runtime: exit status 1'
    told = podman(BEGUN, ("stdout", "container exited on killed"), ("stderr", error)).account()
    assert failure(told, Evidence()).reason is Reason.REPOSITORY
    assert failure(told, Evidence(out_of_memory=True)).out_of_memory
    assert failure(podman(BEGUN).account(), Evidence()).reason is Reason.INFRASTRUCTURE, "its client was killed"


@pytest.mark.parametrize(
    ("buildpack", "command", "of_tool"),
    [
        ("PythonBuildPack", "${KERNEL_PYTHON_PREFIX}/bin/pip install --no-cache-dir .", True),
        ("CondaBuildPack", "./binder/postBuild", False),
        ("DockerBuildPack", "pip install x", False),
    ],
)
def test_whose_a_step_is(buildpack: str, command: str, of_tool: bool) -> None:
    """Earlier steps do not decide: repo2docker also installs packages after it has copied the repository."""
    copy = "COPY --chown=1000:1000 src/ /home/jovyan/"
    lines = [("stdout", f"STEP 3/5: {copy}"), ("stdout", f"STEP 4/5: RUN {command}")]
    error = ("stderr", f'Error: building at STEP "RUN {command}": while running runtime: exit status 1')
    name = f"[2/2] RUN {command}"
    reports = [vertex(f"[1/2] {copy}", digest="sha256:0"), vertex(name, f"{FAILED}1")]
    reports += [f"ERROR: failed to solve: {FAILED}1\n"]
    for made in (podman(BEGUN, *lines, error, buildpack=buildpack), progress(*reports, buildpack=buildpack)):
        step = made.account().step
        assert step
        assert step.of_tool is of_tool


OFFICIAL = "docker/dockerfile"


@pytest.mark.parametrize(
    "text",
    [
        "# syntax=evil/frontend",
        "#syntax=evil/frontend\r\nFROM scratch\r\n",
        "# SynTax\t = \t evil/frontend:1 argument",
        "#\u00a0syntax=evil/frontend",
        "\ufeff#syntax=evil/frontend",
        "#!/usr/bin/env docker\n# syntax=evil/frontend",
        "# escape=`\n# syntax=evil/frontend",
        "# check=error=true\n#syntax=evil/frontend",
        f"# syntax={OFFICIAL}:1\n# syntax=evil/frontend",
        "// syntax=evil/frontend",
        "//syntax=evil/frontend\nimport",
        '{"syntax": "evil/frontend"}',
        '\n { "\\u0073yntax": "evil/frontend" }',
        '#!/bin/x\n{"syntax": "evil/frontend"}',
        f"# syntax=evil/{OFFICIAL}",
        f"# syntax=registry.example/{OFFICIAL}:1",
        f"# syntax={OFFICIAL}-evil:1",
        f"# syntax={OFFICIAL}/evil",
        f"# syntax={OFFICIAL}:1@evil",
        f"# syntax={OFFICIAL}:1\tevil",
        "# syntax=Docker/dockerfile:1",
        "# syntax=docker.io.evil/docker/dockerfile:1",
    ],
)
def test_another_frontend_is_found_in_every_form(text: str) -> None:
    assert OTHER_FRONTEND.search(text)
    assert OTHER_FRONTEND.search(f"{text}\nFROM scratch\n")


@pytest.mark.parametrize(
    "text",
    [
        "FROM scratch\n# syntax=evil/frontend\n",
        f"# syntax={OFFICIAL}",
        f"#syntax = docker.io/{OFFICIAL}:1.7-labs \r\nFROM scratch\r\n",
        f"# syntax={OFFICIAL}:1@sha256:{'a' * 64}",
        f"# syntax={OFFICIAL}-upstream:master argument\nFROM scratch",
        f"# escape=`\n\n# A comment\n# syntax={OFFICIAL}:1\nFROM scratch",
        "# The syntax = of files\n# syntax\n# no syntax=evil/frontend\nFROM scratch",
        "#",
        "",
        "\n" * 100_000 + "FROM scratch",
        "# comment\n" * 100_000 + "FROM scratch",
        "# syntax=" + " " * 100_000 + "\nFROM scratch",
    ],
)
def test_a_dockerfile_for_docker_s_own_frontend(text: str) -> None:
    assert not OTHER_FRONTEND.search(text)


@given(st.binary())
def test_any_line_of_the_tool_is_understood(raw: bytes) -> None:
    made = ToolProgress(AttemptStage.FETCH, 0.0)
    deque(made.take(tool_line(raw), 1.0))
    assert failure(made.account(), Evidence()).message


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


@given(said=st.text(max_size=2000), moved=st.text(max_size=2000))
def test_neither_the_failure_nor_the_redirects_crowd_the_other_out(said: str, moved: str) -> None:
    message = (message_of(said, moved) or "").encode(errors="replace")
    assert message.startswith(said.encode(errors="replace")[: MAX_MESSAGE - MAX_MOVED - 8])
    if said:
        assert len(message) <= MAX_MESSAGE
        assert moved.encode(errors="replace")[: MAX_MOVED - 8] in message


def test_nothing_to_say_is_no_message() -> None:
    assert message_of("", "") is None


# Traces


@pytest.mark.parametrize(
    ("parent", "first"), [(f"00-{'a' * 32}-{'b' * 16}-01", f"Trace {'a' * 32}."), ("nonsense", "Not here.")]
)
def test_the_log_begins_with_the_trace(tmp_path: Path, parent: str, first: str) -> None:
    request = Request(repository="https://a.example/b", clone_url="https://a.example/b", commit="c" * 40, image="r/x")
    spec, result = tmp_path / "spec.json", tmp_path / "result.json"
    spec.write_bytes(
        msgspec.json.encode(Spec(name="b", attempt=1, attempt_label="u.1", request=request, refused="Not here."))
    )
    command = ["setsid", "--wait", sys.executable, "-m", "builds.builder", str(spec), str(result)]
    environment = {**os.environ, "TRACEPARENT": parent}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, timeout=60)
    assert done.returncode == 64, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["text"] == first


# The tool's configuration


def test_cache_mounts_are_a_repository_s_own_and_a_fork_s_apart(tmp_path: Path) -> None:
    def namespace(repository: str, apart: str | None = None) -> str:
        request = Request(repository=repository, clone_url=repository, commit="c" * 40, image="r.example/x")
        command(request, "x:1", {}, tmp_path, {}, engine="", options=Options(), apart=apart)
        lines = (tmp_path / "config.py").read_text().splitlines()
        return next(line for line in lines if line.startswith("NAMESPACE = "))

    own = namespace("https://github.com/octo/stats")
    assert own == namespace("https://github.com/octo/stats")
    forks = [namespace("https://github.com/octo/stats", f"refs/pull/{number}/head") for number in (7, 8)]
    assert len({own, *forks, namespace("https://github.com/octo/other", "refs/pull/7/head")}) == 4


# Layers of earlier images


def test_an_image_that_cannot_be_read_for_its_layers_is_not_what_failed() -> None:
    missing = vertex("importing cache manifest from r/x@sha256:1", "not found", digest="sha256:2")
    step = vertex("[1/1] RUN x", f"{FAILED}3")
    told = progress(missing, step, f"ERROR: failed to solve: {FAILED}3").account()
    assert failure(told, Evidence()).message.startswith("A step of the build failed. [1/1] RUN x: exit code: 3")
    assert progress(missing).account().killed, "the tool ended in the middle"


def test_only_an_end_without_a_failed_command_may_be_for_reused_layers() -> None:
    assert not progress(vertex("[1/1] RUN x", f"{FAILED}3"), f"ERROR: failed to solve: {FAILED}3").unexplained
    assert progress(vertex("[1/1] RUN x", "unexpected commit digest"), "ERROR: failed to solve: x").unexplained
    assert not progress("ERROR: failed to solve: x").unexplained, "BuildKit had not begun"


def test_a_second_image_is_the_same_but_for_the_attempt_it_names() -> None:
    inspected = {
        "Architecture": "amd64",
        "Os": "linux",
        "RootFS": {"Type": "layers", "Layers": ["sha256:1"]},
        "Config": {"Hostname": "", "Env": ["A=b"], "Labels": {"build": "x", "attempt": "2"}, "Volumes": None},
    }
    there = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": ["sha256:1"]}}
    own = {"Env": ["A=b"], "Labels": {"build": "x", "attempt": "1"}}

    def same(**changes: object) -> bool:
        found = msgspec.convert({**there, "config": own, **changes}, Configuration)
        return found.describes(inspected, but_for="attempt")

    assert same()
    assert not same(config={**own, "Labels": {"build": "y", "attempt": "1"}})
    assert not same(config={**own, "Env": ["A=c"]})
    assert not same(config={**own, "User": "1000"})
    assert not same(config=None)
    assert not same(rootfs={"diff_ids": ["sha256:2"]})
    assert not same(architecture="arm64")
