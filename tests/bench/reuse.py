"""What a node pays for layers that it does not have: with those of earlier images from the registry, and without."""

from __future__ import annotations

import subprocess
import tempfile
import time
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


def on_other_nodes() -> None:
    """One line of a notebook changed: on the node that built the last commit, and on one that has nothing."""
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
        beside("cold node, with its images", reusing.seconds, changed.seconds, "s", "the node that built it")
        beside("cold node, without", alone.seconds, changed.seconds, "s", "the node that built it")
        beside("cold node, with its images", reusing.seconds, alone.seconds, "s", "cold node, without")


def _mirror(registry: Registry) -> None:
    """The base image, as nodes have it from Docker Hub."""
    here = f"{registry.host}/library/{BASE}"
    for command in (["tag", BASE, here], ["push", "--quiet", here], ["image", "rm", here]):
        subprocess.run(["docker", *command], check=True, stdout=subprocess.DEVNULL)


class _Built:
    def __init__(self, seconds: float, reference: str) -> None:
        self.seconds, self.reference = seconds, reference


class _Bench:
    def __init__(self, folder: Path, registry: Registry, host: GitHost) -> None:
        self.folder, self.registry, self.host = folder, registry, host
        self.content = folder / "content"
        self.content.mkdir()
        for name, text in FILES.items():
            (self.content / name).write_text(text)
        (self.content / "postBuild").chmod(0o755)
        (folder / "attempts").mkdir()
        self.builder = Builder(folder / "attempts", Surroundings(allowed_repositories=(f"{host.base}/**",)))
        host.create(PATH)

    def node(self, name: str) -> Dockerd:
        """A daemon that has nothing, and for which the registry is Docker Hub."""
        made = Dockerd(self.folder / name, mirror=f"http://{self.registry.host}")
        made.start()
        return made

    def commit(self) -> Request:
        (self.content / "notebook.ipynb").write_text(f'{{"cells": [], "changed": {time.time_ns()}}}\n')
        head = commit(self.host.bare(PATH), self.content)
        image, url = f"{self.registry.host}/{PATH}", self.host.url(PATH)
        return Request(repository=url.removesuffix(".git"), clone_url=url, commit=head, image=image)

    def build(self, node: Dockerd, request: Request, *images: str) -> _Built:
        """From the builder's start to its end, the push included."""
        began = time.perf_counter()
        attempt = self.builder.start(request, cache_from=images, docker_host=node.host)
        result = attempt.wait(1800)
        if result.image is None:
            raise RuntimeError(f"the build failed: {result.message}\n{attempt.text[-2000:]}")
        return _Built(time.perf_counter() - began, f"{request.image}@{result.image.digest}")
