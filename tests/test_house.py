"""The rules of the repository: imports, style, types, the limits of pure modules, and the completeness of the docs."""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import prometheus_client
import pytest

from builds.build import Reason, Result, State
from builds.builder import outcome
from builds.plan import Word
from eventing.hosts import DIALECTS
from handlers import asyncapi, openapi
from handlers.app import create_app
from kiln import cli, vitals
from kiln.cli import commands
from tests.handlers.test_asyncapi import sent
from tools import reference, sentences

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PROJECT["tool"]["importlinter"]["root_packages"]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TRACKED = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
FILES = [ROOT / name for name in TRACKED.split("\0") if name and (ROOT / name).is_file()]

READS_ENVIRONMENT = {
    "builds.builder",
    "builds.clients.git",  # what git inherits
    "builds.clients.docker_config",  # the folder of docker's configuration
    "builds.engines.local",  # what an attempt inherits
    "builds.faults",
    "kiln",
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def within(module: str, roots: set[str]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


@pytest.mark.timeout(600)
def test_lint() -> None:
    """Checks style, types and the contracts on imports with the Makefile's commands."""
    done = subprocess.run(
        ["make", "--old-file=.venv/complete", "--keep-going", "lint"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_documentation_is_a_site_without_a_warning(tmp_path: Path) -> None:
    """Every page is in the table of contents, and every link and its anchor exist. Options as in the Makefile."""
    made = ["-q", "-W", "--keep-going", "-n", "-c", "docs", "-d", str(tmp_path / "trees"), "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *made, ".", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "docs" / "settings.html").is_file()


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert not text or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_only_the_wiring_reads_the_environment(path: Path) -> None:
    if not within(module_of(path), READS_ENVIRONMENT):
        assert not re.search(r"\bos\.environ|\bgetenv\b", path.read_text())


def pure_modules() -> list[str]:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    return next(one["source_modules"] for one in contracts if one["name"].startswith("Policy"))


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_pure_modules_are_told_the_time(path: Path) -> None:
    if within(module_of(path), {*pure_modules()}):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        names = {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)}
        assert not names & {"now", "utcnow", "today"}


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_what_is_offered_exists(path: Path) -> None:
    module = importlib.import_module(module_of(path)) if "__all__" in path.read_text() else None
    offered: list[str] = getattr(module, "__all__", [])
    assert [name for name in offered if not hasattr(module, name)] == []
    assert offered == sorted(offered)


def test_a_class_name_stands_for_one_thing() -> None:
    """A private name may come again: the payloads of each Git host have their own `_Push`."""
    nodes = (node for path in MODULES for node in ast.walk(ast.parse(path.read_text())))
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef) and node.name[0] != "_")
    assert [name for name, count in names.items() if count > 1] == []


def test_an_error_that_a_docstring_names_exists() -> None:
    nodes = [node for path in MODULES for node in ast.walk(ast.parse(path.read_text()))]
    used = {getattr(node, field, None) for node in nodes for field in ("id", "attr", "name")}
    expressions = (node.value for node in nodes if isinstance(node, ast.Expr))
    texts = [one.value for one in expressions if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    named = {name for text in texts for name in re.findall(r"\b[A-Z]\w*Error\b", text)}
    assert named - used - {*dir(builtins)} == set()


def test_the_tree_names_no_registry_of_packages_and_no_place_of_work() -> None:
    registries = ["pypi" + ".org", "python" + "hosted", "(?<!no-emit-)index" + "-url", "find" + "-links"]
    words = [*registries, "TO" + "DO", "FIX" + "ME"]
    forbidden = re.compile("|".join([*words, r"/(?:root|work)/[a-z.]"]))
    found = []
    for path in FILES:
        text = path.read_text(errors="replace") if path.suffix not in (".png", ".gz") else ""
        found += [f"{path.relative_to(ROOT)}: {hit.group()}" for hit in forbidden.finditer(text)]
    assert found == []


def test_locks_hold_every_requirement_by_hash() -> None:
    runtime, otel, dev = ((ROOT / "requirements" / f"{name}.txt").read_text() for name in ("runtime", "otel", "dev"))
    pinned = re.compile(r"^([a-z0-9._-]+)==[^ ]+(?: ;[^\\]*)? \\\n    --hash=sha256:", re.MULTILINE)
    wanted = [re.split(r"[<>=]", line)[0] for line in PROJECT["project"]["dependencies"]]
    extra = [re.split(r"[<>=]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["otel"]]
    assert {*wanted} <= {*pinned.findall(runtime)} <= {*pinned.findall(otel)} <= {*pinned.findall(dev)}
    assert {*extra} <= {*pinned.findall(otel)}
    assert len(pinned.findall(dev)) == len(re.findall(r"^\S", dev, re.MULTILINE))


# Completeness of the documentation -----------------------------------------------------------------------------------


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def routes() -> Iterator[str]:
    app = create_app(cast("Any", SimpleNamespace(base_path="/", max_body=0)))
    for rule in app.url_map.iter_rules():
        methods = rule.methods or set()
        for method in methods if methods == {"OPTIONS"} else methods - {"HEAD", "OPTIONS"}:
            yield f"{method} {rule.rule}"
    yield from ("GET /livez", "GET /readyz", "GET /metrics")


@pytest.mark.parametrize("route", sorted({*routes()}))
def test_every_route_is_documented(route: str) -> None:
    assert f"`{route}`" in document("api.md")


@pytest.mark.parametrize("word", [*(word.value for word in Word), "requested"])
def test_every_event_type_is_documented(word: str) -> None:
    assert f"`dev.kiln.build.{word}.v1`" in document("events.md")


TYPE = re.compile(
    r"(?:com\.(?!example)[a-z-]+|dev\.knative\.sources?\.[a-z]+|dev\.kiln\.build|org\.jupyterhub\.server)(?:\.[\w ]+)+"
)


def types() -> Iterator[str]:
    """Every text in the code of hosts and triggers that is an event type, or the beginning of such types."""
    for path in [*(ROOT / "eventing" / "hosts").glob("*.py"), ROOT / "builds" / "triggers.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and TYPE.fullmatch(str(node.value)):
                yield str(node.value)


def messages(*tags: str) -> dict[str, dict[str, Any]]:
    """The messages of the AsyncAPI document, by event type."""
    found = asyncapi.document(version="0", public_url=None)["components"]["messages"].values()
    return {one["name"]: one for one in found if one["tags"][0]["name"] in tags}


def documented_extensions(*tags: str) -> set[str]:
    context = {"specversion", "id", "source", "type", "time", "subject", "dataschema"}
    headers = {header for one in messages(*tags).values() for header in one["headers"]["properties"]}
    return {header.removeprefix("ce-") for header in headers} - context


def test_the_asyncapi_document_has_every_type_that_is_taken_and_no_other() -> None:
    assert {*messages("in")} - {"any other"} == {*types()}, "handlers/asyncapi.py, docs/events.md"


@pytest.mark.parametrize("kind", sorted({*types()}))
def test_every_type_that_is_taken_is_documented(kind: str) -> None:
    assert re.search(rf"`{re.escape(kind)}[`.]", document("events.md"))


def test_the_asyncapi_document_has_every_type_and_extension_that_is_sent_and_no_other() -> None:
    extensions = {name for event in sent() for name in event.extensions}
    assert {event.type for event in sent()} == {*messages("out", "cdevents")}, "handlers/asyncapi.py, docs/events.md"
    assert documented_extensions("out", "cdevents") == extensions, "handlers/asyncapi.py, docs/events.md"
    assert all(f"`{name}`" in document("events.md") for name in extensions)


def test_the_asyncapi_document_has_every_extension_that_is_read_and_no_other() -> None:
    """Read as in `event.extensions.get("name")`, or as what carries a trace, by all who are given events."""
    readers = [path for path in MODULES if path.name != "chain.py"]  # which reads only Kiln's own events
    read = {
        name for path in readers for name in re.findall(r"(?:\.extensions|\bcarrier)\.get\(\"(\w+)\"", path.read_text())
    }
    assert documented_extensions("in") == read, "handlers/asyncapi.py, docs/events.md"


def test_every_sentence_of_an_error_is_explained() -> None:
    """Each sentence has a row with its cure, or is in a list below the cure that it shares."""
    assert sentences.page() == sentences.PAGE.read_text(), "run make troubleshooting"
    assert sentences.missing() == [], "docs/troubleshooting.md needs a row for each"


@pytest.mark.parametrize("status", sorted({*openapi.MEANINGS, 500}))
def test_every_status_of_an_error_is_explained(status: int) -> None:
    assert re.search(rf"^\| {status} ", document("troubleshooting.md"), re.MULTILINE)


def exit_statuses() -> Iterator[int]:
    """The exit statuses of the command, from its docstring, and of the builder."""
    yield from map(int, re.findall(r"\b(\d+) (?:done|it went wrong|misused|interrupted|as well)", str(cli.__doc__)))
    yield vitals.STATUS
    for state in State:
        for reason in Reason:
            yield outcome.exit_status(Result(state=state, reason=reason))


@pytest.mark.parametrize("status", sorted({*exit_statuses()}))
def test_every_exit_status_is_explained(status: int) -> None:
    assert re.search(rf"^\| {status} \|", document("troubleshooting.md"), re.MULTILINE)


@pytest.mark.parametrize("command", sorted(commands.commands))
def test_every_command_is_documented(command: str) -> None:
    assert f"`kiln {command}" in document("cli.md")


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_a_page_made_from_the_code_is_up_to_date(name: str) -> None:
    assert document(name) == reference.page(name), "run `make reference`"


def metrics() -> set[str]:
    for module in ("builds.metrics", "handlers.metrics"):
        importlib.import_module(module)
    return {metric.name for metric in prometheus_client.REGISTRY.collect() if metric.name.startswith("kiln_")}


@pytest.mark.parametrize("name", sorted(metrics()))
def test_every_metric_is_documented(name: str) -> None:
    assert re.search(rf"`{name}(?:_total)?`", document("metrics.md"))


@pytest.mark.parametrize("word", DIALECTS)
def test_a_git_host_is_documented_and_may_have_secrets_in_the_chart(word: str) -> None:
    assert document(f"senders/{word}.md")
    assert f"`/webhooks/{word}`" in document("webhooks.md")
    for page in ("docs/api.md", "docs/settings.md", "chart/values.yaml", "chart/README.md"):
        assert re.search(rf"(?<![\w-]){word}(?![\w-])", (ROOT / page).read_text()), page
    schema = json.loads((ROOT / "chart/values.schema.json").read_text())
    assert word in json.dumps(schema["properties"]["webhooks"]), "chart/values.schema.json"


PAGES = [path for path in FILES if path.suffix == ".md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
