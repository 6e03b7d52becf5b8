"""`make demo`: a Git host, a registry, a receiver of events and Kiln on loopback, then a real `git push`.

Every part is real; only the Git host is a small one, whose hook sends the webhooks of GitHub. If the daemon has the
base image of repo2docker, the pushed repository is a notebook with a `requirements.txt`, otherwise a Dockerfile without
a base. The demo stops all that it started, and removes its folder. Only the layers in the registry (`.cache/demo`)
stay, so that the next run is quick.

`DEMO_YES=1` agrees to all installations. `DEMO_EXIT=1` does too, and ends the demo after the build. The status is 0
only if the image can be pulled by the digest in the event, and the registry has the same digest.
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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import requests

from eventing.http import encode
from kiln.client import Server
from kiln.errors import KilnError
from kiln.progress import printable
from tests.parts import machine
from tests.parts.githost import AUTHOR, GitHost
from tests.parts.kiln import Process, get, until
from tests.parts.registry import Registry, free_port
from tests.parts.system import System

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXIT = os.environ.get("DEMO_EXIT") == "1"
YES = EXIT or os.environ.get("DEMO_YES") == "1"
REPOSITORY = "demo/sample"
IMAGE = "demo/image"
"""The image's name in the registry. Kiln's own choice contains the Git host's port, which differs in each run, so no
run would find the layers of the last one."""
BASE = "buildpack-deps:24.04"
"""The base of repo2docker's images. If the daemon has it, the demo also builds a repository without a Dockerfile."""


class DemoError(Exception):
    """The demo cannot continue. The message gives the reason."""


class Said:
    """Prints each stage with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def stage(self, text: str) -> None:
        print(f"\n[{time.monotonic() - self._began:6.1f} s] {text}", flush=True)

    def detail(self, text: str) -> None:
        print(textwrap.indent(printable_lines(text), "            "), flush=True)


def printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines())


def prepare(said: Said) -> None:
    """Provide Docker with buildx. Asks before it installs anything."""
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
    """Starts this program again in the group that may use the daemon: an earlier login is not in the group."""
    if os.environ.get("DEMO_IN_GROUP"):
        raise DemoError(f"the Docker daemon refuses access, though this user is in the group {machine.GROUP}")
    command = shlex.join([sys.executable, "-m", "tools.demo.run"])
    os.environ["DEMO_IN_GROUP"] = "1"
    os.execvp("sg", ["sg", machine.GROUP, "-c", f"exec {command}"])


@contextmanager
def parts(said: Said, folder: Path) -> Iterator[System]:
    """Runs all parts until the end of the context."""
    with ExitStack() as running:
        registry = running.enter_context(Registry(machine.CACHE / "demo/registry"))
        running.callback(forget_images, registry.host)
        said.stage(f"A registry at {registry.host}")
        host = running.enter_context(GitHost(folder / "git"))
        said.stage(f"A Git host at {host.base}")
        prefix = f"{registry.host}/"
        config = {"triggers": [{"name": "demo", "push": {}, "build": {"image": f"{prefix}{IMAGE}"}}]}
        system = System(folder, registry=registry, host=host, sinks=["demo"], config=config, KILN_IMAGE_PREFIX=prefix)
        running.enter_context(system)
        said.stage(f"A receiver of events at {system.sinks['demo'].url}")
        serve(system)
        said.stage(f"Kiln at {system.url}: web and controller")
        yield system


def serve(system: System) -> None:
    """Starts `kiln serve`. Returns when web answers."""
    (system.folder / "docker.json").write_text("{}")
    port, log = free_port(), system.folder / "kiln.log"
    strangers = ("KILN_", "K_", "JUPYTERHUB_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(strangers)} | system.settings
    env |= {
        "PATH": f"{Path(sys.executable).parent}:{env.get('PATH', os.defpath)}",
        "KILN_OPS_PORT": "0",
        "KILN_REGISTRY_CONFIG": str(system.folder / "docker.json"),
    }
    command = [sys.executable, "-m", "kiln", "serve", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=system.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches only the demo, which stops its parts in order
        )
    web = Process(process, log, f"http://127.0.0.1:{port}/", "")
    system.processes.append(web)
    system.web.append(web)
    until(lambda: process.poll() is not None or get(f"{system.url}versions")[0] == requests.codes.ok)
    if process.poll() is not None:
        raise DemoError(f"Kiln does not start:\n{log.read_text(errors='replace')[-4000:]}")


def chosen() -> str:
    """Returns the folder to build: one with a `requirements.txt`, or one without a base image."""
    there = subprocess.run(["docker", "image", "inspect", BASE], check=False, capture_output=True).returncode == 0
    return "notebook" if there else "sample"


def make_repository(system: System) -> Path:
    """Creates a bare repository with a hook on the Git host. Returns a clone with one commit."""
    system.host.create(REPOSITORY)
    url, bare = system.host.url(REPOSITORY), system.host.bare(REPOSITORY)
    arguments = shlex.join([f"{system.url}webhooks/github", str(system.secrets / "webhooks/github/main"), url])
    hook = bare / "hooks/post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(
        f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -m tools.demo.github "
        f"{arguments}\n"
    )
    hook.chmod(0o755)
    clone = system.folder / "clone"
    shutil.copytree(HERE / (kind := chosen()), clone)
    if kind == "sample":
        shutil.copy(machine.program("busybox", "busybox-static"), clone / "busybox")
    git(clone, "init", "--quiet", "--initial-branch=main")
    git(clone, "remote", "add", "origin", url)
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message=A page in an image")
    return clone


def git(folder: Path, *arguments: str) -> str:
    """Runs git as a person would, and returns its output."""
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


def follow(said: Said, system: System) -> dict[str, Any]:
    """Shows the states and the log of the build, and returns the ended build."""
    found = system.listed()
    if not found:
        raise DemoError("the push asked for no build: see the webhook's answer above")
    build, shown = found[0], ""
    for message in Server(system.url, system.own_token).follow(build["name"]):
        if message.kind == "log":
            said.detail(str(message.data["line"]))
            continue
        build = message.data
        if build["state"] != shown:
            shown = build["state"]
            said.stage(f"{build['name']} is {shown}" + (f": {build['message']}" if build["message"] else ""))
    return build


def show_event(said: Said, system: System, build: dict[str, Any]) -> None:
    """Waits for the completion event, and prints it."""
    event = system.sinks["demo"].wait_for_event(f"dev.kiln.build.{build['state']}.v1", timeout=30)
    said.stage("The completion event, as the receiver got it")
    _, body = encode(event, "structured")
    shown = json.loads(body)
    shown.get("data", {}).get("log", {}).pop("tail", None)
    said.detail(json.dumps(shown, indent=2))


def check_image(said: Said, system: System, build: dict[str, Any]) -> None:
    """Compares the digest with that in the registry, and pulls the image by it."""
    image = build["image"]
    name = image["repository"]
    digest = system.digest(name, image["tag"])
    if digest != image["digest"]:
        raise DemoError(f"the event names {image['digest']}, the registry {digest}")
    reference = f"{name}@{digest}"
    forget_images(system.registry.host)  # otherwise the daemon that built it would pull nothing
    pulled = subprocess.run(["docker", "pull", reference], check=False, capture_output=True, text=True)
    if pulled.returncode:
        raise DemoError(f"docker pull {reference}: {pulled.stderr.strip()}")
    said.stage(f"docker pull {reference}")
    said.detail(pulled.stdout.strip())


def forget_images(registry: str) -> None:
    """Removes the images of that registry from the daemon."""
    shape = "{{.Repository}} {{.Tag}} {{.Digest}}"
    filters = [f"--filter=reference={registry}/{path}" for path in ("*", "*/*")]
    command = ["docker", "image", "ls", "--digests", "--format", shape, *filters]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    for name, tag, digest in (line.split() for line in listed.splitlines()):
        reference = f"{name}@{digest}" if tag == "<none>" else f"{name}:{tag}"
        subprocess.run(["docker", "image", "rm", "--force", reference], check=False, capture_output=True)


def stay(said: Said, system: System, clone: Path) -> None:
    """Waits for Ctrl-C. Shows the events of further pushes and builds."""
    server = f"--server {system.url}"
    said.stage(
        f"The page: {system.url}?token={system.own_token}   Ctrl-C ends all of it. To try next, in another terminal:"
    )
    said.detail(f"cd {clone} && git commit --allow-empty -m again && git push origin main")
    state = f"KILN_STATE_DIR={shlex.quote(system.settings['KILN_STATE_DIR'])}"
    said.detail(f"{state} {Path(sys.executable).parent}/kiln build {server} https://github.com/binder-examples/conda")
    known = len(system.sinks["demo"].events)
    while True:
        time.sleep(0.5)
        events = system.sinks["demo"].events
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
        system = started.enter_context(parts(said, folder))
        started.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)  # while the parts stop
        clone = make_repository(system)
        files = ", ".join(sorted(path.name for path in clone.iterdir() if path.name != ".git"))
        said.stage(f"git push to {system.host.url(REPOSITORY)}: {files}")
        said.detail(git(clone, "push", "origin", "main"))
        build = follow(said, system)
        show_event(said, system, build)
        if build["state"] != "succeeded":
            raise DemoError(f"the build {build['state']}: {build['message']}")
        check_image(said, system, build)
        if not EXIT:
            with suppress(KeyboardInterrupt):
                stay(said, system, clone)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        demo()
    except (DemoError, machine.MachineError, KilnError, AssertionError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        print("\nEverything that was started is stopped.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
