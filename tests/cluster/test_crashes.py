"""Kill web, controller and builder at every point where a crash could leave incomplete state.

The whole release runs on one worker, because files in a folder there arm the points and all of its pods mount that
folder. So one installation serves all of these tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import requests

from builds.faults import ONLY_LOCAL, Fault
from tests.cluster.exactly_once import TAKEOVER, check_exactly_once, word
from tests.cluster.fault_points import FaultPoints
from tests.parts.cluster import Cluster, Release
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, Webhook
from tests.parts.kiln import until
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(240)

SLOTS = 2
TWICE = (Fault.BUILDER_LOCKED, Fault.BUILDER_FETCHED)
"""Points at which a crash loses all work of the attempt, so that a second one follows.

After a later crash, the registry has the image with the attempt's label.
"""


@pytest.fixture(scope="module")
def points(cluster: Cluster) -> Iterator[FaultPoints]:
    with FaultPoints(cluster.workers[0]) as points:
        yield points


@pytest.fixture(scope="module")
def installed(cluster: Cluster, registry: Registry, host: GitHost, points: FaultPoints) -> Iterator[Release]:
    with Release(cluster, registry=registry, host=host, values=points.values, builds_per_node=SLOTS) as release:
        yield release


@pytest.fixture
def crashing(installed: Release) -> Release:
    """A release with a leader and a standby.

    Kubernetes delays each restart of a crashed container more, so this fixture replaces such pods.
    """
    restarted = [
        pod["metadata"]["name"]
        for pod in installed.objects("pods", "controller")
        if any(status["restartCount"] for status in pod["status"]["containerStatuses"])
    ]
    if restarted:
        installed.cluster.kubectl("delete", "pods", f"--namespace={installed.namespace}", *restarted)
    installed.recovered()
    until(installed.leader)
    return installed


@pytest.mark.parametrize("point", [point for point in Fault if point not in ONLY_LOCAL])
def test_killed_at_any_point_the_build_ends_once(crashing: Release, points: FaultPoints, point: Fault) -> None:
    path = f"ada/{point}"
    commit = crashing.commit(path, {"Dockerfile": SMALL})
    webhook = crashing.push(path, commit)
    points.arm(point)
    if point.startswith("web-"):
        with pytest.raises(requests.ConnectionError):
            crashing.deliver(webhook)
    (name,) = (build["name"] for build in answered(crashing, webhook).json()["builds"])
    build = check_exactly_once(crashing, name, commit)
    left_the_watch(crashing, name)

    assert point not in points.armed, f"{point} was never reached"
    died = point.startswith(("controller-", "engine-"))
    if died:
        until(lambda: controllers_died(crashing))  # the node reports the exit a moment later
    deaths = controllers_died(crashing)
    assert len(deaths) == (1 if died else 0)
    assert all(crashing.taken_over(death) <= TAKEOVER for death in deaths)
    assert [attempt["number"] for attempt in build["attempts"]] == ([1, 2] if point in TWICE else [1])
    for sink in crashing.sinks:
        events = [(word(event.type), event.id) for event in crashing.events(sink, name)]
        assert {kind for kind, _ in events} == {"queued", "started", "succeeded", *(["retrying"] * (point in TWICE))}
        # Delivery is at least once: only events in progress at the crash may be sent twice.
        assert len(events) - len({*events}) <= (2 if died else 0), events
    assert crashing.most_at_once()[points.node] <= SLOTS


def answered(release: Release, webhook: Webhook) -> requests.Response:
    """Deliver the webhook until it is answered, as a Git host repeats an unanswered delivery."""
    found: list[requests.Response] = []

    def asked() -> bool:
        with contextlib.suppress(requests.ConnectionError):
            found.append(release.deliver(webhook))
        return bool(found)

    until(asked)
    assert found[0].status_code == 202, found[0].text
    return found[0]


def left_the_watch(release: Release, name: str) -> None:
    open_ = ("configmaps", "build", "kiln.dev/open")
    until(lambda: name not in [record["metadata"]["name"] for record in release.objects(*open_)])


def controllers_died(release: Release) -> list[datetime]:
    """Return the times at which controllers' containers exited."""
    states = [
        status["state"] if "terminated" in status["state"] else status["lastState"]
        for pod in release.objects("pods", "controller")
        for status in pod["status"]["containerStatuses"]
    ]
    return [datetime.fromisoformat(state["terminated"]["finishedAt"]) for state in states if state]


@pytest.mark.parametrize("how", ["killed", "deleted"])
def test_what_runs_and_what_waits_goes_on_without_the_leader(crashing: Release, points: FaultPoints, how: str) -> None:
    """The next leader adopts running builds instead of repeating them, even if one ends while there is no leader."""
    commits = {
        f"ada/{how}-{number}": crashing.running(f"ada/{how}-{number}", 5 + 7 * number) for number in range(SLOTS)
    }
    names = {path: crashing.build(path, commit) for path, (commit, _) in commits.items()}
    for path, (_, seconds) in commits.items():
        crashing.step_runs(names[path], seconds)
    waiting = {
        path: crashing.commit(path, {"Dockerfile": SMALL}) for path in (f"ada/{how}-waits-{number}" for number in "123")
    }
    names |= {path: crashing.build(path, commit) for path, commit in waiting.items()}
    leader = crashing.leader()
    assert leader
    gone = datetime.now(UTC)
    if how == "killed":
        crashing.cluster.signal(leader, "KILL", "kiln controller")
    else:
        name, namespace = leader["metadata"]["name"], f"--namespace={crashing.namespace}"
        crashing.cluster.kubectl("delete", "pod", name, namespace, "--wait=false")
    assert crashing.taken_over(gone) <= TAKEOVER
    for path, commit in ({path: commit for path, (commit, _) in commits.items()} | waiting).items():
        build = check_exactly_once(crashing, names[path], commit)
        assert [attempt["number"] for attempt in build["attempts"]] == [1], build
    assert crashing.most_at_once() == {points.node: SLOTS}
