"""A storm of webhooks: each is answered, none is lost or built twice, and other namespaces are not delayed.

A queue of suspended Jobs would violate the last point. The whole cluster shares the Job controller, and a thousand Jobs
keep it busy for a minute.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import pytest
import requests

from tests.cluster.conftest import SETTING_UP
from tests.parts.cluster import BUSYBOX, Cluster, Object, Release, most_at_once
from tests.parts.githost import GitHost, git
from tests.parts.installation import ENDED, SMALL, Webhook, http
from tests.parts.kiln import until
from tests.parts.pods import within
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry

pytestmark = [pytest.mark.timeout(SETTING_UP["release"] + 600), pytest.mark.alone]

SLOTS = 4
REFS = 5
"""Refs that contain each commit of the first storm: five pushes, five causes, one build."""
BUILT = 16
"""Builds of a storm that run to their end, twice the number of slots.

Each costs seconds of both cores, so the first test cancels the others, and the second leaves them in the queue.
"""
OUR_OWN = 3
"""Concurrent requests of the test itself, which are not part of the storm."""
HANGS = 35.0
"""Seconds for which the API server does not answer."""
ANSWERED = 10.0
"""Seconds after which Git hosts abandon a webhook."""


@pytest.fixture
def hanging(cluster: Cluster, registry: Registry, host: GitHost) -> Iterator[tuple[Release, Proxy]]:
    """A release without a node for builds, and the proxy between it and the API server."""
    config = {"triggers": [{"name": "every", "push": {"branches": ["*"]}}]}
    nowhere = {"dockerd": {"nodeSelector": {"kiln.dev/storm": "nowhere"}}}
    with (
        Proxy(cluster.api_server, cluster.gateway) as api,
        Release(
            cluster,
            registry=registry,
            host=host,
            sinks=[],
            config=config,
            values=nowhere,
            api_proxy=api,
            max_queued=2000,
        ) as release,
    ):
        yield release, api


def test_an_api_server_that_hangs_in_a_storm(hanging: tuple[Release, Proxy]) -> None:
    """Every webhook is answered in time, `kiln sync` finds the refused ones, and no build is incomplete."""
    release, api = hanging
    branches = commits(release.host, "storm/hangs", 500)
    pushes = [release.push("storm/hangs", commit, ref=f"refs/heads/{branch}") for branch, commit in branches.items()]
    with ThreadPoolExecutor(1) as aside:
        storming = aside.submit(deliver, release, pushes)
        until(lambda: len(everything(release)) >= 20)
        api.drop = True
        time.sleep(HANGS)  # the duration of the fault
        answers = storming.result()
    api.drop = False
    api.cut()
    assert {answer.status for answer in answers} == {202, 503}, "the API server hangs while they come"
    assert max(answer.seconds for answer in answers) <= ANSWERED
    taken = {answer.said for answer in answers if answer.status == 202}
    until(lambda: release.get("api/v1/builds").status_code == 200)
    until(lambda: taken <= {build["name"] for build in everything(release)})
    there = everything(release)
    assert len(there) < 500, "what is refused is not written behind the sender's back"
    url = release.host.url("storm/hangs")
    until(release.leader)
    said = within(release.cluster, release.leader() or {}, "kiln", "sync", url).splitlines()
    assert said[0] == f"{url}: {500 - len(there)} requested, {len(there)} known already"
    until(lambda: len(everything(release)) == 500)
    builds = everything(release)
    assert {build["commit"] for build in builds} == {*branches.values()}
    assert {build["state"] for build in builds} == {"queued"}


@pytest.fixture(scope="module")
def storm(cluster: Cluster, registry: Registry, host: GitHost) -> Iterator[Release]:
    config = {"triggers": [{"name": "every", "push": {"branches": ["*"]}}]}
    with Release(
        cluster, registry=registry, host=host, sinks=["sink"], config=config, max_queued=2000, builds_per_node=SLOTS
    ) as release:
        yield release


@pytest.fixture
def elsewhere(cluster: Cluster) -> Iterator[str]:
    """A namespace without any relation to Kiln."""
    name = f"elsewhere-{secrets.token_hex(3)}"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def test_five_hundred_webhooks_at_once_for_a_hundred_commits_are_a_hundred_builds(storm: Release) -> None:
    pushes = [
        storm.push(path, commit, ref=f"refs/heads/{branch}-{ref}")
        for path in ("storm/a", "storm/b", "storm/c", "storm/d", "storm/e")
        for branch, commit in commits(storm.host, path, 20).items()
        for ref in range(REFS)
    ]
    answers = deliver(storm, pushes)
    check_taken(answers, 500)
    asked = {answer.said for answer in answers}
    assert len(asked) == 100
    until(lambda: built(storm, asked) >= BUILT, 200)
    assert cancel(storm, asked) <= {202, 409}, "409: it has ended by itself"
    until(lambda: asked <= {name for name, _ in ends(storm)}, 200)
    builds = read(storm, asked)
    assert {len(build["causes"]) for build in builds} == {REFS}
    assert {build["state"] for build in builds} == {"succeeded", "cancelled"}
    succeeded = [build for build in builds if build["state"] == "succeeded"]
    assert len(succeeded) >= BUILT
    assert {build["attempt"] for build in succeeded} == {1}
    for build in succeeded:
        assert build["image"]["digest"] == storm.digest(build["image"]["repository"], build["commit"])
    told_once(storm, builds)


def test_a_thousand_commits_at_once_are_recorded_and_nobody_elsewhere_waits(
    storm: Release, cluster: Cluster, elsewhere: str
) -> None:
    pushes = [
        storm.push(path, commit, ref=f"refs/heads/{branch}")
        for path in [f"storm/many-{number}" for number in range(10)]
        for branch, commit in commits(storm.host, path, 100).items()
    ]
    with ThreadPoolExecutor(1) as aside:
        storming = aside.submit(deliver, storm, pushes)
        starts = [seconds_to_start(cluster, elsewhere)]
        answers = storming.result()
    starts.append(seconds_to_start(cluster, elsewhere))
    check_taken(answers, 1000)
    asked = {answer.said for answer in answers}
    assert len(asked) == 1000
    assert asked <= {build["name"] for build in everything(storm)}
    until(lambda: built(storm, asked) >= BUILT, 200)
    starts.append(seconds_to_start(cluster, elsewhere))
    told = {what: times for what, times in ends(storm).items() if what[0] in asked}
    assert {word for _, word in told} == {"succeeded"}
    assert {*told.values()} == {1}
    check_slots(storm, asked)
    print(f"Jobs of another namespace ran after {', '.join(f'{seconds:.1f}' for seconds in starts)} s")
    assert max(starts) < 5


def commits(host: GitHost, path: str, number: int) -> dict[str, str]:
    """Create `number` unrelated commits with one Git command and return them by branch."""
    host.create(path)
    branches = [f"branch-{index}" for index in range(number)]
    stream = "".join(_imported(branch) for branch in branches)
    bare = host.bare(path)
    git("fast-import", "--quiet", cwd=bare, stdin=stream)
    shown = git("for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", "refs/heads", cwd=bare)
    return dict(line.split() for line in shown.splitlines())


def _imported(branch: str) -> str:
    """Source: https://git-scm.com/docs/git-fast-import#_input_format"""
    files = {"Dockerfile": SMALL, "page": secrets.token_hex(8)}
    said = [f"commit refs/heads/{branch}\ncommitter Ada <ada@example.org> 0 +0000\n{_data('A commit')}"]
    return "".join([*said, *(f"M 644 inline {name}\n{_data(content)}" for name, content in files.items()), "\n"])


def _data(content: str) -> str:
    return f"data {len(content)}\n{content}\n"


class Answer(NamedTuple):
    """The answer to a webhook, or status 0 without one. `said` is the build's name, the body or the error."""

    status: int
    said: str
    seconds: float


def deliver(release: Release, webhooks: Sequence[Webhook]) -> list[Answer]:
    """Send all webhooks at the same time and once each, as Git hosts do, from a separate process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as host:
        took, answers = host.submit(_deliver, f"{release.url}webhooks/github", webhooks).result()
    slowest = max(answer.seconds for answer in answers)
    print(f"{len(webhooks)} webhooks in {took:.1f} s; the slowest had its answer after {slowest:.1f} s")
    return answers


def _deliver(address: str, webhooks: Sequence[Webhook]) -> tuple[float, list[Answer]]:
    """Return the seconds for all webhooks, and each answer."""

    def one(webhook: Webhook) -> Answer:
        began = time.monotonic()
        try:
            answer = http("POST", address, data=webhook.body, headers=webhook.headers, timeout=60)
        except requests.RequestException as error:
            return Answer(0, str(error), time.monotonic() - began)
        said = answer.json()["builds"][0]["name"] if answer.status_code == 202 else answer.text
        return Answer(answer.status_code, said, answer.elapsed.total_seconds())

    with ThreadPoolExecutor(len(webhooks)) as senders:
        began = time.monotonic()
        answers = list(senders.map(one, webhooks))
        return time.monotonic() - began, answers


def check_taken(answers: Sequence[Answer], number: int) -> None:
    refused = Counter(answer.said for answer in answers if answer.status != 202)
    assert not refused
    assert len(answers) == number


def everything(release: Release) -> list[dict[str, Any]]:
    """Return all builds from the list, page by page."""
    found: list[dict[str, Any]] = []
    more: str | None = ""
    while more is not None:
        page = release.get(f"api/v1/builds?limit=200&continue={more}" if more else "api/v1/builds?limit=200").json()
        found += page["items"]
        more = page["continue"]
    return found


def read(release: Release, names: Collection[str]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(OUR_OWN) as many:
        return list(many.map(release.one, names))


def built(release: Release, names: Collection[str]) -> int:
    """Return how many of the builds have succeeded."""
    return sum(name in names and word == "succeeded" for name, word in ends(release))


def cancel(release: Release, names: Collection[str]) -> set[int]:
    """Cancel the builds and return the statuses of the answers."""
    with ThreadPoolExecutor(OUR_OWN) as many:
        return {*many.map(lambda name: release.cancel(name).status_code, names)}


def ends(release: Release) -> Counter[tuple[str | None, str]]:
    """Count the final events at the sink by build and state; a redelivered event counts once.

    A client that requests an ended build causes a further event of that end, which does not count.
    """
    told = {event.id: event for event in release.sinks["sink"].events if event.id.count(".") == 2}
    words = [(event.subject, event.type.split(".")[3]) for event in told.values()]
    return Counter((name, word) for name, word in words if word in ENDED)


def told_once(release: Release, builds: list[dict[str, Any]]) -> None:
    names = {build["name"] for build in builds}
    told = {what: times for what, times in ends(release).items() if what[0] in names}
    assert told == Counter((build["name"], build["state"]) for build in builds)
    check_slots(release, {build["name"] for build in builds if build["state"] != "cancelled"})


def check_slots(release: Release, names: Collection[str]) -> None:
    pods = [pod for pod in release.pods() if pod["metadata"]["labels"]["kiln.dev/build"] in names]
    assert max(most_at_once(pods).values()) <= SLOTS


def seconds_to_start(cluster: Cluster, namespace: str) -> float:
    """Return the seconds from the creation of a Job to the start of its container.

    The container reports the time itself, because Kubernetes records whole seconds. All nodes run on this machine and
    share its clock. Like builds (50m each), the Job requests processor time. Otherwise it would get almost none next to
    them, and the test would measure only that.
    """
    name = f"job-{secrets.token_hex(3)}"
    say = ["sh", "-c", "cut -d' ' -f1 /proc/uptime >/dev/termination-log"]
    share = {"requests": {"cpu": "100m"}}
    container = {"name": "it", "image": BUSYBOX, "imagePullPolicy": "Never", "command": say, "resources": share}
    job = {
        "metadata": {"name": name},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    cluster.api("POST", f"/apis/batch/v1/namespaces/{namespace}/jobs", json=job).raise_for_status()

    def said() -> list[str]:
        query = {"labelSelector": f"job-name={name}"}
        pods: list[Object] = cluster.api("GET", f"/api/v1/namespaces/{namespace}/pods", params=query).json()["items"]
        states = [one["state"] for pod in pods for one in pod["status"].get("containerStatuses", [])]
        return [state["terminated"]["message"] for state in states if "terminated" in state]

    until(said, 60)
    return float(said()[0]) - began
