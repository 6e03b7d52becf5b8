"""Failures on the way to an image: Kiln reports each in a sentence and continues once the cause is repaired.

Where an administrator has to repair something, the build waits and reports that. Such an attempt does not count
towards `KILN_MAX_ATTEMPTS`, which is one here: a counted attempt would end the build.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest

from eventing.event import Event
from tests.parts import machine
from tests.parts.cluster import Cluster, Object, Release
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, sleepers
from tests.parts.kiln import until
from tests.parts.misconfigurations import PUSH_SECRET, controller_with, quota, without_push_secret
from tests.parts.pods import within
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(300)

KNOWABLE = 60.0
"""Seconds within which Kiln reports a detectable failure."""
TIMEOUT = 60
"""Time limit of a build here, in seconds."""
BACKSTOP = 120
"""Seconds after the time limit at which Kubernetes ends the pod."""
GRACE = 30
"""Seconds after that at which Kubernetes kills it."""

SAYS = "there is no such course"
FAILING = f"""
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "echo {SAYS}; exit 3"]
"""

HOG = """
import os
with open("/proc/1/oom_score_adj", "w") as file:
    file.write("1000")
memory = os.memfd_create("memory")
while True:
    os.write(memory, bytes(2**20))
"""
"""Fills the container's memory through a memfd, which counts for no process.

The score makes the kernel kill process 1, the builder.
"""


@pytest.fixture(scope="module")
def hurried(cluster: Cluster, registry: Registry, host: GitHost) -> Iterator[Release]:
    one = {"replicas": 1}
    with Release(
        cluster,
        registry=registry,
        host=host,
        values={"web": one, "controller": one},
        pending_grace="5s",
        max_attempts=1,
        build_timeout=f"{TIMEOUT}s",
    ) as release:
        yield release


@pytest.fixture(scope="module", autouse=True)
def stuck(hurried: Release) -> str:
    """A build whose builder is stopped and ignores even its own time limit.

    Its end takes minutes, so it runs during the other tests.
    """
    commit, seconds = hurried.running("ada/stuck", 600)
    name = hurried.build("ada/stuck", commit)
    hurried.step_runs(name, seconds)
    (pod,) = hurried.pods(name)
    hurried.cluster.signal(pod, "STOP", "builds.builder")
    return name


@pytest.fixture(scope="module", autouse=True)
def slow(hurried: Release) -> tuple[str, str]:
    """A build that exceeds its time limit, and the seconds that its step sleeps. It runs during the other tests."""
    commit, seconds = hurried.running("ada/slow", 600)
    name = hurried.build("ada/slow", commit)
    hurried.step_runs(name, seconds)
    return name, seconds


def asked(release: Release, dockerfile: str = SMALL) -> str:
    """Request a build of a new repository."""
    path = f"ada/{secrets.token_hex(4)}"
    return release.build(path, release.commit(path, {"Dockerfile": dockerfile}))


def waits(release: Release, name: str, sentence: str) -> None:
    """Check that the build and the event of the abandoned attempt report the cause in time."""
    build = release.wait(name, lambda build: sentence in (build["waiting"] or ""), KNOWABLE)
    assert build["state"] == "queued"
    for sink in release.sinks:
        event = release.arrived(sink, name, "retrying", KNOWABLE)
        assert event.extensions["reason"] == "infrastructure"
        (attempt,) = attempts(event)
        assert (attempt["state"], attempt["reason"]) == ("failed", "infrastructure")
        assert sentence in attempt["message"]


def goes_on(release: Release, name: str) -> dict[str, Any]:
    build = release.ended(name, 90)
    assert build["state"] == "succeeded", build
    return build


def fails(release: Release, name: str, reason: str, sentence: str, tail: str, *, seconds: float = KNOWABLE) -> None:
    """Check that the build ends, and that its event has the reason and the last lines of the log."""
    build = release.ended(name, seconds)
    assert (build["state"], build["reason"], build["attempt"]) == ("failed", reason, 1), build
    for sink in release.sinks:
        event = release.arrived(sink, name, "failed")
        assert event.extensions["reason"] == reason
        assert sentence in data(event)["message"]
        assert tail in data(event)["log"]["tail"]


def data(event: Event) -> dict[str, Any]:
    assert isinstance(event.data, dict)
    return event.data


def attempts(event: Event) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = data(event)["attempts"]
    return found


def ended(pod: Object) -> dict[str, Any]:
    (status,) = pod["status"]["containerStatuses"]
    terminated: dict[str, Any] = status["state"]["terminated"]
    return terminated


def lasted(pod: Object) -> float:
    """Return the seconds from the start of the pod's container to its end."""
    began, finished = (datetime.fromisoformat(ended(pod)[at]) for at in ("startedAt", "finishedAt"))
    return (finished - began).total_seconds()


# ---- Caused by the repository or its build --------------------------------------------------------------------------


def test_a_dockerfile_that_fails(hurried: Release) -> None:
    busybox = machine.program("busybox", "busybox-static").read_bytes()
    commit = hurried.commit("ada/failing", {"Dockerfile": FAILING, "busybox": busybox})
    name = hurried.build("ada/failing", commit)
    fails(hurried, name, "repository", "A step of the build failed.", SAYS)
    (pod,) = hurried.pods(name)
    assert ended(pod)["exitCode"] == 64


def test_a_base_image_that_is_not_there(hurried: Release) -> None:
    base = f"{hurried.registry.host}/nowhere/nothing:1"
    name = asked(hurried, f"FROM {base}\n")
    fails(hurried, name, "repository", base, base)


def test_a_builder_that_is_killed_for_its_memory(hurried: Release) -> None:
    commit, seconds = hurried.running("ada/large", 600)
    name = hurried.build("ada/large", commit)
    hurried.step_runs(name, seconds)
    (pod,) = hurried.pods(name)
    with suppress(machine.MachineError):  # the kill also ends this command
        within(hurried.cluster, pod, "python", "-c", HOG)
    fails(hurried, name, "infrastructure", "its limit is `builds.resources` of the chart", seconds)
    (pod,) = hurried.pods(name)
    assert ended(pod)["reason"] == "OOMKilled"


# ---- Caused by a missing dependency ---------------------------------------------------------------------------------


def test_a_push_secret_that_is_missing(hurried: Release) -> None:
    with without_push_secret(hurried):
        name = asked(hurried)
        waits(hurried, name, f"The Secret {PUSH_SECRET} that build pods mount does not exist.")
    goes_on(hurried, name)


@pytest.mark.parametrize("what", ["pods", "count/jobs.batch"])
def test_a_quota_that_has_no_room(hurried: Release, what: str) -> None:
    with quota(hurried, what) as tight:
        name = asked(hurried)
        waits(hurried, name, f"exceeded quota: {tight}")
    goes_on(hurried, name)


def test_a_namespace_that_admits_no_build_pods(hurried: Release) -> None:
    label = "pod-security.kubernetes.io/enforce"

    def enforce(profile: str) -> None:
        hurried.cluster.kubectl("label", "namespace", hurried.namespace, f"{label}={profile}", "--overwrite")

    enforce("restricted")
    try:
        name = asked(hurried)
        waits(hurried, name, f"The namespace admits no build pods until it has the label {label}=privileged")
    finally:
        enforce("privileged")
    goes_on(hurried, name)


def test_a_priority_class_that_does_not_exist(hurried: Release) -> None:
    priority = f"urgent-{secrets.token_hex(3)}"
    made = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": priority},
        "value": 1,
    }
    hurried.upgrade(builds={"priorityClassName": priority})
    try:
        name = asked(hurried)
        waits(hurried, name, f"no PriorityClass with name {priority} was found")
        hurried.cluster.apply(made)
        goes_on(hurried, name)
    finally:
        hurried.upgrade(builds={})
        hurried.cluster.kubectl("delete", "priorityclass", priority, "--ignore-not-found")


def test_a_builder_image_that_is_not_there(hurried: Release) -> None:
    image = f"{hurried.registry.host}/nowhere/kiln:1"
    with controller_with(hurried, "KILN_BUILDER_IMAGE", image):
        name = asked(hurried)
        waits(hurried, name, f"The builder's image {image} cannot be pulled (KILN_BUILDER_IMAGE, imagePullSecrets)")
    goes_on(hurried, name)


def test_a_socket_that_is_not_there(hurried: Release) -> None:
    """The builder waits half a minute for the socket, as it does for a daemon that restarts."""
    socket = "/run/kiln/absent.sock"
    with controller_with(hurried, "KILN_DOCKER_HOST", f"unix://{socket}"):
        name = asked(hurried)
        waits(hurried, name, socket)
    goes_on(hurried, name)


# ---- Caused by an administrator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["job", "pod"])
def test_what_belongs_to_an_attempt_is_deleted(hurried: Release, kind: str) -> None:
    """The next attempt begins after the first has ended, and the first does not count."""
    path = f"ada/deleted-{kind}"
    commit, seconds = hurried.running(path, 8)
    name = hurried.build(path, commit)
    hurried.step_runs(name, seconds)
    hurried.cluster.kubectl(
        "delete", kind, f"--namespace={hurried.namespace}", f"--selector=kiln.dev/build={name}", "--wait=false"
    )
    goes_on(hurried, name)
    event = hurried.arrived("first", name, "retrying")
    (attempt,) = attempts(event)
    assert (attempt["reason"], bool(attempt["message"])) == ("infrastructure", True)
    first, second = hurried.pods(name)
    assert ended(first)["finishedAt"] <= second["metadata"]["creationTimestamp"]


def test_a_record_is_deleted(hurried: Release) -> None:
    """Deleting a record cancels the build, sends one event and removes all objects of the build."""
    commit, seconds = hurried.running("ada/deleted-record", 600)
    name = hurried.build("ada/deleted-record", commit)
    hurried.step_runs(name, seconds)
    hurried.cluster.kubectl("delete", "configmap", name, f"--namespace={hurried.namespace}")
    for sink in hurried.sinks:
        event = hurried.arrived(sink, name, "cancelled", KNOWABLE)
        assert event.extensions["reason"] == "deleted"
        assert (data(event)["state"], data(event)["message"]) == ("cancelled", "Its record was deleted.")
    assert hurried.get(f"api/v1/builds/{name}").status_code == 404
    until(lambda: not (hurried.jobs(name) or hurried.objects("pods", selector=f"kiln.dev/build={name}")))
    until(lambda: not sleepers(seconds))
    for sink in hurried.sinks:
        assert len(hurried.events(sink, name, "cancelled")) == 1


# ---- Caused by time limits: last, when most of these have passed -----------------------------------------------------


def test_a_build_that_takes_too_long(hurried: Release, slow: tuple[str, str]) -> None:
    name, seconds = slow
    sentence = f"The build exceeded its time limit of {TIMEOUT} s."
    fails(hurried, name, "timeout", sentence, "sleep", seconds=TIMEOUT + KNOWABLE)
    (pod,) = hurried.pods(name)
    assert ended(pod)["exitCode"] == 75
    assert lasted(pod) < TIMEOUT + KNOWABLE
    until(lambda: not sleepers(seconds))


def test_a_builder_that_does_not_end(hurried: Release, stuck: str) -> None:
    sentence = "The build exceeded its time limit."
    fails(hurried, stuck, "timeout", sentence, "sleep", seconds=TIMEOUT + BACKSTOP + GRACE + KNOWABLE)
    (pod,) = hurried.pods(stuck)
    assert pod["spec"]["activeDeadlineSeconds"] <= TIMEOUT + BACKSTOP
    assert (pod["status"]["reason"], ended(pod)["exitCode"]) == ("DeadlineExceeded", 137)
    assert lasted(pod) < TIMEOUT + BACKSTOP + GRACE + 10
