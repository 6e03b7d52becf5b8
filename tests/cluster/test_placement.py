"""Builds run on nodes with a ready daemon, within their slots, and a node that takes no build starves none."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.parts.cluster import DAEMON, Cluster, Object, Release, change_node, cordoned, most_at_once, run
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, sleepers
from tests.parts.kiln import until
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(300)

GRACE = 10
"""Seconds after which an attempt that has not begun is withdrawn; the default would cost each test a minute."""
LONG = 150.0
"""Time limit in seconds for several builds in sequence."""


PATIENT: dict[str, object] = {"drainSeconds": 600}
"""Values for a daemon whose builds last until a test ends them."""


def released(
    cluster: Cluster, registry: Registry, host: GitHost, settings: Mapping[str, Any], **dockerd: object
) -> Release:
    """Return a release with these settings, and these values for the daemons."""
    values = {"web": {"replicas": 1}, "dockerd": dockerd}
    return Release(cluster, registry=registry, host=host, sinks=["first"], values=values, **settings)


@pytest.fixture(scope="module")
def placed(cluster: Cluster, registry: Registry, host: GitHost) -> Iterator[Release]:
    """A release with two slots on each of two nodes.

    `max_attempts` is one, so a build that succeeds has lost no counted attempt.
    """
    settings = {"builds_per_node": 2, "max_attempts": 1, "pending_grace": f"{GRACE}s"}
    with released(cluster, registry, host, settings, **PATIENT) as release:
        yield release


@pytest.fixture
def forgetful(placed: Release) -> Iterator[Release]:
    """A release whose leader is replaced after the test.

    A leader remembers for five minutes which nodes could not take a build; the next one starts without that knowledge.
    """
    yield placed
    leader = placed.leader()
    assert leader
    placed.cluster.kubectl("delete", "pod", leader["metadata"]["name"], f"--namespace={placed.namespace}")
    until(lambda: _uid(placed.leader()) not in (None, _uid(leader)))


# ---- Which node, and how many -------------------------------------------------------------------------------------


def test_a_repository_comes_back_to_its_node(placed: Release) -> None:
    assert len({home(placed, "back/again") for _ in range(3)}) == 1


def test_many_repositories_fill_both_nodes_and_no_slot_is_given_twice(placed: Release) -> None:
    """Slots remain exclusive even if the leader crashes while all are in use."""
    paths = [f"many/{number}" for number in range(4)] * 2
    names = [placed.build(path, placed.running(path, 5)[0]) for path in paths]

    def stand(state: str) -> list[dict[str, Any]]:
        return [build for build in placed.listed() if build["name"] in names and build["state"] == state]

    until(lambda: len(stand("running")) == 4, LONG)
    until(lambda: all(build["waiting"] == "Waiting for a free build slot." for build in stand("queued")))
    leader = placed.leader()
    assert leader
    placed.cluster.signal(leader, "KILL", "kiln controller")
    builds = [placed.ended(name, LONG) for name in names]
    assert {(build["state"], build["attempt"]) for build in builds} == {("succeeded", 1)}
    assert {build["node"] for build in builds} == {*placed.cluster.workers}
    assert placed.most_at_once() == dict.fromkeys(placed.cluster.workers, 2)


# ---- Nodes that cannot take a build -------------------------------------------------------------------------------


def test_a_daemon_that_is_deleted_ends_what_it_does_and_takes_nothing_new(placed: Release) -> None:
    ((name, seconds),) = held(placed, "daemon/deleted").items()
    node = placed.one(name)["node"]
    deleted = placed.dockerd()[node]
    delete_daemon(placed, node, "--wait=false")
    build = built(placed, "daemon/deleted")
    assert (build["node"], build["attempt"]) == (other(placed, node), 1)
    assert _uid(placed.dockerd()[node]) == _uid(deleted), "it waits for the first build"
    let_go(seconds)
    build = placed.ended(name)
    assert (build["state"], build["attempt"], build["node"]) == ("succeeded", 1, node)
    until(lambda: ready(placed, node), LONG)
    assert home(placed, "daemon/deleted") == node


def test_a_daemon_that_is_not_ready_gets_no_build_and_one_that_waits_says_so(placed: Release) -> None:
    first = home(placed, "daemon/unready")
    second = other(placed, first)
    with unready(placed, first):
        build = built(placed, "daemon/unready")
        assert (build["node"], build["attempt"]) == (second, 1)
        with unready(placed, second):
            name = placed.build("daemon/unready", placed.commit("daemon/unready", {"Dockerfile": SMALL}))
            pods = {node: pod["metadata"]["name"] for node, pod in sorted(placed.dockerd().items())}
            why = [f"On {node} the Docker daemon's pod {pod} is not ready." for node, pod in pods.items()]
            waiting = " ".join(["No node has a ready Docker daemon.", *why])
            assert placed.wait(name, lambda build: build["waiting"] == waiting)["state"] == "queued"
    assert placed.ended(name, LONG)["state"] == "succeeded"


@pytest.mark.disruptive
def test_what_a_cordoned_node_cannot_take_goes_elsewhere_and_the_next_at_once(forgetful: Release) -> None:
    node = home(forgetful, "node/cordoned")
    with cordoned(forgetful.cluster, node):
        name = forgetful.build("node/cordoned", forgetful.commit("node/cordoned", {"Dockerfile": SMALL}))
        forgetful.wait(name, lambda build: says_unschedulable(build["waiting"]))
        build = forgetful.ended(name)
        taken_back, ran = build["attempts"]
        assert (taken_back["node"], taken_back["state"], taken_back["reason"]) == (node, "failed", "infrastructure")
        assert says_unschedulable(taken_back["message"])
        assert (ran["node"], build["state"]) == (other(forgetful, node), "succeeded")
        event = forgetful.arrived("first", name, "retrying")
        assert event.extensions["reason"] == "infrastructure"
        build = built(forgetful, "node/cordoned")
        assert (build["node"], build["attempt"]) == (other(forgetful, node), 1), "the node is left out for a while"


@pytest.mark.disruptive
def test_with_all_nodes_cordoned_a_build_waits_says_why_and_runs_when_one_is_back(forgetful: Release) -> None:
    cluster = forgetful.cluster
    node = home(forgetful, "node/none")
    with cordoned(cluster, other(forgetful, node)):
        with cordoned(cluster, node):
            name = forgetful.build("node/none", forgetful.commit("node/none", {"Dockerfile": SMALL}))
            forgetful.wait(name, lambda build: says_unschedulable(build["waiting"]))
        build = forgetful.ended(name)
        assert (build["state"], build["attempt"], build["node"]) == ("succeeded", 1, node)


def test_where_the_daemons_folder_cannot_be_mounted_it_says_so_and_goes_elsewhere(forgetful: Release) -> None:
    node = home(forgetful, "node/folder")
    folder = sockets(forgetful)
    why = f"The daemon's folder {folder} does not exist on {node}: the daemon's pod creates it."
    with replaced_by_a_file(node, folder):
        name = forgetful.build("node/folder", forgetful.commit("node/folder", {"Dockerfile": SMALL}))
        forgetful.wait(name, lambda build: build["waiting"] == why)
        build = forgetful.ended(name)
        taken_back, ran = build["attempts"]
        assert (taken_back["node"], taken_back["reason"], taken_back["message"]) == (node, "infrastructure", why)
        assert (ran["node"], build["state"]) == (other(forgetful, node), "succeeded")
        assert ready(forgetful, node), "the daemon there knows nothing of it"
        build = built(forgetful, "node/folder")
        assert (build["node"], build["attempt"]) == (other(forgetful, node), 1)


def test_without_any_node_one_attempt_asks_for_one_and_becomes_the_build(
    cluster: Cluster, registry: Registry, host: GitHost
) -> None:
    pool = {f"kiln.dev/pool-{secrets.token_hex(3)}": "builds"}
    settings = {"max_attempts": 1, "pending_grace": "2s", "scale_up_after": "3s"}
    with released(cluster, registry, host, settings, nodeSelector=pool) as release:
        names = [release.build(path, release.commit(path, {"Dockerfile": SMALL})) for path in ("z/1", "z/2", "z/3")]
        for name in names:
            release.wait(name, lambda build: build["waiting"] == "No node has a ready Docker daemon.")
        until(release.pods)
        (pod,) = release.pods()
        assert pod["spec"]["nodeSelector"] == pool, "what an autoscaler looks at"
        assert "metadata.name" not in json.dumps(pod["spec"].get("affinity")), "no node is named"
        asked = pod["metadata"]["labels"]["kiln.dev/build"]
        release.wait(asked, lambda build: says_unschedulable(build["waiting"]))
        until(lambda: age(pod) > 10)  # several times pending_grace and scale_up_after
        assert [_uid(pod) for pod in release.pods()] == [_uid(pod)]
        assert {release.one(name)["state"] for name in names} == {"queued"}
        node = cluster.workers[-1]
        with labelled(cluster, node, pool):
            ended = {name: release.ended(name, LONG) for name in names}
        assert {(build["state"], build["node"]) for build in ended.values()} == {("succeeded", node)}
        # The other builds have such a short grace that a pod which starts slowly is withdrawn. That does not count.
        assert ended[asked]["attempt"] == 1
        assert [_uid(pod) for pod in release.pods(asked)] == [_uid(pod)]


# ---- Upgrades -----------------------------------------------------------------------------------------------------


def test_the_daemons_image_is_upgraded_while_builds_run(placed: Release, next_daemon: dict[str, str]) -> None:
    """Running builds succeed. The upgrade takes one node after the other, and no build begins on the current one."""
    before = {_uid(pod) for pod in placed.dockerd().values()}
    running = held(placed, *(f"upgrade/{number}" for number in range(4)))
    placed.upgrade(wait=False, dockerd=PATIENT | {"image": next_daemon})
    until(lambda: stopping(placed))
    (node,) = stopping(placed)
    old = placed.dockerd()[node]
    there = {name for name in running if placed.one(name)["node"] == node}
    assert len(there) == 2
    for name in running.keys() - there:
        let_go(running[name])
    for number in range(4):
        build = built(placed, f"upgrade/{number}")
        assert (build["node"], build["attempt"]) == (other(placed, node), 1)
    assert _uid(placed.dockerd()[node]) == _uid(old), "it waits for its builds"
    for name in there:
        let_go(running[name])
    builds = [placed.ended(name) for name in running]
    assert {(build["state"], build["attempt"]) for build in builds} == {("succeeded", 1)}
    rollout = ["daemonset", f"--selector={placed.labels}", f"--namespace={placed.namespace}"]
    placed.cluster.kubectl("rollout", "status", *rollout, f"--timeout={LONG:.0f}s")
    now = placed.dockerd().values()
    assert {pod["spec"]["containers"][0]["image"] for pod in now} == {":".join(next_daemon.values())}
    assert not before & {_uid(pod) for pod in now}


@pytest.fixture
def next_daemon(cluster: Cluster) -> dict[str, str]:
    """Tag the daemon's image under another name, since a DaemonSet compares names only."""
    image = {"repository": "kiln-test/dockerd", "tag": DAEMON.partition(":")[2]}
    names = [f"docker.io/library/{DAEMON}", f"docker.io/{':'.join(image.values())}"]
    for node in cluster.workers:
        run("docker", "exec", node, "ctr", "--namespace=k8s.io", "images", "tag", "--force", *names)
    return image


# ---- Memory -------------------------------------------------------------------------------------------------------

HUNGRY = """FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "busybox sleep {seconds} && busybox dd if=/dev/zero of=/dev/null bs=1G count=1"]
"""
"""A Dockerfile whose step allocates a gigabyte after some seconds."""


def test_a_step_without_enough_memory_is_tried_once_more_alone_on_its_node(
    cluster: Cluster, registry: Registry, host: GitHost
) -> None:
    """The limit covers the daemon and all its builds, but the kernel kills only the step that exceeds it."""
    settings = {"builds_per_node": 2, "max_attempts": 2}
    with released(cluster, registry, host, settings, resources={"limits": {"memory": "512Mi"}}) as release:
        commit, seconds = timed(release, "memory/hungry", HUNGRY, 8)
        name = release.build("memory/hungry", commit)
        release.step_runs(name, seconds)
        release.wait(name, lambda build: build["attempt"] == 2)
        others = [release.build(path, release.running(path, 6)[0]) for path in (f"memory/{n}" for n in range(4))]
        build = release.ended(name, LONG)
        assert (build["state"], build["reason"], len(build["attempts"])) == ("failed", "infrastructure", 2)
        for attempt in build["attempts"]:
            assert attempt["reason"] == "infrastructure"
            assert "Not enough memory" in attempt["message"]
        for word in ("retrying", "failed"):
            event = release.arrived("first", name, word)
            assert event.extensions["reason"] == "infrastructure"
        assert isinstance(event.data, dict)
        assert "exit code: 137" in event.data["log"]["tail"]
        for one in others:
            build = release.ended(one, LONG)
            assert (build["state"], build["attempt"]) == ("succeeded", 1)
        _, second = release.pods(name)
        neighbours = [pod for one in others for pod in release.pods(one) if on(pod) == on(second)]
        assert all(most_at_once([second, pod]) == {on(second): 1} for pod in neighbours), "it has its node to itself"
        assert set(release.most_at_once().values()) <= {1, 2}
        assert set(restarts(release)) == {0}, "the daemons have lived on"


# ---- Temporary changes of nodes and daemons -----------------------------------------------------------------------


@contextmanager
def labelled(cluster: Cluster, node: str, labels: dict[str, str]) -> Iterator[None]:
    change_node(cluster, node, {"metadata": {"labels": labels}})
    try:
        yield
    finally:
        change_node(cluster, node, {"metadata": {"labels": dict.fromkeys(labels)}})


@contextmanager
def replaced_by_a_file(node: str, folder: str) -> Iterator[None]:
    """Replace the folder by a file. The daemon, which has the folder mounted, keeps running."""
    run("docker", "exec", node, "sh", "-ec", f"mv {folder} {folder}.away; touch {folder}")
    try:
        yield
    finally:
        run("docker", "exec", node, "sh", "-ec", f"rm {folder}; mv {folder}.away {folder}")


@contextmanager
def unready(release: Release, node: str) -> Iterator[None]:
    """Replace the node's daemon by one that never becomes ready.

    The test holds the lock of the daemon's folder, as a daemon would that was deleted by force and still runs.
    """
    lock = f"/var/lib/kiln/{release.namespace}_{release.name}/kiln.lock"
    script = f"echo asking; flock {lock} sh -c 'echo holding; cat'"
    command = ["docker", "exec", "--interactive", node, "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin
        assert holder.stdout
        try:
            assert holder.stdout.readline() == "asking\n"
            delete_daemon(release, node)
            assert holder.stdout.readline() == "holding\n"
            until(lambda: node in release.dockerd())
            yield
        finally:
            with suppress(BrokenPipeError):
                holder.stdin.close()
            holder.wait(60)
            until(lambda: ready(release, node), LONG)


def delete_daemon(release: Release, node: str, *options: str) -> None:
    pod = release.dockerd()[node]["metadata"]["name"]
    release.cluster.kubectl("delete", "pod", pod, f"--namespace={release.namespace}", *options)


HELD = """FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "busybox sleep {seconds}; true"]
"""
"""A Dockerfile whose step succeeds as soon as the test ends its sleep."""


def held(release: Release, *paths: str) -> dict[str, str]:
    """Start a build of each path and return the seconds of each step's sleep by build name, for `let_go`."""
    commits = [timed(release, path, HELD, 500) for path in paths]
    names = [release.build(path, commit) for path, (commit, _) in zip(paths, commits, strict=True)]
    running = {name: seconds for name, (_, seconds) in zip(names, commits, strict=True)}
    until(lambda: all(map(sleepers, running.values())), LONG)
    return running


def let_go(seconds: str) -> None:
    for process in sleepers(seconds):
        os.kill(process, signal.SIGTERM)


def timed(release: Release, path: str, dockerfile: str, seconds: int) -> tuple[str, str]:
    """Commit a Dockerfile whose step sleeps about `seconds`; return the commit and the exact seconds."""
    exactly = f"{seconds}.{secrets.randbelow(10**9):09}"
    return release.with_busybox(path, dockerfile.format(seconds=exactly)), exactly


# ---- Observations -------------------------------------------------------------------------------------------------


def built(release: Release, path: str) -> dict[str, Any]:
    """Build a new commit and return the ended build."""
    build = release.ended(release.build(path, release.commit(path, {"Dockerfile": SMALL})))
    assert build["state"] == "succeeded", release.log(build["name"])
    return build


def home(release: Release, path: str) -> str:
    """Return the node that the repository's builds prefer."""
    build = built(release, path)
    assert build["attempt"] == 1
    return str(build["node"])


def other(release: Release, node: str) -> str:
    (found,) = {*release.cluster.workers} - {node}
    return found


def says_unschedulable(sentence: str | None) -> bool:
    return (sentence or "").startswith("No node takes the build pod: 0/3 nodes are available")


def sockets(release: Release) -> str:
    return f"/var/run/kiln/{release.namespace}_{release.name}"


def ready(release: Release, node: str) -> bool:
    pod = release.dockerd().get(node)
    return pod is not None and "deletionTimestamp" not in pod["metadata"] and bool(conditions(pod).get("Ready"))


def conditions(pod: Object) -> dict[str, bool]:
    return {one["type"]: one["status"] == "True" for one in pod["status"].get("conditions", [])}


def stopping(release: Release) -> list[str]:
    """Return the nodes whose daemon is terminating."""
    return [node for node, pod in release.dockerd().items() if "deletionTimestamp" in pod["metadata"]]


def restarts(release: Release) -> Iterable[int]:
    for pod in release.dockerd().values():
        yield from (status["restartCount"] for status in pod["status"]["containerStatuses"])


def on(pod: Object) -> str | None:
    node: str | None = pod["spec"].get("nodeName")
    return node


def age(pod: Object) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(pod["metadata"]["creationTimestamp"])).total_seconds()


def _uid(thing: Object | None) -> str | None:
    uid: str | None = thing["metadata"]["uid"] if thing else None
    return uid
