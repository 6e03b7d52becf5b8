"""Podman instead of Docker: the results of a build, the cleanup after it, and the limits of a node's storage.

One worker builds. Its storage is in memory, so that a test can fill it. The registry requires a password.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from builds.faults import Fault
from tests.cluster.exactly_once import check_exactly_once
from tests.cluster.fault_points import FaultPoints
from tests.cluster.test_network import a_step_reaches_what_it_needs_and_nothing_else, places_around
from tests.parts import podman
from tests.parts.cluster import Cluster, Object, Release, run
from tests.parts.githost import GitHost
from tests.parts.installation import MANIFESTS, SMALL, sleepers
from tests.parts.kiln import until
from tests.parts.pods import within
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(240)

USER = "ada"
DISK = 600
"""Size of the node's storage in MiB."""
LIMIT = 200_000_000
"""Bytes that images may occupy there."""
BUSYBOX = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "sh", "-c", "{script}"]\n'


class Podded(Release):
    def digest(self, image: str, tag: str) -> str | None:
        url = f"http://{self.registry.host}/v2/{image.partition('/')[2]}/manifests/{tag}"
        answer = requests.head(url, headers={"Accept": MANIFESTS}, auth=(USER, self.password), timeout=20)
        return answer.headers.get("Docker-Content-Digest") if answer.ok else None

    @property
    def password(self) -> str:
        registry: dict[str, str] = self.values["registry"]  # type: ignore[assignment]
        return registry["password"]

    @property
    def daemon(self) -> Object:
        (pod,) = self.dockerd().values()
        return pod

    def ready(self) -> bool:
        pods = [pod for pod in self.dockerd().values() if "deletionTimestamp" not in pod["metadata"]]
        found = [one for pod in pods for one in pod["status"].get("conditions", []) if one["type"] == "Ready"]
        return [one["status"] for one in found] == ["True"]

    def asked(self, dockerfile: str = SMALL) -> tuple[str, str]:
        """Request a build of a new repository; return its name and commit."""
        path = f"ada/{secrets.token_hex(4)}"
        commit = self.with_busybox(path, dockerfile)
        return self.build(path, commit), commit

    def sleeps(self, seconds: int = 600) -> tuple[str, str, str]:
        """Start a build whose step sleeps; return its name, its commit and the exact seconds."""
        path = f"ada/{secrets.token_hex(4)}"
        commit, exactly = self.running(path, seconds)
        name = self.build(path, commit)
        self.step_runs(name, exactly)
        return name, commit, exactly

    def of_daemon(self, *command: str) -> str:
        return within(self.cluster, self.daemon, *command, container="podman")


@pytest.fixture(scope="module")
def points(cluster: Cluster) -> Iterator[FaultPoints]:
    with FaultPoints(cluster.workers[0]) as points:
        yield points


@pytest.fixture(scope="module")
def guarded_registry(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("guarded")
    with Registry(folder, {USER: secrets.token_urlsafe(16)}, address=cluster.gateway) as registry:
        yield registry


@pytest.fixture(scope="module")
def podded(cluster: Cluster, guarded_registry: Registry, host: GitHost, points: FaultPoints) -> Iterator[Podded]:
    cluster.load(podman.build())
    password = secrets.token_urlsafe(16)
    guarded_registry.let_in({USER: password})
    kept = {
        "gc": {"maxUsedSpace": f"{LIMIT // 10**6}MB"},
        "prune": {"interval": 2},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
    }
    one = {"replicas": 1}
    release = Podded(
        cluster,
        registry=guarded_registry,
        host=host,
        values={
            **{component: {**points.values[component], **one} for component in ("web", "controller")},
            "builds": points.values["builds"],
            "daemon": "podman",
            "dockerd": kept | {"nodeSelector": {"kubernetes.io/hostname": points.node}},
            "registry": {"server": guarded_registry.host, "username": USER, "password": password},
        },
        builds_per_node=2,
    )
    with in_memory(points.node, f"/var/lib/kiln/{release.namespace}_{release.name}_podman"), release:
        yield release


@contextmanager
def in_memory(node: str, folder: str) -> Iterator[None]:
    run("docker", "exec", node, "sh", "-c", f"mkdir -p {folder} && mount -t tmpfs -o size={DISK}m tmpfs {folder}")
    try:
        yield
    finally:
        run("docker", "exec", node, "sh", "-c", f"umount -l {folder}; rmdir {folder}")


def fails(release: Release, name: str, *sentences: str) -> None:
    build = release.ended(name)
    assert (build["state"], build["reason"], build["attempt"]) == ("failed", "repository", 1), release.log(name)
    event = release.arrived("first", name, "failed")
    assert isinstance(event.data, dict)
    said = json.dumps(event.data)
    assert [sentence for sentence in sentences if sentence not in said] == []


# ---- Results and classified failures --------------------------------------------------------------------------------


def test_a_push_becomes_an_image_and_an_event(podded: Podded) -> None:
    commit = podded.with_busybox("ada/pushed", BUSYBOX.format(script="echo from a step"))
    (name,) = (build["name"] for build in podded.deliver(podded.push("ada/pushed", commit)).json()["builds"])
    build = check_exactly_once(podded, name, commit)
    assert build["node"] in podded.dockerd()
    image = build["image"]
    for sink in podded.sinks:
        event = podded.arrived(sink, name, "succeeded")
        assert event.extensions["image"] == f"{image['repository']}:{commit}@{image['digest']}"
    assert "from a step" in podded.log(name)


def test_further_tags_lead_to_the_image(podded: Podded) -> None:
    commit = podded.commit("ada/tagged", {"Dockerfile": SMALL})
    build = check_exactly_once(podded, podded.build("ada/tagged", commit, tags=["first-day"]), commit)
    assert podded.digest(build["image"]["repository"], "first-day") == build["image"]["digest"]


def test_a_step_that_fails(podded: Podded) -> None:
    name, _ = podded.asked(BUSYBOX.format(script="echo there is no such course; exit 3"))
    fails(podded, name, "A step of the build failed.", "there is no such course")


def test_a_base_image_that_is_not_there(podded: Podded) -> None:
    base = f"{podded.registry.host}/nowhere/nothing:1"
    name, _ = podded.asked(f"FROM {base}\n")
    fails(podded, name, base)


def test_a_password_that_is_wrong(podded: Podded) -> None:
    wrong = {"server": podded.registry.host, "username": USER, "password": secrets.token_urlsafe(16)}
    right = podded.values["registry"]
    podded.upgrade(registry=wrong)
    try:
        name, commit = podded.asked()
        build = podded.wait(name, lambda build: any(one["reason"] for one in build["attempts"]))
        assert build["attempts"][0]["reason"] == "infrastructure"
        assert podded.registry.host in build["attempts"][0]["message"]
    finally:
        podded.upgrade(registry=right)
    check_exactly_once(podded, name, commit)


# ---- The end of steps, builders and daemons -------------------------------------------------------------------------


def test_a_cancelled_build_s_step_ends(podded: Podded) -> None:
    name, _, seconds = podded.sleeps()
    assert podded.cancel(name).status_code == 202
    assert podded.ended(name)["state"] == "cancelled"
    until(lambda: not sleepers(seconds))


def test_a_killed_builder_s_step_ends(podded: Podded) -> None:
    name, _, seconds = podded.sleeps()
    (pod,) = podded.pods(name)
    podded.cluster.signal(pod, "KILL", "builds.builder")
    until(lambda: not sleepers(seconds))
    assert podded.cancel(name).status_code == 202
    podded.ended(name)
    until(lambda: not sleepers(seconds))


@pytest.mark.parametrize("point", [point for point in Fault if point.startswith("builder-")])
def test_killed_at_any_point_the_build_ends_once(podded: Podded, points: FaultPoints, point: Fault) -> None:
    points.arm(point)
    name, commit = podded.asked()
    check_exactly_once(podded, name, commit)
    assert point not in points.armed, f"{point} was never reached"


def test_the_daemon_is_killed_under_a_build(podded: Podded) -> None:
    name, commit, _ = podded.sleeps(8)
    podded.cluster.signal(podded.daemon, "KILL", "podman system service")
    build = check_exactly_once(podded, name, commit, 120)
    first, second = build["attempts"]
    assert (first["state"], first["reason"], second["state"]) == ("failed", "infrastructure", "succeeded")


def test_a_daemon_that_is_deleted_waits_for_its_builds(podded: Podded) -> None:
    name, commit, _ = podded.sleeps(8)
    before = podded.daemon["metadata"]
    podded.cluster.kubectl("delete", "pod", before["name"], f"--namespace={podded.namespace}", "--wait=false")
    build = check_exactly_once(podded, name, commit)
    assert build["attempt"] == 1
    until(lambda: podded.ready() and podded.daemon["metadata"]["uid"] != before["uid"], 90)


# ---- The limits of a step -------------------------------------------------------------------------------------------


def test_a_step_reaches_what_it_needs_and_nothing_else(podded: Podded) -> None:
    a_step_reaches_what_it_needs_and_nothing_else(podded, places_around(podded))


def test_a_step_s_memory_is_the_daemon_s_and_the_daemon_outlives_it(podded: Podded) -> None:
    hog = "busybox head -c 2000000000 /dev/zero | busybox tail >/dev/null || true; echo went on"
    name, commit = podded.asked(BUSYBOX.format(script=hog))
    check_exactly_once(podded, name, commit)
    log = podded.log(name)
    assert "Killed" in log
    assert "went on" in log
    assert restarts(podded.daemon) == 0


def restarts(pod: Object) -> int:
    (status,) = [one for one in pod["status"]["containerStatuses"] if one["name"] == "podman"]
    count: int = status["restartCount"]
    return count


# ---- The limits of the storage --------------------------------------------------------------------------------------


def held(release: Podded) -> int:
    """Return the bytes that images occupy."""
    return int(release.of_daemon("cat", "/var/lib/containers/ballast/bytes"))


def full(release: Podded) -> int:
    """Return the used percentage of the storage."""
    return int(release.of_daemon("df", "--output=pcent", "/var/lib/containers").split()[-1].rstrip("%"))


def filling(megabytes: int) -> str:
    return BUSYBOX.format(script=f"busybox head -c {megabytes}m /dev/urandom >/{secrets.token_hex(4)}")


def test_two_repositories_at_once_stay_below_the_limit(podded: Podded) -> None:
    def build(path: str) -> tuple[str, str]:
        commit = podded.with_busybox(path, filling(60))
        return podded.build(path, commit), commit

    made: list[tuple[str, str]] = []
    for _ in range(3):
        pair = [build("ada/left"), build("ada/right")]
        for name, commit in pair:
            check_exactly_once(podded, name, commit)
        made += pair
    assert len(made) * 60 * 2**20 > LIMIT
    until(lambda: held(podded) <= LIMIT, 60)


def test_from_a_full_disk_it_comes_back_by_itself(podded: Podded) -> None:
    name, _ = podded.asked(filling(2 * DISK))
    said: dict[str, Any] = podded.wait(name, lambda build: any(one["reason"] for one in build["attempts"]))
    assert "disk is full" in said["attempts"][0]["message"].lower(), podded.log(name)
    podded.cancel(name)
    podded.ended(name)
    until(lambda: full(podded) < 80, 60)
    check_exactly_once(podded, *podded.asked())
