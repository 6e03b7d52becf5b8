"""The commands in the documentation: a test runs each block, or the block is marked with a reason and checked.

A mark is the second word of a fence (```sh cluster). `tests/docker/test_tutorial.py` runs the tutorial as one script.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt

from kiln.cli import commands
from kiln.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "chart/README.md"])
MARKS = {
    "checkout": "changes the working copy",
    "cluster": "needs a cluster with Kiln",
    "docker": "needs a Docker daemon and builds for minutes",
    "host": "needs a Git host or its command line",
    "internet": "needs the public internet",
    "podman": "needs Podman as a service",
    "profile": "changes a user's shell",
    "registry": "needs images that Kiln has pushed",
}
RUN_ELSEWHERE = {"docs/tutorial.md"}
FOREIGN = {"JUPYTERHUB_SERVICE_NAME", "JUPYTERHUB_SERVICE_PREFIX", "JUPYTERHUB_API_URL", "JUPYTERHUB_API_TOKEN"}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    for path in PAGES:
        page = str(path.relative_to(ROOT))
        for token in MarkdownIt("commonmark").enable("table").parse(path.read_text()):
            language, *marks = token.info.split() or [""]
            if token.type == "fence" and language in {"sh", "console", "shell", "bash"}:
                assert token.map
                assert language == "sh", f"{page}: write `sh` in place of `{language}`"
                yield Block(page, token.map[0] + 1, " ".join(marks), token.content)


BLOCKS = [*blocks()]
HERE = [block for block in BLOCKS if not block.mark and block.page not in RUN_ELSEWHERE]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_code_names_its_language(page: Path) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    assert [token.content for token in tokens if token.type == "code_block"] == [], "write a fence with a language"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_that_no_test_runs_has_a_known_reason(block: Block) -> None:
    assert not block.mark or block.mark in MARKS


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_valid_bash(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", HERE, ids=str)
def test_a_block_without_a_mark_runs(block: Block, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {"PATH": path, "HOME": str(tmp_path), "KILN_SECRETS_DIR": str(tmp_path / "secrets"), "TOKEN": "t"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=tmp_path,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def words(block: Block) -> Iterator[list[str]]:
    """The commands of a block, as words; a command that is not the shell's own is kept by its name alone."""
    text = re.sub(r"\\\n", " ", block.text)
    for line in text.splitlines():
        for part in re.split(r"\||&&|;|\$\(", line):
            lexer = shlex.shlex(part.rstrip(')"'), posix=True, punctuation_chars="<>")
            lexer.whitespace_split = True
            try:
                yield [*lexer]
            except ValueError:  # a quote that another part closes
                continue


def invocations(block: Block) -> Iterator[list[str]]:
    for found in words(block):
        at = next((i for i, word in enumerate(found) if word == "kiln" or word.endswith("/kiln")), None)
        if at is not None and (at == 0 or found[at - 1] == "--"):
            yield found[at + 1 :]


def lacking(arguments: list[str]) -> list[str]:
    """Subcommands and options that the command line does not have."""
    command: click.Command = commands
    wrong = []
    for argument in arguments:
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
        if argument.startswith("-") and argument != "-":
            wrong += [] if argument.partition("=")[0] in options else [argument]
        elif isinstance(command, click.Group) and argument in command.commands:
            command = command.commands[argument]
        elif command is commands:
            return [*wrong, argument]
    return wrong


INVOCATIONS = [(block, arguments) for block in BLOCKS for arguments in invocations(block)]


@pytest.mark.parametrize(("block", "arguments"), INVOCATIONS, ids=[f"{a}-{' '.join(b)}" for a, b in INVOCATIONS])
def test_a_kiln_command_has_the_options_that_a_page_gives_it(block: Block, arguments: list[str]) -> None:
    assert lacking(arguments) == [], str(block)


def test_the_pages_show_the_commands_of_kiln() -> None:
    assert {arguments[0] for _, arguments in INVOCATIONS if arguments} >= {
        "build",
        "check",
        "images",
        "serve",
        "verify",
    }


@pytest.mark.parametrize(
    ("line", "wrong"),
    [("kiln biuld x", ["biuld"]), ("kiln build --psuh x", ["--psuh"]), ("x=$(kiln images prune --delte)", ["--delte"])],
)
def test_a_misspelt_command_is_found(line: str, wrong: list[str]) -> None:
    assert [lacking(found) for found in invocations(Block("page", 1, "", line))] == [wrong]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_variable_of_a_block_is_a_setting(block: Block) -> None:
    known = {setting.name for setting in SETTINGS} | FOREIGN
    named = re.findall(r"(?<![\w$])((?:KILN|JUPYTERHUB)_[A-Z_]+)=", block.text)
    assert {*named} - known == set()


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_target_of_make_exists(block: Block) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = [found[1] for found in words(block) if found[:1] == ["make"] and len(found) > 1]
    assert {*made} <= {*targets}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark == "cluster"], ids=str)
def test_an_object_of_the_chart_has_the_name_that_a_page_gives_it(block: Block) -> None:
    rendered = "".join(path.read_text() for path in (ROOT / "tests/cluster/chart/golden").glob("*.yaml"))
    objects = re.findall(r"(?:ds|deploy|deployment|svc|services\.serving\.knative\.dev)[/ ](kiln-[a-z-]+)", block.text)
    assert [name for name in objects if f"  name: {name}\n" not in rendered] == []
