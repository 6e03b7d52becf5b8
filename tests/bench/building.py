"""A build through Kiln against the bare tool: the same daemon, registry, Git host and repository, in turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from docs.demo.run import HERE as DEMO
from docs.demo.run import forget_images
from tests.bench.figures import beside
from tests.parts import machine
from tests.parts.githost import GitHost
from tests.parts.installation import Installation
from tests.parts.registry import Registry
from tests.parts.system import System

TURNS = 7
REPOSITORY = "bench/sample"
CONFIG = "from repo2docker.contentproviders import Git\nc.Repo2Docker.content_providers = [Git]\n"


def against_bare() -> None:
    """From a webhook to the completion event at its receiver, against bare repo2docker; each turn is a new commit."""
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
        ours: list[float] = []
        bare: list[float] = []
        parts.callback(forget_images, registry.host)
        for _ in range(TURNS + 1):  # the first one warms the caches
            bare.append(_bare(system, fresh(system)))
            ours.append(through_kiln(system, fresh(system)))
        beside("webhook to event, median", median(ours[1:]), median(bare[1:]), "s", "repo2docker --push")


def fresh(installation: Installation) -> str:
    """A commit of the demo's sample that has no layer of its page in any cache."""
    sources = {file: (DEMO / "sample" / file).read_bytes() for file in ("Dockerfile", "index.html")}
    sources["busybox"] = machine.program("busybox", "busybox-static").read_bytes()
    return installation.commit(REPOSITORY, {**sources, "index.html": f"<p>{time.time_ns()}\n".encode()})


def through_kiln(installation: Installation, commit: str) -> float:
    """Seconds from its webhook to the completion event at the sink `bench`."""
    webhook = installation.push(REPOSITORY, commit)
    began = time.perf_counter()
    answer = installation.deliver(webhook)
    name = answer.json()["builds"][0]["name"]
    installation.arrived("bench", name, "succeeded", 120)
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
