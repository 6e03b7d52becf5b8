"""The commands about builds: their output, the server that they use, and their credentials."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.parts.kiln import Kiln, Process

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = "https://github.com/binder-examples/conda"


@pytest.fixture(scope="module")
def kiln(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiln]:
    with Kiln(tmp_path_factory.mktemp("remote")) as installation:
        yield installation


@pytest.fixture(scope="module")
def web(kiln: Kiln) -> Process:
    """Web without a controller: requested builds stay in the queue."""
    return kiln.start("web")


@pytest.fixture(scope="module")
def at(web: Process) -> dict[str, str]:
    """The environment in which the local installation is `web`."""
    return {"PORT": str(web.url).rstrip("/").rpartition(":")[2]}


@pytest.fixture(scope="module")
def name(kiln: Kiln, at: dict[str, str]) -> str:
    """The name of a queued build."""
    event = {"specversion": "1.0", "id": "1", "source": "/test", "type": "dev.kiln.build.requested.v1"}
    data = {"repository": URL, "commit": COMMIT, "ref": "refs/heads/main"}
    done = kiln.run("send", "-", stdin=json.dumps(event | {"data": data}).encode(), **at)
    assert done.stdout.startswith("202 ")
    (build,) = json.loads(kiln.run("ls", "--json", **at).stdout)["items"]
    return str(build["name"])


def test_ls_shows_a_line_for_each_build(kiln: Kiln, at: dict[str, str], name: str) -> None:
    done = kiln.run("ls", **at)
    heading, line = done.stdout.splitlines()
    assert heading.split() == ["NAME", "STATE", "REPOSITORY", "REF", "COMMIT", "AGE", "TOOK"]
    assert line.split()[:5] == [name, "queued", "github.com/binder-examples/conda", "main", COMMIT[:7]]
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("columns", "shown", "omitted"),
    [
        (40, ["NAME", "STATE"], ["AGE", "REPOSITORY"]),
        (80, ["NAME", "STATE", "AGE"], ["REF", "COMMIT"]),
        (200, ["NAME", "STATE", "REPOSITORY", "REF", "COMMIT", "AGE", "TOOK"], []),
    ],
)
def test_ls_shows_whole_names_in_a_narrow_terminal(
    kiln: Kiln, at: dict[str, str], name: str, columns: int, shown: list[str], omitted: list[str]
) -> None:
    terminal = {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": str(columns)}
    heading, *lines = kiln.run("ls", **terminal, **at).stdout.splitlines()
    assert [word for word in shown if word not in heading] == []
    assert [word for word in omitted if word in heading] == []
    assert any(line.startswith(f"{name}  queued") for line in lines)


def test_ls_shows_only_what_is_asked_for(kiln: Kiln, at: dict[str, str], name: str) -> None:
    assert name in kiln.run("ls", "--state", "queued", "--repository", URL, "--limit", "1", **at).stdout
    assert name not in kiln.run("ls", "--state", "failed", **at).stdout
    assert name not in kiln.run("ls", "--repository", f"{URL}-other", **at).stdout
    assert kiln.run("ls", "--state", "lost", **at).returncode == 2


def test_a_list_goes_on_after_its_cursor(kiln: Kiln, at: dict[str, str], name: str) -> None:
    event = {"specversion": "1.0", "source": "/test", "type": "dev.kiln.build.requested.v1"}
    for number in range(3):
        data = {"repository": f"{URL}-{number}", "commit": COMMIT}
        assert kiln.run("send", "-", stdin=json.dumps(event | {"id": f"p{number}", "data": data}).encode(), **at).stdout
    everything = json.loads(kiln.run("ls", "--json", "--state", "queued", **at).stdout)
    assert everything["continue"] is None
    assert name in [build["name"] for build in everything["items"]]
    found: list[object] = []
    cursor: tuple[str, ...] = ()
    while True:
        page = json.loads(kiln.run("ls", "--json", "--state", "queued", "--limit", "2", *cursor, **at).stdout)
        found += page["items"]
        if page["continue"] is None:
            break
        cursor = ("--continue", page["continue"])
    assert found == everything["items"]
    for options in ((*cursor,), ("--continue", "nonsense", "--state", "queued")):
        refused = kiln.run("ls", *options, **at)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == "kiln: error: continue must be the value of `continue` in an earlier list.\n"
    assert kiln.run("ls", "--continue", "", **at).returncode == 2


def test_show_says_what_is_known(kiln: Kiln, at: dict[str, str], name: str) -> None:
    shown = dict(line.split(maxsplit=1) for line in kiln.run("show", name, **at).stdout.splitlines())
    assert (shown["Name"], shown["State"], shown["Commit"]) == (name, "queued", COMMIT)
    assert json.loads(kiln.run("show", name, "--json", **at).stdout)["name"] == name


def test_a_build_that_there_is_not_is_a_sentence(kiln: Kiln, at: dict[str, str]) -> None:
    for command in ("show", "logs", "cancel"):
        done = kiln.run(command, "build-nothing", **at)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "kiln: error: Build not found. `kiln ls` shows the builds.\n"


def test_a_name_stays_below_the_builds(kiln: Kiln, at: dict[str, str]) -> None:
    assert "not found" in kiln.run("show", "../../health", **at).stderr


def test_cancel_leaves_the_mark(kiln: Kiln, at: dict[str, str]) -> None:
    event = {"specversion": "1.0", "id": "2", "source": "/test", "type": "dev.kiln.build.requested.v1"}
    data = {"repository": f"{URL}-other", "commit": COMMIT}
    kiln.run("send", "-", stdin=json.dumps(event | {"data": data}).encode(), **at)
    (build,) = json.loads(kiln.run("ls", "--json", "--repository", f"{URL}-other", **at).stdout)["items"]
    assert kiln.run("cancel", build["name"], **at).stdout == f"{build['name']}: cancelling\n"
    assert kiln.run("logs", build["name"], **at).returncode == 0


def test_open_prints_the_address(kiln: Kiln, name: str) -> None:
    done = kiln.run("open", name, "--server", "https://kiln.example/base", BROWSER="true", DISPLAY="")
    assert done.stdout == f"https://kiln.example/base/builds/{name}\n"


# Server and credentials ----------------------------------------------------------------------------------------------


@pytest.fixture
def heard() -> Iterator[tuple[str, list[str | None]]]:
    """The URL of a server, and the list of the `Authorization` of each request to it."""
    notes: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            notes.append(self.headers["Authorization"])
            body = b'{"items": [], "continue": null}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}/", notes
    server.shutdown()
    server.server_close()


def test_a_server_that_is_busy_is_asked_again(tmp_path: Path) -> None:
    answers = [503, 503, 422]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = answers.pop(0)
            body = json.dumps({"detail": f"It answers {status}."}).encode()
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, Kiln(tmp_path) as kiln:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = kiln.run("build", URL, "--server", f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "kiln: It answers 503. Retrying in 0 s.",
        "kiln: It answers 503. Retrying in 0 s.",
        "kiln: error: It answers 422.",
    ]


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (b"10\r\nhalf", "The connection to http://127.0.0.1:{port}/ was lost."),
        (b"7\r\n<html>\n\r\n0\r\n\r\n", "is not an API of Kiln. Check the address"),
    ],
)
def test_a_log_that_breaks_off_is_a_sentence(tmp_path: Path, rest: bytes, says: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b'1f\r\n{"line": "one", "phase": null}\n\r\n' + rest)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, Kiln(tmp_path) as kiln:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        done = kiln.run("logs", "build-kept", "--server", f"http://127.0.0.1:{port}")
        server.shutdown()
    assert (done.returncode, done.stdout) == (1, "one\n")
    assert done.stderr.startswith("kiln: error: ")
    assert says.format(port=port) in done.stderr


@pytest.fixture
def profiles(tmp_path: Path, heard: tuple[str, list[str | None]]) -> dict[str, str]:
    """The environment with a profile `campus`."""
    folder = tmp_path / "kiln"
    folder.mkdir()
    (folder / "token").write_text("of-the-profile\n")
    (folder / "profiles.yaml").write_text(f"campus: {{server: {heard[0]}, token_file: {folder / 'token'}}}\n")
    return {"XDG_CONFIG_HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("arguments", "environment", "sent"),
    [
        ((), {"KILN_SERVER": "{url}", "KILN_TOKEN": "of-the-environment"}, "Bearer of-the-environment"),
        (("--profile", "campus"), {"KILN_SERVER": "http://127.0.0.1:9", "KILN_TOKEN": "x"}, "Bearer of-the-profile"),
        ((), {"KILN_PROFILE": "campus"}, "Bearer of-the-profile"),
        (("--server", "{url}"), {"KILN_TOKEN": "x", "KILN_PROFILE": "campus"}, None),
        (("--server", "{url}"), {"KILN_SERVER": "http://127.0.0.1:9", "KILN_TOKEN": "x"}, None),
    ],
)
def test_a_token_goes_to_the_server_that_it_was_named_with(
    tmp_path: Path,
    heard: tuple[str, list[str | None]],
    profiles: dict[str, str],
    arguments: tuple[str, ...],
    environment: dict[str, str],
    sent: str | None,
) -> None:
    url, notes = heard
    filled = {name: value.format(url=url) for name, value in environment.items()}
    with Kiln(tmp_path / "none") as kiln:
        done = kiln.run("ls", *(one.format(url=url) for one in arguments), **profiles, **filled)
    assert done.returncode == 0, done.stderr
    assert notes == [sent]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("other: {server: 'https://kiln.example/'}", "has no profile campus; it has other"),
        ("campus: {sever: 'https://kiln.example/'}", "sever"),
        ("campus: {server: 'https://kiln.example/', token_file: /nowhere}", "/nowhere cannot be read"),
        ("campus: [", "Line"),
    ],
)
def test_a_profile_that_cannot_be_used_is_a_sentence(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "kiln").mkdir()
    (tmp_path / "kiln" / "profiles.yaml").write_text(content)
    with Kiln(tmp_path / "none") as kiln:
        done = kiln.run("ls", "--profile", "campus", XDG_CONFIG_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("kiln: ")
    assert says in done.stderr


def test_what_the_command_reads_is_no_unknown_setting(kiln: Kiln) -> None:
    given = {"KILN_SERVER": "https://kiln.example/", "KILN_TOKEN": "x", "KILN_PROFILE": "campus"}
    assert kiln.run("check", **given).returncode == 0


def test_completion_knows_the_commands(kiln: Kiln) -> None:
    environment = {"_KILN_COMPLETE": "bash_complete", "COMP_WORDS": "kiln lo", "COMP_CWORD": "1"}
    found = kiln.run(**environment, PATH=os.environ["PATH"])
    assert "logs" in found.stdout
