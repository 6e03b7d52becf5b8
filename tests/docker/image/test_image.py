"""The image: its user, its content, the files that it must not have, and its size."""

from __future__ import annotations

import re
import subprocess
import tarfile
import tomllib

import pytest

from tests.parts import image as made
from tests.parts import machine

MOST = 275_000_000
"""Bytes on top of the base; docs/image.md lists them."""

KEPT_OUT = [
    r"(^|/)tests?/(docker|cluster|parts)/",
    r"(^|/)\.git(/|config$|-credentials$)",
    r"(^|/)\.docker/",
    r"(^|/)(\.netrc|\.pypirc|pip\.conf)$",
    r"(^|/)\.cache/.",
    r"^var/lib/apt/lists/.",
    r"^var/cache/apt/.",
    r"^opt/kiln/lib/.*/site-packages/(pip|setuptools|hatchling|pytest|hypothesis)/",
    r"^(source|requirements|root)/.",
]
"""Caches, credentials, tests, and tools that only build."""

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture(scope="module")
def image() -> str:
    return made.build()


@pytest.fixture(scope="module")
def files(image: str) -> list[str]:
    """The paths in all layers on top of the base."""
    names = []
    for layer in made.layers(image):
        with tarfile.open(fileobj=layer) as tar:
            names += tar.getnames()
    return names


def run(image: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as the chart does: only /tmp can be written, and nothing is permitted."""
    options = ["--rm", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    whole = ["docker", "run", *options, image, *command]
    return subprocess.run(whole, check=False, capture_output=True, text=True, timeout=60)


def said(image: str, *command: str) -> str:
    done = run(image, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_as_nobody_in_particular(image: str) -> None:
    assert said(image, "id") == "uid=1000(kiln) gid=1000(kiln) groups=1000(kiln)\n"
    assert made.inspect(image)["Config"]["User"] == "1000:1000"
    assert said(image, "sh", "-c", "echo $HOME") == "/tmp\n"
    its_own = ["-user", "1000", "-o", "-group", "1000", "-o", "-perm", "-o+w"]
    assert said(image, "find", "/opt", "/usr", "!", "-type", "l", "(", *its_own, ")") == ""


def test_its_labels(image: str) -> None:
    labels = made.inspect(image)["Config"]["Labels"]
    project = tomllib.loads((machine.ROOT / "pyproject.toml").read_text())["project"]
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == "Kiln"
    assert labels[f"{prefix}version"] == project["version"]
    assert labels[f"{prefix}licenses"] == project["license"]
    assert labels[f"{prefix}source"].startswith("https://")
    assert labels[f"{prefix}revision"]


@pytest.mark.parametrize(
    ("command", "least"),
    [
        ("git --version", (2, 38)),
        ("docker --version", (26,)),
        ("docker buildx version", (0, 13)),
        ("python -V", (3, 13)),
    ],
)
def test_the_tools_are_there(image: str, command: str, least: tuple[int, ...]) -> None:
    found = re.search(r"\d+(\.\d+)+", said(image, *command.split()))
    assert found
    assert tuple(int(part) for part in found[0].split(".")) >= least


def test_git_does_what_the_builder_asks_of_it_without_perl(image: str) -> None:
    """Fetching with submodules is a shell script of git's, so it is the furthest from its core."""
    script = """
        set -e
        cd /tmp
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@a
        for name in part whole; do git init -q $name; done
        git -C part commit -q --allow-empty -m part
        git -C whole -c protocol.file.allow=always submodule --quiet add /tmp/part
        git -C whole commit -q -m whole
        git -c protocol.file.allow=always clone -q --recurse-submodules /tmp/whole copy
        git -C copy submodule status
        ls /usr/lib/git-core/git-remote-https
    """
    submodule, helper = said(image, "sh", "-c", script).splitlines()
    assert submodule.split()[1:] == ["part", "(heads/master)"]
    assert helper.endswith("git-remote-https")


def test_each_command_starts(image: str) -> None:
    assert "controller" in said(image, "kiln", "--help")
    assert said(image, "jupyter-repo2docker", "--version")
    checked = run(image, "env", "KILN_IMAGE_PREFIX=registry.example/", "kiln", "check")
    assert checked.returncode in (0, 1), checked.stderr
    assert "Traceback" not in checked.stderr
    unset = run(image, "kiln", "check")
    assert (unset.returncode, "KILN_IMAGE_PREFIX" in unset.stdout + unset.stderr) == (1, True)
    builder = run(image, "python", "-m", "builds.builder")
    assert "usage: python -m builds.builder" in builder.stderr


def test_what_web_and_controller_import_is_there_and_compiled(image: str) -> None:
    """No removed part of the packages is missing at run time, and no start has to compile anything."""
    script = """
        import importlib, pkgutil, sys
        import builds, eventing, handlers, kiln, kubernetes.config, kubernetes.client.rest
        for package in (builds, eventing, handlers, kiln):
            for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                if not found.name.endswith("__main__"):
                    importlib.import_module(found.name)
        from pathlib import Path
        files = {name: getattr(module, "__cached__", None) for name, module in sys.modules.items()}
        print(*[name for name, path in files.items() if path and not Path(path).exists()])
    """
    lines = [line.removeprefix(" " * 8) for line in script.splitlines()]
    assert said(image, "python", "-W", "error", "-c", "\n".join(lines)).strip() in ("", "__main__")


def test_nothing_is_in_it_that_is_not_needed(files: list[str]) -> None:
    assert "opt/kiln/bin/kiln" in files
    pattern = re.compile("|".join(KEPT_OUT))
    assert [name for name in files if pattern.search(name)] == []


def test_how_it_was_made_tells_no_secret(image: str) -> None:
    history = ["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", image]
    told = subprocess.run(history, check=True, capture_output=True, text=True).stdout
    config = str(made.inspect(image)["Config"])
    for text in (told, config):
        assert not re.search(r"://[^/\s]*@|(?i:password|secret|token)\s*=", text)


def test_its_size(image: str) -> None:
    own = made.inspect(image)["Size"] - made.inspect(made.BASE)["Size"]
    assert own < MOST
