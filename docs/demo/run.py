"""`make demo`: a Git host, a registry, a receiver of events and Kiln on loopback, then a real `git push`.

Every part is real; only the Git host is a small one, whose hook sends what GitHub would send. What it starts it also
stops, and what it writes is in a folder that goes away. `DEMO_YES=1` agrees to all that has to be installed;
`DEMO_EXIT=1` as well, and ends by itself: with status 0 only if the image can be pulled by the digest that the event
named, and the registry says the same digest.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import requests

from eventing.http import encode
from kiln.client import Server
from kiln.errors import KilnError
from kiln.progress import printable
from tests.parts import machine
from tests.parts.githost import AUTHOR, GitHost
from tests.parts.installation import Installation, install
from tests.parts.registry import Registry
from tests.parts.sink import EventSink

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXIT = os.environ.get("DEMO_EXIT") == "1"
YES = EXIT or os.environ.get("DEMO_YES") == "1"
REPOSITORY = "demo/sample"
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Said:
    """What is printed: each stage with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def stage(self, text: str) -> None:
        print(f"\n[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def detail(self, text: str) -> None:
        print(textwrap.indent(printable_lines(text), "            "), flush=True)


def printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())


@dataclass(frozen=True)
class Parts:
    """What runs."""

    registry: Registry
    host: GitHost
    sink: EventSink
    kiln: Installation


def prepare(said: Said) -> None:
    """Sees to it that Docker with buildx is here; asks before it installs anything."""
    done: list[str] = []
    while steps := machine.missing():
        sentences = [step.sentence for step in steps]
        if sentences == done:
            raise DemoError(f"this was done, and yet it is still needed: {'; '.join(done)}")
        print("Docker with buildx is needed. This would be done to this machine:")
        print("\n".join(f"  - {sentence}" for sentence in sentences))
        if not YES and not agreed():
            raise DemoError("nothing was changed. DEMO_YES=1 goes ahead without asking")
        for step in steps:
            said.stage(step.sentence)
            step.do()
        done = sentences
    if machine.may_not_use_daemon():
        again_in_group()


def agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("Go ahead? [y/N] ").strip().lower() in ("y", "yes")


def again_in_group() -> NoReturn:
    """Starts anew as a member of the group that may use the daemon: a login from before does not have it."""
    if os.environ.get("DEMO_IN_GROUP"):
        raise DemoError(f"the Docker daemon does not let us in, though we are in the group {machine.GROUP}")
    command = shlex.join([sys.executable, "-m", "docs.demo.run"])
    os.environ["DEMO_IN_GROUP"] = "1"
    os.execvp("sg", ["sg", machine.GROUP, "-c", f"exec {command}"])


@contextmanager
def parts(said: Said, folder: Path) -> Iterator[Parts]:
    """All that runs, until the end of the context."""
    with ExitStack() as running:
        registry = running.enter_context(Registry(folder / "registry"))
        running.callback(forget_images, registry.host)
        said.stage(f"A registry at {registry.host}")
        host = running.enter_context(GitHost(folder / "git"))
        said.stage(f"A Git host at {host.base}")
        sink = running.enter_context(EventSink())
        said.stage(f"A receiver of events at {sink.url}")
        kiln = install(
            folder,
            prefix=f"{registry.host}/",
            config={
                "hosts": {f"{host.address}:{host.port}": {"kind": "github"}},
                "sinks": [{"name": "demo", "url": sink.url}],
            },
            env={"KILN_ALLOWED_REPOSITORIES": f"{host.base}/**,https://**"},
        )
        running.enter_context(kiln.running())
        said.stage(f"Kiln at {kiln.url}: web and controller, from the Procfile")
        yield Parts(registry, host, sink, kiln)


def make_repository(running: Parts) -> Path:
    """A bare repository with a hook on the Git host, and a clone of it with the sample in it."""
    running.host.create(REPOSITORY)
    url, bare = running.host.url(REPOSITORY), running.host.bare(REPOSITORY)
    arguments = shlex.join([f"{running.kiln.url}webhooks/github", str(running.kiln.webhook_secret), url])
    hook = bare / "hooks/post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(
        f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -m docs.demo.github "
        f"{arguments}\n"
    )
    hook.chmod(0o755)
    clone = running.kiln.folder / "clone"
    shutil.copytree(HERE / "sample", clone)
    shutil.copy(machine.program("busybox", "busybox-static"), clone / "busybox")
    git(clone, "init", "--quiet", "--initial-branch=main")
    git(clone, "remote", "add", "origin", url)
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message=A page in an image")
    return clone


def git(folder: Path, *arguments: str) -> str:
    """Runs git as a person would, and returns what it said."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, **AUTHOR, "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DemoError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout + done.stderr


def follow(said: Said, running: Parts) -> dict[str, Any]:
    """Shows the build's states and log to its end, and returns it."""
    found = running.kiln.builds()
    if not found:
        raise DemoError("the push asked for no build: see the webhook's answer above")
    build, shown = found[0], ""
    for message in Server(running.kiln.url).follow(build["name"]):
        if message.kind == "log":
            said.detail(str(message.data["line"]))
            continue
        build = message.data
        if build["state"] != shown:
            shown = build["state"]
            said.stage(f"{build['name']} is {shown}" + (f": {build['message']}" if build["message"] else ""))
    return build


def show_event(said: Said, running: Parts, build: dict[str, Any]) -> None:
    """Waits for the completion event and prints it as it was received."""
    event = running.sink.wait_for_event(f"dev.kiln.build.{build['state']}.v1", timeout=30)
    said.stage("The completion event, as the receiver got it")
    _, body = encode(event, "structured")
    shown = json.loads(body)
    shown.get("data", {}).get("log", {}).pop("tail", None)
    said.detail(json.dumps(shown, indent=2))


def check_image(said: Said, running: Parts, build: dict[str, Any]) -> None:
    """Pulls the image by its digest, and holds the digest against the registry's own."""
    image = build["image"]
    name, registry = image["repository"], running.registry.host
    answer = requests.head(
        f"http://{registry}/v2/{name.removeprefix(registry + '/')}/manifests/{image['tag']}",
        headers={"Accept": ", ".join(MANIFESTS)},
        timeout=10,
    )
    digest = answer.headers.get("Docker-Content-Digest")
    if digest != image["digest"]:
        raise DemoError(f"the event names {image['digest']}, the registry {digest} ({answer.status_code})")
    reference = f"{name}@{digest}"
    forget_images(registry)  # the daemon that built it has it still: the pull must bring it anew
    pulled = subprocess.run(["docker", "pull", reference], check=False, capture_output=True, text=True)
    if pulled.returncode:
        raise DemoError(f"docker pull {reference}: {pulled.stderr.strip()}")
    said.stage(f"docker pull {reference}")
    said.detail(pulled.stdout.strip())


def forget_images(registry: str) -> None:
    """Takes from the daemon what was built here for that registry, and nothing else."""
    shape = "{{.Repository}} {{.Tag}} {{.Digest}}"
    command = ["docker", "image", "ls", "--digests", "--format", shape, "--filter", f"reference={registry}/*"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    for name, tag, digest in (line.split() for line in listed.splitlines()):
        reference = f"{name}@{digest}" if tag == "<none>" else f"{name}:{tag}"
        subprocess.run(["docker", "image", "rm", "--force", reference], check=False, capture_output=True)


def stay(said: Said, running: Parts, clone: Path) -> None:
    """Until Ctrl-C. Further pushes and builds are told as their events come in."""
    server = f"--server {running.kiln.url}"
    said.stage(f"The page: {running.kiln.url}   Ctrl-C ends all of it. To try next, in another terminal:")
    said.detail(f"cd {clone} && git commit --allow-empty -m again && git push origin main")
    said.detail(f"{Path(sys.executable).parent}/kiln build {server} https://github.com/binder-examples/conda")
    known = len(running.sink.events)
    while True:
        time.sleep(0.5)
        events = running.sink.events
        for event in events[known:]:
            said.stage(f"{event.type} {event.subject} {event.attribute('image') or ''}")
        known = len(events)


def demo() -> None:
    said = Said()
    with ExitStack() as started:
        prepare(said)
        said.stage("Docker with buildx")
        started.enter_context(machine.daemon())
        folder = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="kiln-demo-")))
        running = started.enter_context(parts(said, folder))
        started.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)  # from here on: clean up in peace
        clone = make_repository(running)
        said.stage(f"git push to {running.host.url(REPOSITORY)}")
        said.detail(git(clone, "push", "origin", "main"))
        build = follow(said, running)
        show_event(said, running, build)
        if build["state"] != "succeeded":
            raise DemoError(f"the build {build['state']}: {build['message']}")
        check_image(said, running, build)
        if not EXIT:
            stay(said, running, clone)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    try:
        demo()
    except (DemoError, machine.MachineError, KilnError, AssertionError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nEverything is stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
