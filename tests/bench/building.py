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
        sources = {file: (DEMO / "sample" / file).read_bytes() for file in ("Dockerfile", "index.html")}
        sources["busybox"] = machine.program("busybox", "busybox-static").read_bytes()
        ours: list[float] = []
        bare: list[float] = []
        parts.callback(forget_images, registry.host)
        for _ in range(TURNS + 1):  # the first one warms the caches
            bare.append(_bare(system, _commit(system, sources)))
            ours.append(_kiln(system, _commit(system, sources)))
        beside("webhook to event, median", median(ours[1:]), median(bare[1:]), "s", "repo2docker --push")


def _commit(system: System, sources: dict[str, bytes]) -> str:
    """One that has no layer of the page in any cache."""
    page = f"<p>{time.time_ns()}\n".encode()
    return system.commit(REPOSITORY, {**sources, "index.html": page})


def _bare(system: System, commit: str) -> float:
    empty, config = system.folder / "empty", system.folder / "bare_config.py"
    empty.mkdir(exist_ok=True)
    config.write_text(CONFIG)
    program = str(Path(sys.executable).with_name("jupyter-repo2docker"))
    image = f"{system.registry.host}/bare:{commit}"
    options = ["--no-run", "--push", "--user-id=1000", "--user-name=jovyan", f"--ref={commit}", f"--image-name={image}"]
    began = time.perf_counter()
    done = subprocess.run(
        [program, f"--config={config}", *options, system.host.url(REPOSITORY)],
        cwd=empty,
        env={**os.environ, "DOCKER_CONFIG": str(empty)},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"jupyter-repo2docker failed: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def _kiln(system: System, commit: str) -> float:
    webhook = system.push(REPOSITORY, commit)
    began = time.perf_counter()
    answer = system.deliver(webhook)
    name = answer.json()["builds"][0]["name"]
    system.arrived("bench", name, "succeeded", 120)
    return time.perf_counter() - began
