"""Several releases in one cluster, an uninstalled release, and a release without a leader."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.parts import machine
from tests.parts.cluster import Cluster, Object, Release, run
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL
from tests.parts.kiln import until
from tests.parts.pods import Pod, within
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(420)


@dataclass(frozen=True)
class Neighbours:
    """Three releases: `kiln` and `other` share a namespace, `kiln` and `apart` a name, and all three the nodes."""

    kiln: Release
    other: Release
    apart: Release
    synced: str
    """The URL of a repository that `other` lists and does not poll."""

    @property
    def all(self) -> list[Release]:
        return [self.kiln, self.other, self.apart]


@pytest.fixture(scope="module")
def neighbours(release: Release, registry: Registry, host: GitHost) -> Iterator[Neighbours]:
    """Three releases, of which `other` polls a repository and has one for `helm test`."""
    paths = {use: f"listed/{use}-{secrets.token_hex(3)}" for use in ("polled", "synced", "tested")}
    namespace = f"kiln-two-{secrets.token_hex(3)}"
    kiln = Release(release.cluster, registry=registry, host=host, namespace=namespace, sinks=["first"])
    for path in paths.values():
        kiln.commit(path, {"Dockerfile": SMALL})
    other = Release(
        release.cluster,
        registry=registry,
        host=host,
        namespace=namespace,
        name="other",
        sinks=["first"],
        config={
            "repositories": [
                {"url": host.url(paths["polled"]), "poll": "10m"},
                {"url": host.url(paths["synced"])},
            ]
        },
        values={"tests": {"repository": host.url(paths["tested"])}},
    )
    with ExitStack() as stack:
        stack.enter_context(kiln)
        stack.enter_context(other)
        yield Neighbours(kiln, other, release, host.url(paths["synced"]))


# Several releases. ---------------------------------------------------------------------------------------------------


def test_releases_build_the_same_commit_at_once_and_do_not_see_each_other(
    neighbours: Neighbours, release: Release
) -> None:
    """The builds together exceed the slots of one release, so each release has its own slots."""
    commit, exactly = release.running("ada/shared", 90)
    builds = {one.namespace + one.name: one.build("ada/shared", commit) for one in neighbours.all}
    names = list(builds.values())
    assert len(set(names)) == 3
    for one in neighbours.all:
        one.wait(builds[one.namespace + one.name], lambda build: build["state"] == "running")
    release.step_runs(builds[release.namespace + release.name], exactly)
    for one in neighbours.all:
        own = builds[one.namespace + one.name]
        assert not {build["name"] for build in one.listed()} & (set(names) - {own})
        for foreign in set(names) - {own}:
            assert one.get(f"api/v1/builds/{foreign}").status_code == 404
            assert one.get(f"api/v1/builds/{foreign}/log").status_code == 404
            assert one.cancel(foreign).status_code == 404
        assert [job["metadata"]["name"] for job in one.jobs(own)] == [f"{own}-1"]
        assert one.one(own)["state"] == "running"
    for one in neighbours.all:
        own = builds[one.namespace + one.name]
        assert one.cancel(own).status_code == 202
        assert one.ended(own)["reason"] == "requested"
        assert [build for build in names if _ended(neighbours, build)] == names[: names.index(own) + 1]


def _ended(neighbours: Neighbours, build: str) -> bool:
    (found,) = [
        answer.json() for one in neighbours.all if (answer := one.get(f"api/v1/builds/{build}")).status_code == 200
    ]
    return bool(found["state"] == "cancelled")


def test_each_release_has_a_lease_and_daemons_of_its_own(neighbours: Neighbours) -> None:
    leaders = {(one.namespace, str((one.leader() or {}).get("metadata", {}).get("name"))) for one in neighbours.all}
    assert len(leaders) == 3
    leases = [one.objects("leases") for one in neighbours.all]
    assert [[lease["metadata"]["name"] for lease in found] for found in leases] == [["kiln"], ["other-kiln"], ["kiln"]]
    assert len({socket for one in neighbours.all for socket in _sockets(one)}) == 3
    daemons = {
        (one.namespace, one.name, node): within(
            one.cluster, pod, "docker", "info", "--format={{.ID}}", container="dockerd"
        ).strip()
        for one in neighbours.all
        for node, pod in one.dockerd().items()
    }
    assert len(daemons) == len(set(daemons.values())) == 3 * len(neighbours.kiln.cluster.workers)


def _sockets(release: Release) -> set[str]:
    """Return the host folders of the sockets that the release's daemons and builds share."""
    template = release.cluster.get("configmaps", release.namespace, f"{release.labels}")
    (pod,) = [one["data"]["build-pod.yaml"] for one in template if "build-pod.yaml" in one.get("data", {})]
    found = set()
    for daemon in release.dockerd().values():
        (path,) = [one["hostPath"]["path"] for one in daemon["spec"]["volumes"] if one["name"] == "sockets"]
        assert f"path: {path}, " in pod
        found.add(path)
    return found


def test_each_release_pushes_its_own_image(neighbours: Neighbours, release: Release) -> None:
    commit = release.commit("ada/everywhere", {"Dockerfile": SMALL})
    builds = [one.build("ada/everywhere", commit) for one in neighbours.all]
    for one, name in zip(neighbours.all, builds, strict=True):
        build = one.ended(name)
        assert build["state"] == "succeeded", one.log(name)
        assert build["image"]["repository"].startswith(one.prefix)
        assert build["image"]["digest"] == one.digest(build["image"]["repository"], commit)
        assert {event.subject for event in one.sinks["first"].events} >= {name}
        assert not {event.subject for event in one.sinks["first"].events} & (set(builds) - {name})


# Commands inside a release. ------------------------------------------------------------------------------------------


def test_helm_test_builds_for_real(neighbours: Neighbours) -> None:
    release = neighbours.other
    namespace = f"--namespace={release.namespace}"
    said = release.cluster.helm("test", release.name, namespace, "--timeout=180s")
    assert "Phase:          Succeeded" in said
    (build,) = _built(release, "/listed/tested-")
    build = release.ended(build["name"])
    assert build["state"] == "succeeded"
    assert build["image"]["digest"] == release.digest(build["image"]["repository"], build["commit"])
    assert release.objects("pods", "test") == []


def test_everything_is_in_order_in_a_pod_of_web(neighbours: Neighbours) -> None:
    for one in neighbours.all:
        for pod in one.objects("pods", "web"):
            said = within(one.cluster, pod, "kiln", "check").splitlines()
            assert said[-1] == "Configuration is valid"
            assert not [line for line in said if line.startswith(("warning", "error"))]


def test_a_listed_repository_is_looked_at_by_the_leader_alone(neighbours: Neighbours) -> None:
    release = neighbours.other
    (build,) = _built(release, "/listed/polled-")
    assert [cause["by"] for cause in build["causes"]] == ["sync"]
    assert release.ended(build["name"])["state"] == "succeeded"
    leader = release.leader()
    assert leader
    controllers = release.objects("pods", "controller")
    assert len(controllers) == 2
    assert {pod["metadata"]["name"] for pod in controllers if _looks(release, pod)} == {leader["metadata"]["name"]}


def _built(release: Release, path: str) -> list[Object]:
    """Wait until the list shows builds of the repository, since each replica of web caches its list for two seconds."""
    found: list[Object] = []

    def there() -> list[Object]:
        found[:] = [one for one in release.listed() if path in one["repository"]]
        return found

    until(there)
    return found


def _looks(release: Release, controller: Object) -> float:
    """Return how often the process has polled a listed repository."""
    shown = Pod(release.cluster, controller, 9091).get("metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in shown if line.startswith("kiln_sync_looks_total{"))


def test_sync_in_a_pod_of_the_controller_asks_for_what_is_missing(neighbours: Neighbours) -> None:
    release = neighbours.other
    pod = release.objects("pods", "controller")[0]
    said = within(release.cluster, pod, "kiln", "sync", neighbours.synced).splitlines()
    assert said[0] == f"{neighbours.synced}: 1 requested, 0 known already"
    build = release.ended(said[1].split()[0])
    assert (build["state"], [cause["by"] for cause in build["causes"]]) == ("succeeded", ["sync"])
    assert build["image"]["digest"] == release.digest(build["image"]["repository"], build["commit"])


# Without a leader. ---------------------------------------------------------------------------------------------------


def test_without_a_controller_builds_wait_and_say_why(neighbours: Neighbours) -> None:
    release = neighbours.kiln
    commit = release.commit("ada/leaderless", {"Dockerfile": SMALL})
    _scale(release, 0)
    try:
        until(lambda: not release.objects("pods", "controller"), 60)
        name = release.build("ada/leaderless", commit)
        build = release.wait(name, lambda found: found["waiting"])
        assert build["state"] == "queued"
        assert build["waiting"] == ("No controller leads: the Lease kiln is not renewed. Check the controller's pods.")
    finally:
        _scale(release, 2)
    build = release.ended(name, 90)
    assert (build["state"], build["waiting"]) == ("succeeded", None)


def _scale(release: Release, replicas: int) -> None:
    namespace = f"--namespace={release.namespace}"
    release.cluster.kubectl("scale", f"deployment/{release.name}-controller", f"--replicas={replicas}", namespace)


# Uninstalling. -------------------------------------------------------------------------------------------------------

OUTLIVES = {"events", "events.events.k8s.io"}
"""Kubernetes' own events about deleted objects, which expire within an hour."""


def everything(cluster: Cluster, namespace: str) -> set[str]:
    """Return the names of all objects in a namespace."""
    listed = cluster.kubectl("api-resources", "--namespaced=true", "--verbs=list", "--output=name").split()
    kinds = ",".join(kind for kind in listed if kind not in OUTLIVES)
    return set(cluster.kubectl("get", kinds, f"--namespace={namespace}", "--output=name").split())


def test_nothing_is_left_of_a_release_that_is_taken_away(cluster: Cluster, registry: Registry, host: GitHost) -> None:
    """Uninstalling also removes ended, running and waiting builds.

    Only the folders that docs/cluster.md names remain on the hosts.
    """
    with Release(cluster, registry=registry, host=host, sinks=["first"], builds_per_node=1) as release:
        assert release.ended(release.build("ada/ended", release.commit("ada/ended", {"Dockerfile": SMALL})))
        for number in range(2 * len(cluster.workers)):
            path = f"ada/uninstalled-{number}"
            release.build(path, release.running(path, 300)[0])
        states = ["queued"] * 2 + ["running"] * 2 + ["succeeded"]
        until(lambda: sorted(build["state"] for build in release.listed()) == states)
        until(lambda: all(build["attempt"] == 1 for build in release.listed() if build["state"] == "running"))
        before = everything(cluster, release.namespace)
        assert len([name for name in before if name.startswith("job.batch/")]) == 3
        release.uninstall()
        given = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
        until(lambda: everything(cluster, release.namespace) == given, 120)
        for node in cluster.workers:
            folders = _folders(node, f"{release.namespace}_{release.name}")
            assert folders == _documented(release)
            run("docker", "exec", node, "rm", "-rf", *folders)


def _folders(node: str, name: str) -> list[str]:
    """Return Kiln's folders on a node whose names begin with `name`."""
    listed = run(
        "docker", "exec", node, "find", "/var/lib/kiln", "/var/run/kiln/", "-maxdepth", "1", "-name", f"{name}*"
    )
    return sorted(listed.split())


def _documented(release: Release) -> list[str]:
    name = f"{release.namespace}_{release.name}"
    text = (machine.ROOT / "docs/cluster.md").read_text()
    for folder in ("/var/lib/kiln/<namespace>_<release>", "/var/run/kiln/<namespace>_<release>`, `…_exec"):
        assert folder in text
    return [f"/var/lib/kiln/{name}", f"/var/run/kiln/{name}", f"/var/run/kiln/{name}_exec"]
