"""`--json`: every command that prints facts prints them as JSON, and nothing else on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from kiln.cli import commands
from tests.parts.kiln import ROOT, Kiln

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = "https://github.com/binder-examples/conda"
EVENT = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/test",
    "type": "dev.kiln.build.requested.v1",
    "data": {"repository": URL, "commit": COMMIT, "build_args": {"A": "1"}, "tags": ["latest"]},
}
PAGE = (ROOT / "docs" / "cli.md").read_text().partition("\n## JSON\n")[2].partition("\n## ")[0]
OF_THE_API = {"cancel", "ls", "show"}
"""Commands that print the API's answer, which docs/api.md describes."""
SERVERS = {"web", "controller", "serve"}
"""Commands that run until a signal and print no facts."""
WITH_DOCKER = {"build", "rebuild", "verify"}
"""Commands whose JSON tests/docker checks: they need a finished build."""
RUNS = {
    "cancel": ("cancel", "{first}", "{second}", "--json"),
    "check": ("check", "--json"),
    "doctor": ("doctor", "--json"),
    "images": ("images", "--json"),
    "images prune": ("images", "--json", "prune"),
    "logs": ("logs", "{first}", "--json"),
    "ls": ("ls", "--json"),
    "open": ("open", "--json"),
    "send": ("send", "-", "--json"),
    "show": ("show", "{first}", "--json"),
    "sync": ("sync", "no-url", "--json"),
}


def every_command() -> Iterator[tuple[str, click.Command]]:
    for name, command in commands.commands.items():
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in command.commands.items())


def documents(text: str) -> list[Any]:
    """The JSON documents of a text that contains nothing else."""
    found, rest = [], text.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        found.append(document)
        rest = rest[end:].lstrip()
    return found


@pytest.fixture(scope="module")
def kiln(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiln]:
    folder = tmp_path_factory.mktemp("json")
    (folder / "kiln.yaml").write_text("keep: {for: 30d}\n")
    settings = {"KILN_CONFIG": str(folder / "kiln.yaml"), "KILN_DOCKER_HOST": "unix:///nowhere/docker.sock"}
    with Kiln(folder, **settings) as installation:
        installation.start("web")
        yield installation


@pytest.fixture(scope="module")
def names(kiln: Kiln) -> dict[str, str]:
    """The names of two queued builds."""
    found = {}
    for key in ("first", "second"):
        data = {"repository": f"{URL}-{key}", "commit": COMMIT}
        sent = kiln.run("send", "-", "--json", stdin=json.dumps(EVENT | {"id": key, "data": data}).encode())
        found[key] = json.loads(sent.stdout)["location"].rpartition("/")[2]
    return found


def test_no_command_is_left_out() -> None:
    assert {name for name, _ in every_command()} == SERVERS | WITH_DOCKER | {*RUNS}
    for name, command in every_command():
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("--json" in options) != (name in SERVERS), name


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_the_output_is_json(kiln: Kiln, names: dict[str, str], run: tuple[str, ...]) -> None:
    arguments = [argument.format(**names) for argument in run]
    done = kiln.run(*arguments, stdin=json.dumps(EVENT).encode(), BROWSER="true", DISPLAY="")
    found = documents(done.stdout)
    assert len(found) == {"cancel": 2, "logs": 0}.get(run[0], 1), done.stderr
    assert "Traceback" not in done.stderr
    if run[0] not in OF_THE_API:
        members = {member for document in found for one in rows(document) for member in one}
        assert [member for member in members if f"`{member}`" not in PAGE] == [], "docs/cli.md"


def rows(document: Any) -> list[dict[str, Any]]:
    """The objects of a document: those of an array, or an object and the objects in its members."""
    if isinstance(document, list):
        return document
    inner = [one for value in document.values() if isinstance(value, list) for one in value if isinstance(one, dict)]
    return [document, *inner]


def test_cancel_continues_after_an_error(kiln: Kiln, names: dict[str, str]) -> None:
    done = kiln.run("cancel", "build-none", names["first"], "build-nothing", "--json")
    assert [build["name"] for build in documents(done.stdout)] == [names["first"]]
    assert [line.split(": ")[:3] for line in done.stderr.splitlines()] == [
        ["kiln", "error", "build-none"],
        ["kiln", "error", "build-nothing"],
    ]
    assert done.returncode == 1


def test_sync_reports_a_repository_that_it_cannot_poll(kiln: Kiln) -> None:
    done = kiln.run("sync", "no-url", "--json")
    (entry,) = json.loads(done.stdout)
    assert done.returncode == 1
    assert entry["repository"] == "no-url"
    assert entry["error"].startswith("The repository's address is incomplete.")


# kiln check ----------------------------------------------------------------------------------------------------------


def checked(folder: Path, *arguments: str, event: object = None, text: str = "", **settings: str) -> dict[str, Any]:
    (folder / "kiln.yaml").write_text(text)
    with Kiln(folder, KILN_CONFIG=str(folder / "kiln.yaml"), **settings) as kiln:
        given = ("--event", "-") if event else ()
        done = kiln.run("check", "--json", *given, *arguments, stdin=json.dumps(event).encode())
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == found["valid"]
    return found


def test_check_describes_the_configuration(tmp_path: Path) -> None:
    text = f"hosts: {{git.example.edu: {{kind: gitlab, statuses: true}}}}\nrepositories: [{{url: {URL}, poll: 10m}}]"
    found = checked(tmp_path, text=text, KILN_PUBLIC_URL="http://127.0.0.1:8000")
    assert found["warnings"] == ["no credential in statuses/git.example.edu, so no status can be set there"]
    assert found["configuration"]["repositories"] == [{"url": URL, "poll": 600.0}]
    assert found["configuration"]["triggers"] == ["default"]
    assert [*found["configuration"]["statuses"]] == ["git.example.edu"]
    assert (found["errors"], found["request"], found["findings"]) == ([], None, None)


def test_check_lists_all_errors(tmp_path: Path) -> None:
    found = checked(tmp_path, text="sink: []\ntriggers: [{name: a, pushh: {}}]")
    assert [error.split(": ")[1] for error in found["errors"]] == ["sink", "triggers[0]"]
    assert (found["valid"], found["configuration"]) == (False, None)


def test_check_evaluates_an_event(tmp_path: Path) -> None:
    (event,) = checked(tmp_path, event=EVENT)["request"]["events"]
    (build,) = event["builds"]
    assert (event["id"], event["why"], build["trigger"], build["refused"]) == ("e-1", None, None, None)
    assert (build["repository"], build["commit"], build["build_args"]) == (URL, COMMIT, {"A": "1"})
    assert build["tags"] == ["latest"]
    assert build["name"].startswith("build-binder-examples-conda-")
    by_branch = EVENT | {"data": {"repository": URL, "ref": "main"}}
    ((build,),) = (one["builds"] for one in checked(tmp_path, event=by_branch)["request"]["events"])
    assert (build["name"], build["commit"], build["ref"]) == (None, None, "refs/heads/main")
    banned = checked(tmp_path, event=EVENT, KILN_BANNED_REPOSITORIES="https://github.com/**")
    assert banned["request"]["events"][0]["builds"][0]["refused"]["status"] == 422


def test_check_names_the_condition_that_an_event_does_not_meet(tmp_path: Path) -> None:
    rules = "{name: a, filters: [{exact: {type: org.example.course}}]}, {name: b, filters: [{exact: {type: other}}]}"
    build = "build: {repository: '{data.course}'}"
    text = f"triggers: [{rules.replace('}]}', f'}}], {build}}}')}]"
    event = {"specversion": "1.0", "id": "1", "source": "/x", "type": "org.example.course", "data": {}}
    found = checked(tmp_path, event=event, text=text)
    first, second = found["request"]["events"][0]["triggers"]
    assert (first["name"], first["matches"], second["matches"]) == ("a", True, False)
    assert "data.course" in first["lacks"]
    assert second["mismatches"][0]["condition"].startswith("filters")
    assert found["errors"] == [first["lacks"]]


def test_check_refuses_a_request_without_an_event(tmp_path: Path) -> None:
    found = checked(tmp_path, event=[1])
    assert (found["valid"], found["request"], len(found["errors"])) == (False, None, 1)
