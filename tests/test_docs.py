"""The shell blocks of the documentation are run, page by page, with what stands in for clusters and public hosts.

`tests/parts/reader.py` has the marks of blocks and what stands in for each.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import jsonschema
import pytest
import yaml
from markdown_it import MarkdownIt
from werkzeug.serving import make_server

from builds.build import State
from kiln.cli import commands
from kiln.config import parse
from kiln.settings import SETTINGS
from tests.cluster.chart.helm import LEAST, merged
from tests.handlers.harness import SECRET, Harness, create_harness, push, signed
from tests.parts.githost import GitHost
from tests.parts.reader import MARKS, PAGES, ROOT, Block, Reader, blocks

ELSEWHERE = {
    "docs/provenance.md": "tests/docker/test_pages.py",
    "docs/retention.md": "tests/docker/test_pages.py",
    "docs/tutorial.md": "tests/docker/test_tutorial.py",
}
"""Pages that need a registry or a Git host of another program, and the tests that run them."""
FOREIGN = {"JUPYTERHUB_SERVICE_NAME", "JUPYTERHUB_SERVICE_PREFIX", "JUPYTERHUB_API_URL", "JUPYTERHUB_API_TOKEN"}
BY_PAGE = {page: found for path in PAGES if (found := [*blocks(path)]) for page in [found[0].page]}
BLOCKS = [block for found in BY_PAGE.values() for block in found]
HERE = [page for page in BY_PAGE if page not in ELSEWHERE]
SHOWN = {
    "docs/cli.md": ["by the trigger default", "-F _kiln_completion kiln"],
    "docs/kubernetes.md": ["github.com is reachable", "169.254.169.254 is not reachable"],
}
"""Words that the output of a page must have."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_code_names_its_language(page: Path) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    assert [token.content for token in tokens if token.type == "code_block"] == [], "write a fence with a language"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_mark_is_known(block: Block) -> None:
    assert not block.mark or block.mark in MARKS


def test_no_mark_is_left_over() -> None:
    assert {*MARKS} == {block.mark for block in BLOCKS if block.mark}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_valid_bash(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_variable_of_a_block_is_a_setting(block: Block) -> None:
    known = {setting.name for setting in SETTINGS} | FOREIGN
    named = re.findall(r"(?<![\w$])((?:KILN|JUPYTERHUB)_[A-Z_]+)=", block.text)
    assert {*named} - known == set()


@pytest.mark.parametrize(("page", "tests"), ELSEWHERE.items(), ids=ELSEWHERE)
def test_a_page_that_is_not_run_here_is_run_by_other_tests(page: str, tests: str) -> None:
    assert Path(page).name in (ROOT / tests).read_text()


# Names in the text ---------------------------------------------------------------------------------------------------

INLINE = [
    (f"{path.relative_to(ROOT)}:{(token.map or [0])[0] + 1}", part.content)
    for path in PAGES
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text())
    for part in token.children or []
    if part.type == "code_inline"
]
"""The code in sentences and tables, and its places."""
SPELT = [(place, code) for place, code in INLINE if re.match(r"(?:\.venv/bin/)?kiln [a-z-]", code)]


def lacking(words: list[str]) -> list[str]:
    """Subcommands and options that the command line does not have."""
    command: click.Command = commands
    wrong = []
    for word in words:
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
        if word.startswith("-") and word != "-":
            wrong += [] if word.partition("=")[0] in options else [word]
        elif isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
        elif command is commands:
            return [*wrong, word]
    return wrong


@pytest.mark.parametrize(("place", "code"), SPELT, ids=[f"{place}-{code}" for place, code in SPELT])
def test_a_kiln_command_in_the_text_exists_with_its_options(place: str, code: str) -> None:
    assert lacking(code.split()[1:]) == [], place


@pytest.mark.parametrize(("code", "wrong"), [("kiln biuld x", ["biuld"]), ("kiln build --psuh x", ["--psuh"])])
def test_a_misspelt_command_is_found(code: str, wrong: list[str]) -> None:
    assert lacking(code.split()[1:]) == wrong


def test_targets_of_make_in_the_text_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = {code.split()[1]: place for place, code in INLINE if re.match(r"make [a-z-]+\b", code)}
    assert {name: place for name, place in made.items() if name not in targets} == {}


def test_files_in_the_text_exist() -> None:
    """A module may be named without its ending."""
    folders = "builds|chart|docs|eventing|handlers|integrations|kiln|tests|tools"
    named = {code: place for place, code in INLINE if re.fullmatch(rf"(?:{folders})/[\w/.-]+", code)}
    absent = {
        name: place
        for name, place in named.items()
        if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()
    }
    assert absent == {}


def test_values_of_the_chart_in_the_text_exist() -> None:
    known = {*paths(CHART_VALUES)} | {f"settings.{one.name.removeprefix('KILN_').lower()}" for one in SETTINGS}
    tops = {*CHART_VALUES} - {"config", "image"}  # free, and a field of a build
    named = {
        code: place for place, code in INLINE if re.fullmatch(r"\w+(?:\.\w+)+", code) and code.split(".")[0] in tops
    }
    assert {name: place for name, place in named.items() if name not in known} == {}


def paths(values: object, above: str = "") -> Iterator[str]:
    for name, value in values.items() if isinstance(values, dict) else ():
        yield f"{above}{name}"
        yield from paths(value, f"{above}{name}.")


YAML = [
    (f"{path.relative_to(ROOT)}:{(token.map or [0])[0] + 1}", token.content)
    for path in PAGES
    for token in MarkdownIt("commonmark").parse(path.read_text())
    if token.type == "fence" and token.info == "yaml"
]
FOREIGN_YAML = {"hub", "singleuser", "kiln", "campus", "apiVersion"}
"""First keys of values of other charts, of the file of profiles, and of objects of Kubernetes."""
CHART_VALUES = yaml.safe_load((ROOT / "chart/values.yaml").read_text())
SCHEMA = json.loads((ROOT / "chart/values.schema.json").read_text())


@pytest.mark.parametrize(("place", "text"), YAML, ids=[place for place, _ in YAML])
def test_a_block_of_yaml_is_accepted(place: str, text: str) -> None:
    """By the chart's schema if it holds values of the chart, otherwise as Kiln's YAML file."""
    given = yaml.safe_load(text)
    if {*given} <= {*CHART_VALUES}:
        jsonschema.validate(merged(CHART_VALUES, LEAST, given), SCHEMA)
        parse(yaml.safe_dump(given.get("config", {})).encode())
    elif next(iter(given)) not in FOREIGN_YAML:
        parse(text.encode())


# A Kiln on loopback ---------------------------------------------------------------------------------------------------


class Controlled:
    """A web on loopback, and a controller whose builder logs a line and succeeds. A context that ends both."""

    def __init__(self, harness: Harness) -> None:
        self.harness, self._ended = harness, threading.Event()
        self._server = make_server("127.0.0.1", 0, harness.app, threaded=True)
        self.port = self._server.server_port
        self._threads = [threading.Thread(target=run) for run in (self._server.serve_forever, self._control)]

    def _control(self) -> None:
        while not self._ended.wait(0.05):
            for build in self.harness.builds():
                if build.state is State.QUEUED:
                    self.harness.run(build.name)
                    self.harness.say(build.name, "Step 1/1 : FROM scratch")
                    self.harness.end(build.name)

    def __enter__(self) -> Controlled:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self._server.server_close()
        self.harness.close()


@pytest.fixture(scope="module")
def github(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    """A Git host in place of github.com, with the repository that pages build."""
    with GitHost(tmp_path_factory.mktemp("github")) as host:
        content = tmp_path_factory.mktemp("conda")
        (content / "environment.yml").write_text("dependencies: [python]\n")
        host.create("binder-examples/conda", content)
        yield host


@pytest.fixture(scope="module")
def controlled(github: GitHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    harness = create_harness(tmp_path_factory.mktemp("harness"), allowed=[f"{github.base}/**", "https://github.com/**"])
    with Controlled(harness) as running:
        yield running


@pytest.fixture
def reader(github: GitHost, controlled: Controlled, tmp_path: Path) -> Reader:
    """A reader who knows that Kiln: its address, a webhook's secret, a saved payload and GitHub's record of it."""
    delivery = {"request": {"headers": signed(push())["headers"], "payload": push()}}
    reader = Reader(
        tmp_path,
        names={"https://github.com/": f"{github.base}/"},
        delivery=delivery,
        KILN_SERVER=f"http://127.0.0.1:{controlled.port}/",
        KILN_IMAGE_PREFIX="registry.invalid/org/",
        PORT=str(controlled.port),
    )
    secrets = reader.home / "secrets" / "webhooks" / "github"
    secrets.mkdir(parents=True)
    (secrets / "main").write_bytes(SECRET)
    (reader.clone / "push.json").write_bytes(signed(push())["data"])
    return reader


# The pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", HERE)
def test_the_blocks_of_a_page_run(page: str, reader: Reader) -> None:
    if page == "README.md":
        del reader.environ["KILN_IMAGE_PREFIX"]
    if page in ("docs/kubernetes.md", "chart/README.md"):
        reader.uninstall()
    if page == "chart/README.md":  # it sends its readers there for the namespace and the Secrets
        reader.follow(BY_PAGE["docs/kubernetes.md"][:2])
    said = reader.follow(BY_PAGE[page])
    assert [words for words in SHOWN.get(page, []) if words not in said] == [], said
    for mark in {block.mark for block in BY_PAGE[page] if block.mark}:
        assert reader.used & {*MARKS[mark].programs}, f"nothing in {page} needs the mark {mark}"


VALUES = "settings: {image_prefix: registry.example/org/, auth: token}"
INSTALL = "helm install kiln chart --namespace kiln --values values.yaml"
UPGRADE = "helm upgrade kiln chart -n kiln -f"
ENFORCE = "kubectl label namespace kiln pod-security.kubernetes.io/enforce"
EXEC = "kubectl -n kiln exec"


@pytest.mark.parametrize(
    ("mark", "text", "complaint"),
    [
        ("checkout", "make lnit", "No rule to make target"),
        ("checkout", "make image IMGE=x", "no variable IMGE"),
        ("cluster", "helm install kiln chart --namspace kiln --values values.yaml", "--namspace"),
        ("cluster", f"{ENFORCE}=baseline && {UPGRADE} values.yaml", "does not admit privileged pods"),
        ("cluster", f"helm uninstall -n kiln kiln; {INSTALL}x", "values.yamlx"),
        ("cluster", INSTALL, "is installed already"),
        ("cluster", f"{UPGRADE} wrong.yaml", "alowed_repositories"),
        ("cluster", f"{UPGRADE} absent.yaml", "Secrets that do not exist: nowhere"),
        ("cluster", "kubectl -n kilm get services.serving.knative.dev", "no namespace kilm"),
        ("cluster", "kubectl -n kiln get service.serving.knative.dev", "makes no service.serving.knative.dev"),
        ("cluster", "kubectl -n kiln get services.serving.knative.dev kiln-wbe", "kiln-wbe"),
        ("cluster", f"{ENFORCE}=privleged", "the levels are"),
        ("cluster", "kubectl -n kiln create secret generic t --from-literal=abc", "write key=value"),
        ("cluster", "kubectl -n kiln create secret docker-registry t --docker-server=r", "--docker-username"),
        ("cluster", "kubectl exec deploy/kiln-controller -- true", "nothing is installed in default"),
        ("cluster", f"{EXEC} ds/kiln-docker -- true || true", "makes no ds/kiln-docker"),
        ("cluster", f"{EXEC} ds/kiln-dockerd -c docker -- true", "no container docker"),
        ("docker", "docker buildx build --build-arg PYTHON=3.13 .", "no ARG PYTHON"),
        ("docker", "docker buildx imagetols inspect x", "imagetols"),
        ("host", "gh api repos/our-org/hooks/1/deliveries/2", "no endpoint"),
        ("host", "kiln check --evnt -", "--evnt"),
        ("host", "kiln send push.json --host github --to http://127.0.0.1:9/", "ended with status 1"),
        ("internet", "pip install kiln", "not Kiln's name"),
        ("internet", "pip install 'kiln-images[otle]'", "no extra otle"),
        ("internet", "image=$(kiln build https://github.com/binder-examples/cnda) || true", "ended with status 1"),
        ("podman", "sudo systemctl enable --now podman.scoket", "podman.scoket"),
        ("registry", "cosign verify-attestation --type slsa --key README.md x", "invalid choice: 'slsa'"),
        ("registry", "cosign verify-attestation --key README.md x", "no public key"),
    ],
)
def test_what_is_wrong_in_a_block_is_found(mark: str, text: str, complaint: str, reader: Reader) -> None:
    (reader.clone / "wrong.yaml").write_text(VALUES.replace("}", ", alowed_repositories: []}"))
    (reader.clone / "absent.yaml").write_text(f"{VALUES}\napiTokens: {{existingSecret: nowhere}}")
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        reader.follow([Block("page", 1, mark, text, VALUES)])


def test_a_program_of_another_mark_is_not_there(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="page:2 ended with status 127"):
        reader.follow([Block("page", 1, "cluster", "kubectl -n kiln get deployments.apps"), Block("page", 2, "", "gh")])
