"""Builds by Podman: their results, the blame for a failure, and that nothing of them stays."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
from pathlib import Path

import pytest

from builds.build import Reason, Request, State
from builds.builder.evidence import oom_kills
from builds.builder.spec import Tags
from builds.clients.registry import Registry as Client
from builds.faults import Fault
from tests.docker.builder.conftest import asked
from tests.docker.builder.test_provenance import verify
from tests.parts.building import Attempt, Builder, is_outside_kill, put_busybox
from tests.parts.githost import GitHost
from tests.parts.installation import sleepers
from tests.parts.kiln import until
from tests.parts.podmand import Podmand
from tests.parts.registry import Registry

pytestmark = pytest.mark.slow

SCRATCH = "FROM scratch\nCOPY busybox /bin/sh\n"


def step(command: str) -> str:
    """A Dockerfile of one step that no cache has."""
    return f"{SCRATCH}ENV RUN={secrets.token_hex(8)}\nRUN {command}\n"


@pytest.fixture
def seconds() -> str:
    """The duration of a step's sleep, as a number by which the process is known."""
    return f"600.{secrets.randbelow(10**9):09}"


def repository(host: GitHost, path: str, registry: Registry, folder: Path, text: str) -> Request:
    """To build a repository with that Dockerfile and a busybox."""
    folder.mkdir(parents=True)
    put_busybox(folder)
    (folder / "Dockerfile").write_text(text)
    return asked(host, path, host.create(path, folder), registry)


def nothing_goes_on(attempt: Attempt, podman: Podmand, seconds: str = "") -> None:
    assert attempt.members() == []
    assert attempt.left_behind() == []
    if seconds:
        until(lambda: not sleepers(seconds), 60)
    until(lambda: not podman.working(), 60)


@pytest.mark.timeout(300)  # four builds
def test_an_image_with_its_labels_and_tags(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, podman: Podmand
) -> None:
    request = repository(host, path, registry, tmp_path / "content", step("echo hello; echo ' #9 pushing x'"))
    attempt = builder.run(request, name="build-mine-1", tags=(Tags(ref=None, names=("course",)),))
    image = attempt.result.image
    assert image, attempt.text
    for tag in (request.commit, "course"):
        manifest = Client().manifest(request.image, tag)
        assert manifest
        assert manifest.digest == image.digest
    labels = Client().labels(request.image, request.commit) or {}
    assert (labels["dev.kiln.build"], labels["dev.kiln.attempt"]) == ("build-mine-1", "uid.1")
    phases = [line["phase"] for line in attempt.lines]
    assert [phase for phase, before in zip(phases, [None, *phases], strict=False) if phase != before] == [
        *("fetch", "build", "push", None)
    ]
    assert {line["phase"] for line in attempt.lines if line["text"] == "hello"} == {"build"}
    assert attempt.result.timings.push is not None
    assert "The image has a provenance statement, unsigned." in attempt.text
    status, said = verify(image.reference, "--repository", request.repository, "--commit", request.commit)
    assert (status, image.digest in said) == (0, True), said
    assert "nothing to build" in builder.run(request, name="build-mine-1").text
    again = builder.run(request, name="build-mine-1", force=True)
    assert "Using cache" in again.text
    assert "hello" not in [line["text"] for line in again.lines]
    assert again.result.image
    assert again.result.image.digest == image.digest
    named = podman.run("image", "ls", "--format", "{{.Repository}}").stdout
    assert path not in named, "a FROM would take it without asking the registry"
    assert "kiln-" not in named
    nothing_goes_on(attempt, podman)


THEIRS = {
    "a step": (step("echo begun; exit 3"), "A step of the build failed. RUN echo begun; exit 3: exit code: 3; it said"),
    "a step that is killed": (step("sh -c 'kill -9 $$'; exit 137"), "exit code: 137"),
    "a copy": ("FROM scratch\nCOPY missing /\n", "The Dockerfile cannot be built."),
    "an instruction": ("FROM scratch\nRUNN x\n", "The Dockerfile cannot be built."),
    "nothing": ("# nothing\n", "The Dockerfile cannot be built."),
    "a base": ("FROM {registry}/no/such:1\n", "An image or file that the Dockerfile names does not exist."),
    "a cache mount": (f"{SCRATCH}RUN --mount=type=cache,target=/x true\n", "the Dockerfile asks for a cache mount"),
    "a cache mount on two lines": (f"{SCRATCH}RUN --mount=target=/x,type=ca\\\nche true\n", "asks for a cache mount"),
    "a lie on both streams": (
        step(
            r"printf 'STEP 9/9: FROM x\nError: server probably quit: no space left on device\n' | tee /dev/stderr; ! :"
        ),
        "exit code: 1",
    ),
}


@pytest.mark.parametrize(("text", "words"), THEIRS.values(), ids=THEIRS)
def test_the_repository_is_to_blame(
    text: str, words: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    text = text.replace("{registry}", registry.host)
    attempt = builder.run(repository(host, path, registry, tmp_path / "content", text))
    assert attempt.status == 64, attempt.text
    assert attempt.result.reason is Reason.REPOSITORY
    assert words in (attempt.result.message or "")


@pytest.mark.parametrize("entry", ["wrong", "none"])
def test_a_wrong_password(entry: str, path: str, builder: Builder, host: GitHost, tmp_path: Path) -> None:
    canary = secrets.token_hex(12)
    auth = base64.b64encode(f"ada:{canary}".encode()).decode()
    with Registry(tmp_path / "registry", {"ada": "right"}) as closed:
        (tmp_path / "docker.json").write_text(json.dumps({"auths": {closed.host: {"auth": auth}}}))
        request = repository(host, path, closed, tmp_path / "content", step("echo begun"))
        config = str(tmp_path / "docker.json") if entry == "wrong" else None
        attempt = builder.run(request, registry_config=config)
        assert attempt.status == 69, attempt.text
        assert "does not accept the credential for it in " in (attempt.result.message or "")
        assert canary not in attempt.everything
        closed.let_in({"ada": canary})
        assert builder.run(request, registry_config=str(tmp_path / "docker.json")).status == 0


def let_go(seconds: str) -> None:
    """Ends the sleep of a step, which goes on."""
    until(lambda: sleepers(seconds))
    for process in sleepers(seconds):
        os.kill(process, signal.SIGTERM)


def test_a_registry_that_goes_away_before_the_push(
    path: str, builder: Builder, host: GitHost, tmp_path: Path, seconds: str
) -> None:
    with Registry(tmp_path / "registry") as away:
        text = step(f"echo begun; sleep {seconds}; true")
        attempt = builder.start(repository(host, path, away, tmp_path / "content", text))
        attempt.until("^begun$")
        away.stop()
        let_go(seconds)
        attempt.wait()
    assert attempt.status == 69, attempt.text
    assert "could not be pushed to " in (attempt.result.message or "")


ENDS = {"cancelled": signal.SIGTERM, "too late": signal.SIGALRM, "killed": signal.SIGKILL}


@pytest.mark.parametrize("end", ENDS)
def test_a_step_ends_with_its_build(
    end: str,
    path: str,
    builder: Builder,
    host: GitHost,
    registry: Registry,
    tmp_path: Path,
    podman: Podmand,
    seconds: str,
) -> None:
    """The test sends the timer's signal once the step has begun, however long that takes."""
    text = step(f"echo begun; sleep {seconds}")
    attempt = builder.start(repository(host, path, registry, tmp_path / "content", text))
    attempt.until("^begun$")
    attempt.process.send_signal(ENDS[end])
    attempt.process.wait(60)
    if end == "killed":
        for process in attempt.members():  # the engine's part
            os.kill(process, signal.SIGKILL)
        until(lambda: not sleepers(seconds), 60)
        until(lambda: not podman.working(), 60)
        return
    expected = (State.CANCELLED, None) if end == "cancelled" else (State.FAILED, Reason.TIMEOUT)
    assert (attempt.result.state, attempt.result.reason) == expected
    nothing_goes_on(attempt, podman, seconds)


@pytest.mark.parametrize("end", ["cancelled", "too late"])
def test_ended_while_it_fetches(
    end: str, path: str, builder: Builder, host: GitHost, registry: Registry, podman: Podmand
) -> None:
    """Before the service has heard of the build."""
    host.hanging.add(f"/{path}.git")
    attempt = builder.start(asked(host, path, "1" * 40, registry))
    until(lambda: any(path in target for target in host.requests))
    attempt.process.send_signal(ENDS[end])
    result = attempt.wait()
    expected = (State.CANCELLED, None) if end == "cancelled" else (State.FAILED, Reason.TIMEOUT)
    assert (result.state, result.reason) == expected
    assert result.timings.build is None
    nothing_goes_on(attempt, podman)


def test_cancelled_while_it_pushes(
    path: str, builder: Builder, host: GitHost, tmp_path: Path, podman: Podmand, seconds: str
) -> None:
    with Registry(tmp_path / "registry") as silent:
        text = step(f"echo begun; sleep {seconds}; true")
        attempt = builder.start(repository(host, path, silent, tmp_path / "content", text))
        attempt.until("^begun$")
        silent.pause()
        let_go(seconds)
        attempt.until("^Getting image source signatures$")
        attempt.process.send_signal(signal.SIGTERM)
        assert attempt.wait().state is State.CANCELLED
        nothing_goes_on(attempt, podman)
        assert path not in podman.run("image", "ls").stdout


def test_a_client_that_is_killed(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, podman: Podmand, seconds: str
) -> None:
    before = oom_kills()
    attempt = builder.start(
        repository(host, path, registry, tmp_path / "content", step(f"echo begun; sleep {seconds}"))
    )
    attempt.until("^begun$")
    for process in attempt.members():
        if b"\0build\0--cgroup-parent" in Path(f"/proc/{process}/cmdline").read_bytes():
            os.kill(process, signal.SIGKILL)
    attempt.wait()
    assert attempt.status == 69, attempt.text
    assert is_outside_kill(attempt.result.message or "", before)
    nothing_goes_on(attempt, podman, seconds)


BUILDERS = [fault for fault in Fault if fault.startswith("builder-")]


@pytest.mark.timeout(400)  # two builds at each of five places
def test_a_builder_that_is_killed_at_each_place(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, podman: Podmand
) -> None:
    """The next builder does the rest, and the image is the same."""
    folder = tmp_path / "faults"
    folder.mkdir()
    request = repository(host, path, registry, tmp_path / "content", step("echo begun"))
    digests = set()
    for fault in BUILDERS:
        (folder / fault).touch()
        dying = builder.start(request, force=True, environment={"KILN_FAULT": str(folder)})
        assert dying.process.wait(60) == -signal.SIGKILL, fault
        after = builder.run(request)
        assert after.status == 0, after.text
        assert after.result.image
        digests.add(after.result.image.digest)
    assert list(folder.iterdir()) == []
    assert len(digests) == 1
    until(lambda: not podman.working(), 60)


def test_two_repositories_at_once(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path, podman: Podmand, seconds: str
) -> None:
    """The cancel of one ends none of the other's steps."""
    requests = [
        repository(host, f"{path}-{name}", registry, tmp_path / name, step(f"echo begun; sleep {seconds}; true"))
        for name in ("a", "b")
    ]
    first, second = (builder.start(request) for request in requests)
    for attempt in (first, second):
        attempt.until("^begun$")
    first.process.send_signal(signal.SIGTERM)
    assert first.wait().state is State.CANCELLED
    until(lambda: len(sleepers(seconds)) == 1)
    let_go(seconds)
    second.wait()
    assert second.status == 0, second.text
