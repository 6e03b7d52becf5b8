"""A reader who follows a page of the documentation: its shell blocks are run in their order, in one bash.

A mark, the second word of a fence (```sh cluster), names what a block needs beyond this machine. `MARKS` says what
stands in for it (`tests/parts/standins.py`); everything else in the block is the real program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "chart/README.md"])
VALUES = "values.yaml"
NOT_CLONED = {".venv", ".git", ".cache"}
EMPTY: Mapping[str, object] = {"labels": {}, "secrets": {}, "releases": []}
"""A namespace."""


@dataclass(frozen=True)
class Mark:
    """A requirement of a block, the substitute for it in tests, and the programs that are replaced."""

    needs: str
    instead: str
    programs: Sequence[str]
    prelude: str = ""


MARKS: Mapping[str, Mark] = {
    "checkout": Mark(
        "changes the working copy",
        "`make` prints what it would do; the tests are run, in a folder of links",
        ("make",),
    ),
    "cluster": Mark(
        "a cluster with Kiln",
        "a list of namespaces, labels, Secrets and releases. The chart's schema checks values, its rendered objects "
        "names. `helm template` runs where helm is installed. `kiln` in a pod is Kiln's command",
        ("kubectl", "helm", "nc", "kiln"),
    ),
    "docker": Mark(
        "a Docker daemon, and minutes",
        "`make` prints what it would do; `kiln serve` runs until it is ready; arguments of `docker` are checked",
        ("docker", "make", "kiln"),
    ),
    "host": Mark(
        "GitHub's command line and a webhook there",
        "a recorded delivery; Kiln's command runs, against a Kiln in this process",
        ("gh", "kiln"),
    ),
    "internet": Mark(
        "the public internet",
        "a Git host on loopback in place of github.com, and a Kiln in this process whose builder is a script; the "
        "arguments of `pip` and `docker` are checked",
        ("pip", "docker", "kiln"),
    ),
    "podman": Mark(
        "Podman as a service",
        "nothing starts Podman; `kiln doctor` and `kiln serve` run without it",
        ("sudo", "systemctl", "kiln"),
    ),
    "profile": Mark(
        "the startup files of three shells",
        "bash takes its own completion; those of zsh and fish are looked at",
        ("kiln",),
        prelude="""
eval() { case "$1" in "#compdef kiln"*) ;; *) builtin eval "$1" && complete -p kiln ;; esac; }
source() { grep --quiet 'complete .*--command kiln'; }
""",
    ),
    "registry": Mark(
        "images that Kiln has pushed",
        "a registry on loopback with images of a few bytes; Kiln's command runs; arguments of `cosign` are checked",
        ("kiln", "cosign"),
    ),
}


@dataclass(frozen=True)
class Block:
    """A fence of the shell. `values` is the last fence of YAML before it."""

    page: str
    line: int
    mark: str
    text: str
    values: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> Iterator[Block]:
    values = None
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text()):
        language, *marks = token.info.split() or [""]
        if token.type != "fence":
            continue
        if language == "yaml":
            values = token.content
        if language in {"sh", "console", "shell", "bash"}:
            assert token.map
            assert language == "sh", f"{path}: write `sh` in place of `{language}`"
            yield Block(str(path.relative_to(ROOT)), token.map[0] + 1, " ".join(marks), token.content, values)


class Reader:
    """A reader's machine under `folder`: a home, a clone of the repository as links, and the stand-ins.

    `names` are parts of arguments of `kiln` and what stands for them; `delivery` is what GitHub keeps of a delivery.
    Kiln is in the cluster until `uninstall`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        names: Mapping[str, str] = {},
        delivery: object = None,
        **environ: str,
    ) -> None:
        self.clone, self.home, self.state = folder / "clone", folder / "home", folder / "standins"
        for place in (self.clone, self.home / ".docker", self.home / "secrets", self.state):
            place.mkdir(parents=True)
        (self.home / ".docker" / "config.json").write_text('{"auths": {}}')
        (self.state / "delivery.json").write_text(json.dumps(delivery))
        self._names = names
        kiln = {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}, "secrets": {}, "releases": ["kiln"]}
        self._write({"default": EMPTY, "kiln": kiln})
        self._base = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        self.environ = {
            "HOME": str(self.home),
            "KILN_SECRETS_DIR": str(self.home / "secrets"),
            "PASSWORD": "correct-horse",
            "PYTHONPATH": str(ROOT),
            "REAL_PATH": os.environ["PATH"],
            "STANDINS": str(self.state),
            "TOKEN": "t",
            **environ,
        }
        self._clone()

    def uninstall(self) -> None:
        """Takes Kiln and its namespace out of the cluster."""
        self._write({"default": EMPTY})

    def follow(self, given: Sequence[Block]) -> str:
        """Runs the blocks in their order, and returns their output. Raises AssertionError."""
        script = "\n".join(self._lines(given))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.clone,
            env={**self.environ, "PATH": self._base},
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        at = (self.state / "at").read_text().strip() if (self.state / "at").exists() else "nowhere"
        assert done.returncode == 0, f"{at} ended with status {done.returncode}:\n{said}"
        assert self._kept("complaints") == [], said
        return said

    @property
    def used(self) -> set[str]:
        """The stand-ins that were called."""
        return {*self._kept("used")}

    def _write(self, namespaces: Mapping[str, object]) -> None:
        (self.state / "state.json").write_text(json.dumps({"names": self._names, "namespaces": namespaces}))

    def _kept(self, name: str) -> list[str]:
        path = self.state / name
        return path.read_text().splitlines() if path.exists() else []

    def _lines(self, given: Sequence[Block]) -> Iterator[str]:
        for block in given:
            if block.values and VALUES in block.text:
                (self.clone / VALUES).write_text(block.values)
            mark = MARKS.get(block.mark)
            yield f'echo "{block}" > "$STANDINS/at"'
            yield f'PATH="{self._programs(block.mark)}{self._base}"'
            yield f"unset -f eval source\n{mark.prelude if mark else ''}\n{block.text}"

    def _programs(self, mark: str) -> str:
        """The folder with the stand-ins of a mark, as the beginning of a PATH."""
        if not mark:
            return ""
        place = self.state / mark
        if not place.exists():
            place.mkdir()
            for name in MARKS[mark].programs:
                launcher(place / name, f"{sys.executable} -m tests.parts.standins {name}")
        return f"{place}:"

    def _clone(self) -> None:
        """The repository as its clone is after `make venv`, with links in place of files."""
        for path in ROOT.iterdir():
            if path.name not in NOT_CLONED:
                (self.clone / path.name).symlink_to(path)
        programs = self.clone / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
        launcher(programs / "kiln", f"{sys.executable} -m tests.parts.standins kiln")
        launcher(programs / "python", sys.executable)


def launcher(path: Path, command: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)
