"""The commands about builds without a running web: they read this machine's records directly."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from builds.build import BuildStatus, Cause, Image, Kind, Request, State
from builds.builder.spec import Surroundings
from builds.engines import Submission
from builds.engines.local import LocalEngine
from builds.transitions import change
from kiln import discovery
from kiln.client import Message, Server
from kiln.embedded import open_kiln
from kiln.errors import CommandError
from kiln.exits import Exit
from kiln.progress import Progress
from kiln.wsgiadapter import WSGIAdapter
from tests.parts.kiln import ROOT, Kiln, get, is_locked, until

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = "https://github.com/binder-examples/conda"
BODY = {"repository": URL, "commit": COMMIT, "ref": "refs/heads/main"}
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOWHERE = {"KILN_DOCKER_HOST": "unix:///nowhere/docker.sock"}


def waiting(kiln: Kiln, **body: object) -> str:
    """Return the name of a queued build that a web recorded before it was killed."""
    web = kiln.start("web")
    (token,) = kiln.authorization.values()
    name = Server(str(web.url), token.removeprefix("Bearer ")).ask({**BODY, **body})["name"]
    web.stop(signal.SIGKILL)
    until(lambda: get(str(web.url))[0] == 0)
    return str(name)


@pytest.fixture(scope="module")
def kiln(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiln]:
    with Kiln(tmp_path_factory.mktemp("here"), **NOWHERE) as installation:
        yield installation


@pytest.fixture(scope="module")
def name(kiln: Kiln) -> str:
    return waiting(kiln)


def test_records_are_listed_and_shown_with_nothing_running(kiln: Kiln, name: str) -> None:
    assert name in kiln.run("ls").stdout
    assert json.loads(kiln.run("ls", "--json", "--state", "queued").stdout)["items"][0]["name"] == name
    assert json.loads(kiln.run("ls", "--json", "--state", "failed").stdout)["items"] == []
    assert json.loads(kiln.run("show", "--json", name).stdout)["commit"] == COMMIT
    assert (kiln.run("logs", name).returncode, kiln.run("logs", name, "--json").stdout) == (0, "")
    assert "`kiln ls` shows" in kiln.run("show", "build-none").stderr
    assert "Start `kiln serve`" in kiln.run("open", name).stderr


def test_a_list_goes_on_with_nothing_running(kiln: Kiln, name: str) -> None:
    newer = waiting(kiln, repository=f"{URL}-newer")
    first = json.loads(kiln.run("ls", "--json", "--limit", "1").stdout)
    assert [build["name"] for build in first["items"]] == [newer]
    shown = kiln.run("ls", "--continue", first["continue"]).stdout
    assert (name in shown, newer in shown) == (True, False)


def test_nothing_at_all_is_an_empty_list(tmp_path: Path) -> None:
    with Kiln(tmp_path, KILN_IMAGE_PREFIX="") as kiln:
        assert json.loads(kiln.run("ls", "--json").stdout) == {"items": [], "continue": None}
        assert kiln.run("ls").returncode == 0


def test_what_waits_is_cancelled_with_nothing_running(tmp_path: Path) -> None:
    with Kiln(tmp_path, **NOWHERE) as kiln:
        name = waiting(kiln)
        assert kiln.run("cancel", name).stdout == f"{name}: cancelled\n"
        assert kiln.run("show", "--json", name).stdout.count('"cancelled"') == 1
        assert kiln.run("cancel", name).stderr.startswith("kiln: error: The build has already ended. `kiln show`")


def test_work_that_cannot_be_done_is_an_error_and_not_an_interruption(tmp_path: Path) -> None:
    with Kiln(tmp_path, **NOWHERE) as kiln:
        name = waiting(kiln)
        (tmp_path / "state" / "controller.lock").mkdir()
        for command in (("cancel", name), ("logs", "-f", name)):
            done = kiln.run(*command)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith("kiln: error: The controller failed: [Errno 21]"), done.stderr


def test_a_controller_that_fails_ends_the_wait_for_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Kiln(tmp_path, **NOWHERE) as kiln:
        name = waiting(kiln)
        fail = threading.Event()

        def control(*_: object) -> None:
            fail.wait(20)
            raise OSError("No space left on device")

        monkeypatch.setattr("kiln.wiring.control", control)
        embedded = open_kiln(kiln.environment)
        with embedded.controller():
            news = embedded.server.follow(name)
            assert next(news).data["state"] == "queued"
            fail.set()
            with pytest.raises(CommandError, match=r"The controller failed: No space left on device\. Remove"):
                list(news)


def test_the_web_of_the_folder_is_found_at_any_port_and_asked(tmp_path: Path) -> None:
    with Kiln(tmp_path, KILN_IMAGE_PREFIX="registry.invalid/of-web/") as kiln:
        web = kiln.start("web", PORT="0")
        assert kiln.run("open", "--json", BROWSER="true", DISPLAY="").stdout.count("http://127.0.0.1:") == 1
        url = json.loads(kiln.run("open", "--json", BROWSER="true", DISPLAY="").stdout)["url"]
        assert f"Kiln's pages: {url}?token=" in web.log.read_text()
        event = {"specversion": "1.0", "id": "1", "source": "/test", "type": "dev.kiln.build.requested.v1"}
        sent = kiln.run("send", "-", "--json", stdin=json.dumps(event | {"data": BODY}).encode())
        assert json.loads(sent.stdout)["status"] == 202
        (build,) = json.loads(kiln.run("ls", "--json", KILN_IMAGE_PREFIX="").stdout)["items"]
        assert build["image"]["repository"].startswith("registry.invalid/of-web/")
        (announcement,) = (tmp_path / "state").glob("web-*.url")
        web.stop(signal.SIGKILL)
        # Its worker closes the port before it ends.
        until(lambda: get(url)[0] == 0 and not is_locked(announcement))
        assert json.loads(kiln.run("ls", "--json", KILN_IMAGE_PREFIX="").stdout)["items"] == [build]
        assert not list((tmp_path / "state").glob("web-*.url"))


def test_the_lock_tells_which_webs_run(tmp_path: Path) -> None:
    (tmp_path / "web-stale.url").write_text("http://127.0.0.1:1/")
    assert discovery.running_web(tmp_path) is None
    assert not list(tmp_path.iterdir())
    first = discovery.announce(tmp_path, "http://127.0.0.1:2/")
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    second = discovery.announce(tmp_path, "http://127.0.0.1:3/")
    assert discovery.running_web(tmp_path) == "http://127.0.0.1:3/"
    second.close()
    assert discovery.running_web(tmp_path) == "http://127.0.0.1:2/"
    first.close()
    assert discovery.running_web(tmp_path / "absent") is None
    assert discovery.running_web(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "more", "status", "says"),
    [
        (["build", URL], NOWHERE, 1, "does not answer: No such file or directory. `kiln doctor` names the cure"),
        (["build", "."], {}, 1, "is a local folder"),
        (["build", "file:///srv/course"], {}, 1, "is a local folder"),
        (["build", "./course"], {}, 1, "Push it to a Git host and name its URL"),
        (["build", "--push", URL], {}, 1, "Set KILN_IMAGE_PREFIX"),
        (["build", "--push", URL], {"KILN_IMAGE_PREFIX": "localhost/mine/"}, 1, "--push needs a registry"),
        (["build", "--push", URL, "--server", "http://127.0.0.1:9/"], {}, 2, "apply to builds on this machine"),
        (["build", "--no-push", URL], {"KILN_SERVER": "http://127.0.0.1:9/"}, 2, "apply to builds on this machine"),
        (["build", URL, "--token-file", "/nowhere"], {}, 1, "Name a server with --server"),
        (["build", ""], {}, 2, "must not be empty"),
        (["ls", "--server", ""], {}, 2, "must not be empty"),
        (["ls", "--server", "http://a:canary@127.0.0.1:9/"], {}, 1, "must not contain a user name or password"),
        (["show", ""], {}, 1, "Build not found."),
        (["cancel", ".."], {}, 1, "Build not found."),
        (["rebuild", "\udcff"], {}, 1, "Build not found."),
        (["ls", "--repository", "\udcff"], {}, 1, "bytes that are not UTF-8"),
        (["verify", "no image"], {}, 3, "is not the name of an image"),
        (["build"], {}, 2, "`kiln build --help` shows every option"),
        (["bake"], {}, 2, "`kiln --help` shows every option"),
        (["ls"], {"KILN_SERVER": "http://127.0.0.1:9/"}, 1, "Check the address"),
        (["rebuild", "build-none"], {}, 1, "`kiln ls` shows the builds"),
        (["web"], {}, 1, "KILN_IMAGE_PREFIX: must be set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_has_one_prefix_a_status_and_a_next_step(
    tmp_path: Path, arguments: list[str], more: dict[str, str], status: int, says: str
) -> None:
    with Kiln(tmp_path, **{"KILN_IMAGE_PREFIX": "", **more}) as kiln:
        done = kiln.run(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("kiln: error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stderr


def test_a_machine_without_git_cannot_build(tmp_path: Path) -> None:
    with Kiln(tmp_path, KILN_IMAGE_PREFIX="", PATH=str(tmp_path)) as kiln:
        done = kiln.run("build", URL)
    assert done.stderr == "kiln: error: git is not installed, or is not on PATH. `kiln doctor` names the cure.\n"


def test_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with Kiln(tmp_path, KILN_IMAGE_PREFIX="") as kiln, Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*kiln.program, "ls"], cwd=ROOT, env=kiln.environment, stdout=full, stderr=PIPE, check=False
        )
        assert (done.returncode, done.stderr) == (1, b"kiln: error: Standard output: No space left on device\n")
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*kiln.program, "ls"], cwd=ROOT, env=kiln.environment, stdout=writer, stderr=PIPE, check=False
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, b"")


def test_without_a_command_it_shows_its_help(tmp_path: Path) -> None:
    with Kiln(tmp_path) as kiln:
        done = kiln.run()
    assert (done.returncode, done.stdout, done.stderr.partition("\n")[0]) == (
        2,
        "",
        "Usage: kiln [OPTIONS] COMMAND [ARGS]...",
    )


def test_an_image_that_was_pushed_nowhere_has_no_digest_in_its_reference(tmp_path: Path) -> None:
    request = Request(repository=URL, clone_url=f"{URL}.git", commit=COMMIT, image="localhost/kiln/course-0123456789")
    cause = Cause(source="/x", id="1", type="x", by=None, at=NOW, kind=Kind.PERSON)
    image = Image(repository=request.image, tag=COMMIT, digest=f"sha256:{'a' * 64}")
    with Kiln(tmp_path, **NOWHERE) as kiln:
        with closing(LocalEngine(tmp_path / "state", surroundings=Surroundings())) as engine:
            (build,) = engine.accept([Submission(name="build-kept", request=request, cause=cause)])
            status = BuildStatus(state=State.SUCCEEDED, round=1, image=image, finished_at=NOW, answered=(cause.key,))
            engine.write(change(build, status=status, open=False))
        shown = json.loads(kiln.run("show", "--json", "build-kept").stdout)["image"]
        assert (shown["reference"], shown["digest"]) == (f"{request.image}:{COMMIT}", image.digest)
        assert "does not answer" in kiln.run("rebuild", "build-kept").stderr


@pytest.mark.parametrize("follow", [(), ("-f",), ("--attempt", "1")])
def test_each_line_of_a_log_has_the_same_fields_followed_or_not(tmp_path: Path, follow: tuple[str, ...]) -> None:
    lines = [("Trace 1.", None), ("Cloning", "fetch"), ("Step\u20281", "build"), ("", "build")]
    request = Request(repository=URL, clone_url=f"{URL}.git", commit=COMMIT, image="localhost/kiln/course-0123456789")
    cause = Cause(source="/x", id="1", type="x", by=None, at=NOW, kind=Kind.PERSON)
    with Kiln(tmp_path, **NOWHERE) as kiln:
        with closing(LocalEngine(tmp_path / "state", surroundings=Surroundings())) as engine:
            (build,) = engine.accept([Submission(name="build-kept", request=request, cause=cause)])
            status = BuildStatus(state=State.CANCELLED, round=1, attempt=1, finished_at=NOW, answered=(cause.key,))
            engine.write(change(build, status=status, open=False))
        folder = tmp_path / "state" / "attempts" / "build-kept-1"
        folder.mkdir(parents=True)
        written = [{"n": number, "phase": phase, "text": text} for number, (text, phase) in enumerate(lines, 1)]
        (folder / "log").write_text("".join(f"{json.dumps(line)}\n" for line in written))
        found = kiln.run("logs", "build-kept", "--json", *follow)
        text = kiln.run("logs", "build-kept", *follow)
    assert [json.loads(line) for line in found.stdout.split("\n") if line] == [
        {"line": line, "phase": phase} for line, phase in lines
    ], found.stderr
    assert text.stdout.split("\n") == [*(line for line, _ in lines), ""]


# The whole of the command --------------------------------------------------------------------------------------------


def test_exit_statuses_are_documented_and_no_other_is_used() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    table = page.partition("| exit status | |")[2].partition("\n\n")[0]
    assert [int(status) for status in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == [*Exit]
    for module in ("backends", "buildcommands", "cli", "follow"):
        tree = ast.parse((ROOT / "kiln" / f"{module}.py").read_text())
        returned = (node.value for node in ast.walk(tree) if isinstance(node, ast.Return))
        numbers = [node.value for node in returned if isinstance(node, ast.Constant) and type(node.value) is int]
        assert numbers == [], module


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_names_of_builds(kiln: Kiln, name: str, shell: str) -> None:
    assert f"_KILN_COMPLETE={shell}_complete" in kiln.run(_KILN_COMPLETE=f"{shell}_source").stdout
    words = {"COMP_WORDS": "kiln show build-", "COMP_CWORD": "build-" if shell == "fish" else "2"}
    found = kiln.run(_KILN_COMPLETE=f"{shell}_complete", **words)
    assert name in found.stdout
    nobody = kiln.run(_KILN_COMPLETE=f"{shell}_complete", KILN_SERVER="http://127.0.0.1:9/", **words)
    assert (nobody.returncode, nobody.stdout.strip(), nobody.stderr) == (0, "", "")


# Presentation --------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


MESSAGES = [
    Message(kind="state", data={"state": "queued", "waiting": "No slot is free."}),
    Message(kind="state", data={"state": "running"}),
    Message(kind="log", data={"line": "Cloning", "phase": "fetch"}),
    Message(kind="log", data={"line": "Step \x1b]0;title\x07[bold]1[/bold] :boom:", "phase": "build"}),
    Message(
        kind="state",
        data={
            "state": "succeeded",
            "finished_at": "2026-03-01T12:00:09Z",
            "durations": {"queued": 1.0, "fetch": 1.25, "build": 4.0, "push": None},
        },
    ),
]
LINES = [
    "[queued: No slot is free.]",
    "[running]",
    "Cloning",
    "Step [bold]1[/bold] :boom:",
    "[fetch 1.2 s, build 4.0 s]",
    "[succeeded]",
]


def test_elsewhere_than_on_a_terminal_there_are_plain_lines() -> None:
    out = io.StringIO()
    with Progress(out) as progress:
        for message in MESSAGES:
            progress.show(message)
    assert out.getvalue().splitlines() == LINES


def test_a_terminal_has_a_last_line_with_the_phase_and_the_time() -> None:
    out = Terminal()
    with Progress(out) as progress:
        for message in MESSAGES:
            progress.show(message)
    shown = out.getvalue()
    places = [shown.index(line) for line in LINES]
    assert places == sorted(places)
    assert "\x1b]0" not in shown
    assert re.search(r"0:00:\d\d\S* succeeded\n", shown)


def test_an_answer_in_this_process_comes_piece_by_piece_and_is_closed() -> None:
    told: list[str] = []

    def app(environ: Mapping[str, Any], start: Any) -> Iterator[bytes]:
        told.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        told.append(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode())
        told.append(environ.get("HTTP_AUTHORIZATION", ""))
        start("200 OK", [("Content-Type", "text/event-stream")])

        def pieces() -> Iterator[bytes]:
            try:
                for number in range(3):
                    told.append(f"made {number}")
                    yield f'event: log\nid: 1:{number}\ndata: {{"line": "{number}"}}\n\n'.encode()
            finally:
                told.append("closed")

        return pieces()

    server = Server("http://127.0.0.1/a%20b", "secret", WSGIAdapter(app, lambda: None))
    follow = server.follow("build-x")
    assert next(follow).data == {"line": "0"}
    assert told == ["GET /a b/api/v1/builds/build-x/log?", "", "Bearer secret", "made 0"]
    follow.close()  # type: ignore[attr-defined]
    assert told[-1] == "closed"
