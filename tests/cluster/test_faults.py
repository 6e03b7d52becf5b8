"""Faults around Kiln while builds run: cut connections, a killed daemon, a stopped worker, a paused leader.

Web and controllers reach the API server, the registry and the first sink through proxies. Two workers have one slot
each, so two running builds occupy one node each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from tests.cluster.exactly_once import TAKEOVER, check_exactly_once
from tests.parts.cluster import Cluster, Object, Release, cordoned, run
from tests.parts.githost import GitHost
from tests.parts.installation import PATIENCE, SMALL
from tests.parts.kiln import until
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(240)

OUTAGE = 60.0
PAUSE = 30.0
LOST = 240.0
"""Seconds until Kiln gives up a stopped worker.

Kubernetes takes 50 to detect it, and build pods tolerate it for 60. Then they must go within 30, and may take as long
again.
"""


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[Proxy]:
    with Proxy(cluster.api_server, cluster.gateway) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def to_registry(cluster: Cluster, registry: Registry) -> Iterator[Proxy]:
    with Proxy((registry.address, registry.port), cluster.gateway) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def to_first(cluster: Cluster) -> Iterator[Proxy]:
    """The proxy before the first sink, whose address the release sets."""
    with Proxy(("", 0), cluster.gateway) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def installed(
    cluster: Cluster, registry: Registry, host: GitHost, api: Proxy, to_registry: Proxy, to_first: Proxy
) -> Iterator[Release]:
    """A release whose web runs on the worker that no test stops.

    Otherwise requests would hang until Kubernetes detects that web's node is gone.
    """
    with Release(
        cluster,
        registry=registry,
        host=host,
        api_proxy=api,
        sink_proxies={"first": to_first},
        through=to_registry.address,
        values={"web": {"nodeSelector": {"kubernetes.io/hostname": cluster.workers[0]}}},
        builds_per_node=1,
    ) as release:
        yield release


@pytest.fixture
def between(installed: Release) -> Release:
    """The release in its original state, independent of the previous test."""
    installed.recovered()
    until(installed.leader)
    return installed


@contextmanager
def away(proxy: Proxy) -> Iterator[None]:
    proxy.refuse()
    try:
        yield
    finally:
        proxy.accept()


def until_over(began: datetime, seconds: float) -> None:
    """Sleep until the end of a fault that lasts `seconds` from `began`."""
    time.sleep(max((began + timedelta(seconds=seconds) - datetime.now(UTC)).total_seconds(), 0))


@dataclass
class Builds:
    """Builds under way whose results a test checks at the end: their commits by name."""

    release: Release
    commits: dict[str, str] = field(default_factory=dict)

    def run(self, path: str, seconds: int) -> tuple[str, str]:
        """Start a build whose step sleeps; return its name and the exact seconds."""
        commit, exactly = self.release.running(path, seconds)
        return self._ask(path, commit), exactly

    def small(self, path: str) -> str:
        return self._ask(path, self.release.commit(path, {"Dockerfile": SMALL}))

    def _ask(self, path: str, commit: str) -> str:
        name = self.release.build(path, commit)
        self.commits[name] = commit
        return name

    def each_on_its_node(self, word: str, seconds: int) -> dict[str, str]:
        """Start two builds and return them by node once both run."""
        started = [self.run(f"ada/{word}-{number}", seconds) for number in (1, 2)]
        for name, exactly in started:
            self.release.step_runs(name, exactly)
        found = {self.release.one(name)["node"]: name for name, _ in started}
        assert len(found) == 2
        return found

    def all_once(self, attempts: int = 1) -> None:
        """Check that each build ended once after `attempts` attempts, and that no node ran two at a time."""
        for name, commit in self.commits.items():
            build = check_exactly_once(self.release, name, commit)
            assert [attempt["number"] for attempt in build["attempts"]] == [*range(1, attempts + 1)], build
        assert set(self.release.most_at_once().values()) == {1}


@pytest.fixture
def builds(between: Release) -> Builds:
    return Builds(between)


# ---- The API server -------------------------------------------------------------------------------------------------


def test_without_the_api_server_web_asks_to_try_again_and_then_takes_it(between: Release, api: Proxy) -> None:
    commit = between.commit("ada/refused", {"Dockerfile": SMALL})
    webhook = between.push("ada/refused", commit)
    with away(api):
        refused = between.deliver(webhook)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
    until(lambda: between.deliver(webhook).status_code == 202)
    (name,) = (build["name"] for build in between.deliver(webhook).json()["builds"])
    check_exactly_once(between, name, commit)


def test_cut_off_from_the_api_server_for_a_minute(between: Release, builds: Builds, api: Proxy) -> None:
    """The connection accepts packets and answers none. One build ends meanwhile; others wait."""
    (name, seconds), _ = builds.run("ada/cut-1", 20), builds.run("ada/cut-2", 70)
    builds.small("ada/cut-3")
    commit = between.commit("ada/cut-4", {"Dockerfile": SMALL})
    webhook = between.push("ada/cut-4", commit)
    between.step_runs(name, seconds)
    cut = datetime.now(UTC)
    api.drop = True
    try:
        answers = [between.deliver(webhook).status_code]
        until_over(cut, OUTAGE)
    finally:
        api.drop = False
        api.cut()
    mended = datetime.now(UTC)
    assert answers == [503]
    until(lambda: datetime.fromisoformat(between.lease()["renewTime"]) > mended, TAKEOVER)
    until(lambda: between.deliver(webhook).status_code == 202)
    (taken,) = (build["name"] for build in between.deliver(webhook).json()["builds"])
    builds.commits[taken] = commit
    builds.all_once()


# ---- The registry and a sink ----------------------------------------------------------------------------------------


def test_without_the_registry_a_push_is_tried_again(between: Release, builds: Builds, to_registry: Proxy) -> None:
    name, seconds = builds.run("ada/unpushed", 3)
    between.step_runs(name, seconds)
    with away(to_registry):
        between.wait(name, lambda build: build["attempts"] and build["attempts"][0]["state"])
    build = check_exactly_once(between, name, builds.commits[name])
    first, _ = build["attempts"]
    assert (first["state"], first["reason"]) == ("failed", "infrastructure")
    assert to_registry.address in first["message"]


def test_what_a_sink_could_not_take_is_sent_by_whoever_leads_then(
    between: Release, builds: Builds, to_first: Proxy
) -> None:
    with away(to_first):
        name = builds.small("ada/untold")
        between.wait(name, lambda build: build["state"] == "succeeded" and not between.events("first", name))
        between.arrived("second", name, "succeeded")
        leader = between.leader()
        assert leader
        gone = datetime.now(UTC)
        between.cluster.signal(leader, "KILL", "kiln controller")
        assert between.taken_over(gone) <= TAKEOVER
    builds.all_once()


# ---- A daemon, a leader, a worker -----------------------------------------------------------------------------------


def test_the_daemon_is_killed_under_a_build(between: Release, builds: Builds) -> None:
    name, seconds = builds.run("ada/daemonless", 5)
    between.step_runs(name, seconds)
    daemon = between.dockerd()[between.one(name)["node"]]
    between.cluster.signal(daemon, "KILL", "dockerd --exec-opt")
    build = check_exactly_once(between, name, builds.commits[name])
    first, second = build["attempts"]
    assert (first["state"], first["reason"], second["state"]) == ("failed", "infrastructure", "succeeded")


def test_a_leader_that_was_paused_does_nothing_any_more(between: Release, builds: Builds) -> None:
    """Builds run, end and begin without the paused leader, which must not apply its outdated plan when it resumes."""
    builds.each_on_its_node("paused", 15)
    for number in (3, 4):
        builds.small(f"ada/paused-{number}")
    leader = between.leader()
    assert leader
    paused = datetime.now(UTC)
    between.cluster.signal(leader, "STOP", "kiln controller")
    try:
        took = between.taken_over(paused)
        until_over(paused, PAUSE)
    finally:
        between.cluster.signal(leader, "CONT", "kiln controller")
    follows = between.lease()["holderIdentity"]
    assert took <= TAKEOVER
    builds.all_once()
    assert between.lease()["holderIdentity"] == follows
    (resumed,) = [
        pod for pod in between.objects("pods", "controller") if pod["metadata"]["uid"] == leader["metadata"]["uid"]
    ]
    assert resumed["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.disruptive
@pytest.mark.timeout(480)
def test_a_worker_stops_with_a_build_and_the_leader_on_it(between: Release, builds: Builds) -> None:
    stays, stops = between.cluster.workers
    lead_on(between, stops)
    found = builds.each_on_its_node("stopped", 20)
    gone = datetime.now(UTC)
    run("docker", "kill", stops)
    try:
        assert between.taken_over(gone) <= TAKEOVER
        check_exactly_once(between, found[stays], builds.commits[found[stays]])
        later = builds.small("ada/stopped-3")
        check_exactly_once(between, later, builds.commits[later])
        build = check_exactly_once(between, found[stops], builds.commits[found[stops]], LOST)
    finally:
        run("docker", "start", stops)
        run_again = ["wait", "--for=condition=Ready", f"node/{stops}", "--timeout=120s"]
        between.cluster.kubectl(*run_again)
    first, second = build["attempts"]
    assert (first["node"], first["reason"], second["node"]) == (stops, "infrastructure", stays)
    assert set(between.most_at_once().values()) == {1}


def lead_on(release: Release, node: str) -> None:
    """Move the leader to `node` and the standby away from it.

    Leaders elsewhere are deleted until one leads there; then a standby there is deleted, with the node cordoned.
    """

    def leads_there() -> bool:
        leader = release.leader()
        if leader is None or leader["spec"]["nodeName"] == node:
            return leader is not None
        delete(leader)
        return False

    def delete(pod: Object) -> None:
        release.cluster.kubectl("delete", "pod", pod["metadata"]["name"], f"--namespace={release.namespace}")
        release.recovered()

    until(leads_there, PATIENCE)
    with cordoned(release.cluster, node):
        for pod in release.objects("pods", "controller"):
            if pod["metadata"]["name"] not in release.lease()["holderIdentity"]:
                delete(pod)
