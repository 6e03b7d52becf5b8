"""A build through Kiln against the bare tool: the same daemon, registry, Git host and repository, in turns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from docs.demo.github import delivery, payload
from docs.demo.run import HERE as DEMO
from tests.bench.figures import beside, median
from tests.parts import machine
from tests.parts.githost import GitHost, commit
from tests.parts.installation import Installation, install
from tests.parts.registry import Registry
from tests.parts.sink import EventSink

TURNS = 7
REPOSITORY = "bench/sample"
CONFIG = "from repo2docker.contentproviders import Git\nc.Repo2Docker.content_providers = [Git]\n"


def against_bare() -> None:
    """Each turn is a new commit for either, so that neither finds the other's image or layers of its last step."""
    with (
        machine.daemon(),
        tempfile.TemporaryDirectory(prefix="kiln-bench-") as name,
        Registry(Path(name) / "registry") as registry,
        GitHost(Path(name) / "git") as host,
        EventSink() as sink,
    ):
        folder = Path(name)
        source = folder / "source"
        shutil.copytree(DEMO / "sample", source)
        shutil.copy(machine.program("busybox", "busybox-static"), source / "busybox")
        host.create(REPOSITORY)
        kiln = install(
            folder,
            prefix=f"{registry.host}/",
            config={
                "hosts": {f"{host.address}:{host.port}": {"kind": "github"}},
                "sinks": [{"name": "bench", "url": sink.url, "types": ["dev.kiln.build.*"]}],
            },
            env={"KILN_ALLOWED_REPOSITORIES": f"{host.base}/**"},
        )
        with kiln.running():
            ours: list[float] = []
            bare: list[float] = []
            for turn in range(TURNS + 1):  # the first one warms the caches
                for measure, seconds in ((_bare, bare), (_kiln, ours)):
                    (source / "index.html").write_text(f"<p>{turn} {measure.__name__}\n")
                    head = commit(host.bare(REPOSITORY), source)
                    seconds.append(measure(kiln, host, registry, sink, head))
            beside("push to event, median", median(ours[1:]), median(bare[1:]), "s", "repo2docker --push")


def _bare(kiln: Installation, host: GitHost, registry: Registry, _sink: EventSink, head: str) -> float:
    config = kiln.folder / "repo2docker_config_bench.py"
    config.write_text(CONFIG)
    program = str(Path(sys.executable).with_name("jupyter-repo2docker"))
    image = f"{registry.host}/bare:{head}"
    options = ["--no-run", "--push", "--user-id=1000", "--user-name=jovyan", f"--ref={head}", f"--image-name={image}"]
    empty = kiln.folder / "empty"
    empty.mkdir(exist_ok=True)
    began = time.perf_counter()
    done = subprocess.run(
        [program, f"--config={config}", *options, host.url(REPOSITORY)],
        cwd=empty,
        env={**os.environ, "DOCKER_CONFIG": str(empty)},
        check=False,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"jupyter-repo2docker failed: {done.stderr[-2000:]}")
    return seconds


def _kiln(kiln: Installation, host: GitHost, _registry: Registry, sink: EventSink, head: str) -> float:
    """From the webhook to the completion event at the receiver."""
    body = _payload(host, head)
    before = len(sink.received)
    began = time.perf_counter()
    secret = kiln.webhook_secret.read_bytes()
    answer = requests.post(f"{kiln.url}webhooks/github", body, headers=delivery(secret, "push", body), timeout=30)
    if answer.status_code != requests.codes.accepted:
        raise RuntimeError(f"the webhook was answered {answer.status_code}: {answer.text}")
    ends = ("succeeded.v1", "failed.v1", "cancelled.v1")
    received = sink.wait_for(
        lambda all_: any(event.type.endswith(ends) for one in all_[before:] for event in one.events), 120
    )
    seconds = time.perf_counter() - began
    event = next(event for one in received[before:] for event in one.events if event.type.endswith(ends))
    if not event.type.endswith(ends[0]):
        raise RuntimeError(f"the build did not succeed: {event.data}")
    return seconds


def _payload(host: GitHost, head: str) -> bytes:
    """What the Git host would send for that commit."""
    here = Path.cwd()
    os.chdir(host.bare(REPOSITORY))
    try:
        return json.dumps(payload(host.url(REPOSITORY), "0" * 40, head, "refs/heads/main")).encode()
    finally:
        os.chdir(here)
