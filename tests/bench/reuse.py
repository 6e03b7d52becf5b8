"""Measure the reuse of layers: on a node without any, and after a failed push."""

from __future__ import annotations

import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from builds.build import Request
from builds.builder.spec import Surroundings
from tests.bench.figures import beside
from tests.parts import machine
from tests.parts.building import Builder
from tests.parts.dockerd import Dockerd
from tests.parts.githost import GitHost, commit
from tests.parts.registry import Registry

BASE = "buildpack-deps:24.04"
PATH = "bench/reuse"
FILES = {
    "environment.yml": "channels: [conda-forge]\ndependencies:\n  - pip\n  - pip:\n    - pandas\n    - matplotlib\n",
    "postBuild": "#!/bin/sh\npython -c 'import matplotlib.pyplot, pandas'\n",
}
INSTALLED = {
    "environment.yml": "dependencies: [pip, pip: [-r requirements.txt]]\n",
    "requirements.txt": "humanize==4.12.2\n",
    "setup.py": "from setuptools import setup\n\nsetup(name='ours', version='1', py_modules=['ours'])\n",
    "ours.py": "answer = 42\n",
    "postBuild": "#!/bin/sh\nset -e\npip install --no-deps --no-build-isolation .\ndate +%N >made\n",
}
"""An environment that is installed after the repository is copied, so each commit, and only a commit, rebuilds it."""
STEP = re.compile(r"^#\d+ \[\S*\s*\d+/\d+\] (?:RUN|COPY|WORKDIR) ", re.MULTILINE)
CACHED = re.compile(r"^#\d+ CACHED$", re.MULTILINE)
TURNS = 3
ALLOWED = 5.0
"""Seconds that a retry may take in addition to its push."""


def on_other_nodes() -> None:
    """Change one line of a notebook and build it on the node of the last commit and on a node without layers."""
    with (
        machine.daemon(),
        tempfile.TemporaryDirectory(prefix="kiln-bench-") as name,
        Registry(Path(name) / "registry") as registry,
        GitHost(Path(name) / "git") as host,
    ):
        _mirror(registry)
        bench = _Bench(Path(name), registry, host)
        with closing(bench.node("warm")) as warm:
            first = bench.build(warm, bench.commit())
            changed = bench.build(warm, bench.commit())
        with closing(bench.node("without")) as without:
            alone = bench.build(without, bench.commit())
        with closing(bench.node("with")) as cold:
            reusing = bench.build(cold, bench.commit(), first.reference)
        with closing(bench.node("pull")) as bare:
            pulled = _pulled(bare, first.reference)
        beside("cold node, with its images", reusing.seconds, changed.seconds, "s", "the node that built it")
        beside("cold node, without", alone.seconds, changed.seconds, "s", "the node that built it")
        beside("cold node, with its images", reusing.seconds, alone.seconds, "s", "cold node, without")
        beside("cold node, with its images", reusing.seconds, pulled, "s", "docker pull of that image")


def _pulled(node: Dockerd, image: str) -> float:
    """Return the seconds in which the daemon downloads and unpacks an image: the least for a build with its layers."""
    began = time.perf_counter()
    subprocess.run(["docker", "--host", node.host, "pull", "--quiet", image], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def after_a_failed_push() -> None:
    """Retry a build whose push failed, and measure that no step runs again."""
    with (
        machine.daemon(),
        tempfile.TemporaryDirectory(prefix="kiln-bench-") as name,
        Registry(Path(name) / "registry") as registry,
        GitHost(Path(name) / "git") as host,
    ):
        bench = _Bench(Path(name), registry, host, INSTALLED)
        for turn in range(1, TURNS + 1):
            request = bench.commit()
            failed = bench.builder.start(request)
            failed.until(r"\] RUN \./postBuild", 600)
            registry.stop()
            if "could not be pushed" not in (failed.wait(600).message or ""):
                raise RuntimeError(f"the push did not fail: {failed.text[-2000:]}")
            registry.start()
            retried = bench.build(None, request)
            beside(f"turn {turn}: retry without push", retried.seconds - retried.pushed, ALLOWED, "s", "allowed")
            print(f"    {retried.ran} steps ran; {retried.seconds:.2f} s with a push of {retried.pushed:.2f} s")


def _mirror(registry: Registry) -> None:
    """Copy the base image into the registry, from which nodes pull it as from Docker Hub."""
    here = f"{registry.host}/library/{BASE}"
    for command in (["tag", BASE, here], ["push", "--quiet", here], ["image", "rm", here]):
        subprocess.run(["docker", *command], check=True, stdout=subprocess.DEVNULL)


class _Built:
    """An ended build with the number of steps that ran; `seconds` include the seconds of the push (`pushed`)."""

    def __init__(self, seconds: float, reference: str, pushed: float, ran: int) -> None:
        self.seconds, self.reference, self.pushed, self.ran = seconds, reference, pushed, ran


class _Bench:
    def __init__(self, folder: Path, registry: Registry, host: GitHost, files: Mapping[str, str] = FILES) -> None:
        self.folder, self.registry, self.host = folder, registry, host
        self.content = folder / "content"
        self.content.mkdir()
        for name, text in {**files, "unique": secrets.token_hex(8)}.items():
            (self.content / name).write_text(text)
        (self.content / "postBuild").chmod(0o755)
        (folder / "attempts").mkdir()
        self.builder = Builder(folder / "attempts", Surroundings(allowed_repositories=(f"{host.base}/**",)))
        host.create(PATH)

    def node(self, name: str) -> Dockerd:
        """Start an empty daemon that uses the registry as its mirror of Docker Hub."""
        made = Dockerd(self.folder / name, mirror=f"http://{self.registry.host}")
        made.start()
        return made

    def commit(self) -> Request:
        (self.content / "notebook.ipynb").write_text(f'{{"cells": [], "changed": {time.time_ns()}}}\n')
        head = commit(self.host.bare(PATH), self.content)
        image, url = f"{self.registry.host}/{PATH}", self.host.url(PATH)
        return Request(repository=url.removesuffix(".git"), clone_url=url, commit=head, image=image)

    def build(self, node: Dockerd | None, request: Request, *images: str) -> _Built:
        """Build on `node`, or on this machine's daemon without one. Raises RuntimeError."""
        began = time.perf_counter()
        attempt = self.builder.start(request, cache_from=images, docker_host=node.host if node else None)
        result = attempt.wait(1800)
        if result.image is None:
            raise RuntimeError(f"the build failed: {result.message}\n{attempt.text[-2000:]}")
        seconds, reference = time.perf_counter() - began, f"{request.image}@{result.image.digest}"
        ran = len(STEP.findall(attempt.text)) - len(CACHED.findall(attempt.text))
        return _Built(seconds, reference, result.timings.push or 0.0, ran)
