"""A build through Kiln against the bare tool: the same daemon, registry, Git host and repository, in turns."""

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
"""Of builds with an `environment.yml`, for each figure."""
SECONDS = 900.0
"""That one build may take: the first of its kind on a machine makes the base of all."""


def against_bare() -> None:
    """From a webhook to the completion event at its receiver, against bare repo2docker; each turn is a new commit."""
    with _system() as system:
        bare, ours = _pairs(system, TURNS, fresh)
        beside("webhook to event, median", median(ours), median(bare), "s", "repo2docker --push")


def with_environments() -> None:
    """The same with an `environment.yml`: its packages are installed anew (cold), or found in the cache (warm)."""
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
    """Seconds of the bare tool and of Kiln, in turns; each turn is a commit that `make` has made."""
    bare, ours = [], []
    for _ in range(turns + 1):  # the first one warms the caches
        bare.append(_bare(system, make(system)))
        ours.append(through_kiln(system, make(system)))
    return bare[1:], ours[1:]


def fresh(installation: Installation) -> str:
    """A commit of the demo's sample that has no layer of its page in any cache."""
    sources = {file: (DEMO / "sample" / file).read_bytes() for file in ("Dockerfile", "index.html")}
    sources["busybox"] = machine.program("busybox", "busybox-static").read_bytes()
    return installation.commit(REPOSITORY, {**sources, "index.html": f"<p>{time.time_ns()}\n".encode()})


def environment(installation: Installation, *, variables: str = "{}") -> str:
    """A commit with packages of conda's and pip's, and a page that no other has."""
    described = f"dependencies: [python-graphviz, pip, pip: [humanize==4.12.2]]\nvariables: {variables}\n"
    files = {"environment.yml": described, "page.md": f"{time.time_ns()}\n"}
    return installation.commit(REPOSITORY, files)


def environment_anew(installation: Installation) -> str:
    """A commit whose environment no cache has."""
    return environment(installation, variables=f'{{MADE: "{time.time_ns()}"}}')


def through_kiln(installation: Installation, commit: str) -> float:
    """Seconds from its webhook to the completion event at the sink `bench`."""
    webhook = installation.push(REPOSITORY, commit)
    began = time.perf_counter()
    answer = installation.deliver(webhook)
    name = answer.json()["builds"][0]["name"]
    installation.arrived("bench", name, "succeeded", SECONDS)
    return time.perf_counter() - began


def options(installation: Installation, commit: str) -> list[str]:
    """What bare repo2docker is given for what Kiln is asked for."""
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
