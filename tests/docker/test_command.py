"""`kiln build` against all the real parts: Git host, registry, Docker, web and controller."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.parts import machine
from tests.parts.githost import GitHost, commit
from tests.parts.kiln import ROOT, Kiln, Process, until
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry

MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


@dataclass
class Parts:
    kiln: Kiln
    web: Process
    host: GitHost
    registry: Registry
    folder: Path

    def repository(self, name: str, *steps: str) -> str:
        """The URL of a new repository whose image takes these shell commands."""
        content = self.folder / name
        content.mkdir()
        shutil.copy(machine.program("busybox", "busybox-static"), content / "busybox")
        runs = "".join(f'RUN ["/bin/busybox", "sh", "-c", "{step}"]\n' for step in steps)
        anew = f"ENV TEST={uuid.uuid4()}\n"  # past the daemon's cache
        (content / "Dockerfile").write_text(f"FROM scratch\nCOPY busybox /bin/busybox\n{anew}{runs}USER 1000\n")
        self.host.create(f"test/{name}", content)
        return self.host.url(f"test/{name}")

    def digest(self, image: str, tag: str) -> str | None:
        """The digest as the registry itself reports it."""
        path = image.removeprefix(f"{self.registry.host}/")
        url = f"http://{self.registry.host}/v2/{path}/manifests/{tag}"
        return requests.head(url, headers={"Accept": MANIFESTS}, timeout=10).headers.get("Docker-Content-Digest")

    def build(self, name: str) -> dict[str, Any]:
        url = f"{self.web.url}api/v1/builds/{name}"
        answer: dict[str, Any] = requests.get(url, headers=self.kiln.authorization, timeout=10).json()
        return answer


def taken_apart(reference: str) -> tuple[str, str, str]:
    """Repository, tag and digest of what `kiln build` printed."""
    image, tag, digest = re.fullmatch(r"(.+):([0-9a-f]{40})@(sha256:[0-9a-f]{64})\n", reference).groups()
    return image, tag, digest


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    folder = tmp_path_factory.mktemp("command")
    with machine.daemon(), Registry(folder / "registry") as registry, GitHost(folder / "git") as host:
        settings = {"KILN_IMAGE_PREFIX": f"{registry.host}/", "KILN_ALLOWED_REPOSITORIES": f"{host.base}/**"}
        with Kiln(folder, **settings) as kiln:
            kiln.start("controller")
            yield Parts(kiln, kiln.start("web"), host, registry, folder)


def test_it_ends_with_the_image_in_the_registry(parts: Parts) -> None:
    url = parts.repository("good", "echo a line of the build")
    done = parts.kiln.run("build", url, "--server", str(parts.web.url), "--tag", "course-main")
    assert done.returncode == 0, done.stderr
    image, tag, digest = taken_apart(done.stdout)
    assert parts.digest(image, tag) == parts.digest(image, "course-main") == digest
    assert "a line of the build" in done.stderr
    assert done.stderr.splitlines()[-1] == "[succeeded]"


def test_asking_again_is_answered_with_the_same_image_and_sets_further_tags(parts: Parts) -> None:
    url = parts.repository("again", "echo once")
    server = ("--server", str(parts.web.url))
    first, second = parts.kiln.run("build", url, *server), parts.kiln.run("build", url, *server, "--tag", "later")
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == second.stdout
    image, tag, digest = taken_apart(first.stdout)
    until(lambda: parts.digest(image, "later") == digest)
    commit(parts.host.bare("test/again"), parts.folder / "again", message="The branch moves on")
    old = {"repository": url, "ref": "refs/heads/main", "commit": tag, "tags": ["yesterday"]}
    headers = parts.kiln.authorization
    requests.post(f"{parts.web.url}api/v1/builds", json=old, headers=headers, timeout=10).raise_for_status()
    parts.kiln.run("build", url, *server, "--ref", tag, "--tag", "last")
    until(lambda: parts.digest(image, "last") == digest)
    assert parts.digest(image, "yesterday") is None


def test_a_repository_at_fault_is_status_1_and_its_error_is_told(parts: Parts) -> None:
    url = parts.repository("bad", "echo the reason; exit 3")
    done = parts.kiln.run("build", url, "--server", str(parts.web.url))
    assert (done.returncode, done.stdout) == (1, "")
    assert "the reason" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("kiln: error: failed (repository): ")


def test_a_connection_that_breaks_loses_and_repeats_no_line(parts: Parts) -> None:
    url = parts.repository("long", "for i in 1 2 3 4 5 6 7 8 9; do echo counted-$i; sleep 0.3; done")
    port = int(str(parts.web.url).rstrip("/").rpartition(":")[2])
    with Proxy(("127.0.0.1", port)) as proxy:
        with building(parts, url, f"http://{proxy.address}/") as (kiln, shown):
            until(lambda: "counted-2" in shown.read_text())
            proxy.cut()
            until(lambda: "counted-5" in shown.read_text())
            proxy.refuse()
            proxy.accept()
            assert kiln.wait(timeout=50) == 0
        assert proxy.connections >= 3
    counted = re.findall(r"^(?:#\d+ [\d.]+ )?counted-(\d)$", shown.read_text(), re.MULTILINE)
    assert counted == list("123456789")


def test_ctrl_c_leaves_the_build_to_go_on_and_says_how_to_cancel_it(parts: Parts) -> None:
    url = parts.repository("patient", "for i in 1 2 3 4 5 6 7 8 9; do echo counted-$i; sleep 0.3; done")
    with building(parts, url, str(parts.web.url)) as (kiln, shown):
        until(lambda: "counted-1" in shown.read_text())
        kiln.send_signal(signal.SIGINT)
        assert kiln.wait(timeout=10) == 130
    told = shown.read_text()
    name = re.match(r"(build-\S+): ", told)[1]
    assert f"kiln cancel --server {parts.web.url} {name}\n" in told
    assert "Traceback" not in told
    assert parts.build(name)["state"] == "running"
    until(lambda: parts.build(name)["state"] == "succeeded")


class building:  # noqa: N801
    """Runs `kiln build`, whose standard error goes to a file."""

    def __init__(self, parts: Parts, url: str, server: str) -> None:
        self._parts, self._arguments = parts, ["build", url, "--server", server]
        self._shown = parts.folder / f"{url.rpartition('/')[2]}.err"

    def __enter__(self) -> tuple[subprocess.Popen[bytes], Path]:
        with self._shown.open("wb") as err:
            self._process = subprocess.Popen(
                # A shell that runs the tests in its background has them, and all that they start, ignore Ctrl-C.
                ["env", "--default-signal=INT", sys.executable, "-m", "kiln", *self._arguments],
                cwd=ROOT,
                env=self._parts.kiln.environment,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
        return self._process, self._shown

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
