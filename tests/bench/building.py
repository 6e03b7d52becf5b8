"""Compare a build through Kiln with the bare tool in alternation: same daemon, registry, Git host and repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from tests.bench.figures import beside
from tests.parts import machine
from tests.parts.githost import GitHost
from tests.parts.installation import Installation
from tests.parts.registry import Registry
from tests.parts.system import System
from tools.demo.run import HERE as DEMO
from tools.demo.run import forget_images

TURNS = 7
REPOSITORY = "bench/sample"
CONFIG = "from repo2docker.contentproviders import Git\nc.Repo2Docker.content_providers = [Git]\n"


PAIRS = 3
"""Builds with an `environment.yml` for each figure."""
SECONDS = 900.0
"""Time limit of one build. The first build of its kind on a machine also builds the base image."""


def against_bare() -> None:
    """Measure from a webhook to the event at its receiver, against bare repo2docker; each turn is a new commit."""
    with _system() as system:
        bare, ours = _pairs(system, TURNS, fresh)
        beside("webhook to event, median", median(ours), median(bare), "s", "repo2docker --push")


def with_environments() -> None:
    """Compare builds with an `environment.yml`, whose packages are installed (cold) or come from the cache (warm)."""
    with _system() as system:
        for what, make in (("cold", environment_anew), ("warm", environment)):
            bare, ours = _pairs(system, PAIRS, make)
            for number, (theirs, own) in enumerate(zip(bare, ours, strict=True), 1):
                beside(f"{what}, pair {number}", own, theirs, "s", "repo2docker --push")
            beside(f"environment.yml, {what}, median", median(ours), median(bare), "s", "repo2docker --push")


@contextmanager
def _system() -> Iterator[System]:
    with (
        machine.daemon(),
        ExitStack() as parts,
        tempfile.TemporaryDirectory(prefix="kiln-bench-") as name,
        Registry(Path(name) / "registry") as registry,
        GitHost(Path(name) / "git") as host,
        System(Path(name), registry=registry, host=host, sinks=["bench"]) as system,
    ):
        system.start("web")
        system.start("controller")
        parts.callback(forget_images, registry.host)
        yield system


def _pairs(system: System, turns: int, make: Callable[[Installation], str]) -> tuple[list[float], list[float]]:
    """Return the seconds of the bare tool and of Kiln, in alternation; `make` creates a commit for each turn."""
    bare, ours = [], []
    for _ in range(turns + 1):  # the first turn warms the caches
        bare.append(_bare(system, make(system)))
        ours.append(through_kiln(system, make(system)))
    return bare[1:], ours[1:]


def fresh(installation: Installation) -> str:
    """Commit the demo's sample with a page of which no cache has a layer."""
    sources = {file: (DEMO / "sample" / file).read_bytes() for file in ("Dockerfile", "index.html")}
    sources["busybox"] = machine.program("busybox", "busybox-static").read_bytes()
    return installation.commit(REPOSITORY, {**sources, "index.html": f"<p>{time.time_ns()}\n".encode()})


def environment(installation: Installation, *, variables: str = "{}") -> str:
    """Commit packages from conda and pip, and a page with unique content."""
    described = f"dependencies: [python-graphviz, pip, pip: [humanize==4.12.2]]\nvariables: {variables}\n"
    files = {"environment.yml": described, "page.md": f"{time.time_ns()}\n"}
    return installation.commit(REPOSITORY, files)


def environment_anew(installation: Installation) -> str:
    """Commit an environment that no cache has."""
    return environment(installation, variables=f'{{MADE: "{time.time_ns()}"}}')


def through_kiln(installation: Installation, commit: str) -> float:
    """Return the seconds from the commit's webhook to the completion event at the sink `bench`."""
    webhook = installation.push(REPOSITORY, commit)
    began = time.perf_counter()
    answer = installation.deliver(webhook)
    name = answer.json()["builds"][0]["name"]
    installation.arrived("bench", name, "succeeded", SECONDS)
    return time.perf_counter() - began


def options(installation: Installation, commit: str) -> list[str]:
    """Return the options with which bare repo2docker does the same work as Kiln."""
    image = f"{installation.registry.host}/bare:{commit}"
    fixed = ["--no-run", "--push", "--user-id=1000", "--user-name=jovyan"]
    return [*fixed, f"--ref={commit}", f"--image-name={image}", installation.host.url(REPOSITORY)]


def _bare(system: System, commit: str) -> float:
    empty, config = system.folder / "empty", system.folder / "bare_config.py"
    empty.mkdir(exist_ok=True)
    config.write_text(CONFIG)
    program = str(Path(sys.executable).with_name("jupyter-repo2docker"))
    began = time.perf_counter()
    done = subprocess.run(
        [program, f"--config={config}", *options(system, commit)],
        cwd=empty,
        env={**os.environ, "DOCKER_CONFIG": str(empty)},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"jupyter-repo2docker failed: {done.stderr[-2000:]}")
    return time.perf_counter() - began
