"""`kiln build` on a machine where no process of Kiln runs: Docker, Git and the signals are real."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.parts import machine, wheel
from tests.parts.githost import GitHost
from tests.parts.kiln import ROOT, Kiln, until
from tests.parts.registry import Registry
from tests.parts.wheel import InstalledKiln

IMAGE = re.compile(r"(localhost/kiln/[a-z0-9-]+):([0-9a-f]{40})\n")


class Here:
    """This machine, with nothing of Kiln running."""

    def __init__(self, kiln: Kiln, host: GitHost, folder: Path) -> None:
        self.kiln, self.host, self.folder = kiln, host, folder

    def repository(self, *steps: str) -> str:
        """The URL of a new repository whose image takes these shell commands."""
        name = uuid.uuid4().hex
        content = self.folder / name
        content.mkdir()
        shutil.copy(machine.program("busybox", "busybox-static"), content / "busybox")
        runs = "".join(f'RUN ["/bin/busybox", "sh", "-c", "{step}"]\n' for step in steps)
        anew = f"ENV TEST={name}\n"  # past the daemon's cache
        (content / "Dockerfile").write_text(f"FROM scratch\nCOPY busybox /bin/busybox\n{anew}{runs}USER 1000\n")
        self.host.create(f"test/{name}", content)
        return self.host.url(f"test/{name}")

    def remove_images(self) -> None:
        """Removes the images that builds left with the daemon: no other code deletes them."""
        found = json.loads(self.kiln.run("ls", "--json", "--limit", "1000").stdout)["items"]
        for repository in {build["image"]["repository"] for build in found}:
            listing = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository]
            names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
            if names:
                subprocess.run(["docker", "image", "rm", *names], capture_output=True, check=True)

    def build_of(self, url: str) -> dict[str, Any]:
        (found,) = json.loads(self.kiln.run("ls", "--json", "--repository", url).stdout)["items"]
        return dict(found)

    def at_terminal(self, *arguments: str) -> AtTerminal:
        return AtTerminal(self.kiln, *arguments)


class AtTerminal:
    """A command that a person runs at a terminal. `shown` is all that it has printed."""

    def __init__(self, kiln: Kiln, *arguments: str) -> None:
        self.shown = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            command = [sys.executable, "-m", "kiln", *arguments]
            os.execve(command[0], command, {**kiln.environment, "TERM": "xterm"})
        os.set_blocking(self._terminal, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._terminal)

    def types(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def sees(self, text: str) -> None:
        """Waits for text that follows what was seen before."""
        until(lambda: text in self._read())
        self.shown = self.shown.partition(text)[2]

    def ends(self) -> int:
        """Waits for its end and returns its exit status."""
        ended: list[int] = []

        def over() -> bool:
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            ended.append(status)
            return pid != 0

        until(over)
        return os.waitstatus_to_exitcode(ended[-1])

    def _read(self) -> str:
        with suppress(OSError):  # no output yet, or the end of the command
            self.shown += os.read(self._terminal, 1 << 16).decode(errors="replace")
        return self.shown


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("here")
    with machine.daemon(), GitHost(folder / "git") as host:
        settings = {"KILN_IMAGE_PREFIX": "", "KILN_ALLOWED_REPOSITORIES": f"{host.base}/**"}
        made = Here(Kiln(folder, **settings), host, folder)
        yield made
        made.remove_images()


def test_the_wheel_builds_from_an_empty_folder(here: Here) -> None:
    url = here.repository("echo built by the wheel")
    program = wheel.install(wheel.build(here.folder / "wheel"), here.folder)
    kiln = InstalledKiln(program, here.folder, **here.kiln.settings)
    done = kiln.run("build", url)
    assert (done.returncode, bool(IMAGE.fullmatch(done.stdout))) == (0, True), done.stderr
    assert "built by the wheel" in done.stderr


def inspected(image: str) -> dict[str, Any]:
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=True)
    return dict(json.loads(done.stdout)[0])


def test_an_image_is_built_and_stays_on_this_machine(here: Here) -> None:
    url = here.repository("echo a line of the build")
    first = here.kiln.run("build", url, "--tag", "latest")
    assert first.returncode == 0, first.stderr
    image, tag = IMAGE.fullmatch(first.stdout).groups()
    name, _, log = first.stderr.splitlines()[0].partition(": ")
    assert "a line of the build" in first.stderr
    assert "a line of the build" in Path(log).read_text()
    assert first.stderr.splitlines()[-1] == "[succeeded]"
    assert "registry" not in first.stderr, "an image of this machine has none"
    found = inspected(f"{image}:{tag}")
    assert found["Config"]["Labels"]["dev.kiln.build"] == name
    assert inspected(f"{image}:latest")["Id"] == found["Id"]

    again = here.kiln.run("build", url, "--json", "--tag", "later")
    build = json.loads(again.stdout)
    assert (build["name"], build["attempt"], build["state"]) == (name, 1, "succeeded")
    assert (build["image"]["reference"], build["image"]["digest"]) == (f"{image}:{tag}", found["Id"])
    assert inspected(f"{image}:later")["Id"] == found["Id"]
    assert "a line of the build" in here.kiln.run("logs", name).stdout
    assert here.kiln.run("logs", "-f", name).returncode == 0

    subprocess.run(["docker", "image", "rm", "--force", found["Id"]], capture_output=True, check=True)
    assert json.loads(here.kiln.run("build", url, "--json").stdout)["attempt"] == 2
    rebuilt = json.loads(here.kiln.run("rebuild", "--json", name).stdout)
    assert (rebuilt["name"], rebuilt["attempt"], rebuilt["state"]) == (name, 3, "succeeded")
    assert set(rebuilt["image"]["tags"]) == {"latest", "later"}


def test_one_that_is_killed_is_taken_up_and_there_is_one_image(here: Here) -> None:
    url = here.repository("echo begun; sleep 4; echo gone-on")
    shown = here.folder / "killed"
    with shown.open("wb") as out:
        command = [sys.executable, "-m", "kiln", "build", url]
        kiln = subprocess.Popen(command, cwd=ROOT, env=here.kiln.environment, stdout=out, stderr=out)
        until(lambda: "begun" in shown.read_text() or kiln.poll() is not None)
        kiln.kill()
        kiln.wait()
    assert here.build_of(url)["state"] == "running"
    done = here.kiln.run("build", url)
    assert (done.returncode, bool(IMAGE.fullmatch(done.stdout))) == (0, True), done.stderr
    assert "gone-on" in done.stderr
    build = here.build_of(url)
    assert (build["attempt"], len(build["attempts"]), build["attempts"][0]["state"]) == (1, 1, "succeeded")


def test_two_at_once_and_a_controller_are_one_build(here: Here) -> None:
    url = here.repository("echo begun; sleep 2")
    controller = here.kiln.start("controller", KILN_IMAGE_PREFIX="registry.invalid/")
    command = [sys.executable, "-m", "kiln", "build", url]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, env=here.kiln.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    until(lambda: any("is now the controller" in line["message"] for line in controller.lines))
    controller.stop()
    outs = [one.communicate(timeout=50)[0].decode() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert outs[0] == outs[1]
    assert IMAGE.fullmatch(outs[0])
    assert here.build_of(url)["attempt"] == 1


def test_ctrl_c_asks_whether_to_cancel(here: Here) -> None:
    url = here.repository("i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo counted-$i-; sleep 1; done")
    with here.at_terminal("build", url) as person:
        person.sees("counted-1-")
        person.types("\x03")
        person.sees("Cancel the build?")
        person.types("n\n")
        person.sees("counted-2-")
        person.types("\x03")
        person.sees("Cancel the build?")
        person.types("\x03")
        person.sees("The build continues")
        assert person.ends() == 130
    assert here.build_of(url)["state"] == "running"
    with here.at_terminal("build", url) as person:
        person.sees("counted-3-")
        person.types("\x03")
        person.sees("Cancel the build?")
        person.types("y\n")
        person.sees("cancelled (requested)")
        assert person.ends() == 1
    build = here.build_of(url)
    assert (build["state"], build["reason"], build["attempt"]) == ("cancelled", "requested", 1)


def test_a_signal_leaves_the_build_and_cancel_ends_it(here: Here) -> None:
    url = here.repository("echo begun; sleep 60")
    command = [sys.executable, "-m", "kiln", "build", url]
    for how, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        shown = here.folder / f"left-{status}"
        with shown.open("wb") as out:
            kiln = subprocess.Popen(
                command, cwd=ROOT, env=here.kiln.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
            until(lambda shown=shown, kiln=kiln: "begun" in shown.read_text() or kiln.poll() is not None)
            kiln.send_signal(how)
            assert kiln.wait(timeout=30) == status
        assert "The build continues" in shown.read_text()
    name = here.build_of(url)["name"]
    assert here.kiln.run("cancel", name).stdout == f"{name}: cancelled\n"
    build = here.build_of(url)
    assert (build["state"], build["attempt"]) == ("cancelled", 1)


def test_with_a_prefix_it_is_pushed_unless_that_is_not_wanted(here: Here, registry: Registry) -> None:
    url = here.repository("echo pushed")
    prefix = {"KILN_IMAGE_PREFIX": f"{registry.host}/here/"}
    pushed = here.kiln.run("build", url, **prefix)
    assert re.fullmatch(rf"{registry.host}/here/\S+:[0-9a-f]{{40}}@sha256:[0-9a-f]{{64}}\n", pushed.stdout), (
        pushed.stderr
    )
    kept = here.kiln.run("build", url, "--no-push", **prefix)
    assert IMAGE.fullmatch(kept.stdout), kept.stderr
