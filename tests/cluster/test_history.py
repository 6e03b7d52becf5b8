"""Thousands of ended builds cost the controller no memory, appear in lists and are deleted after their time."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any

import pytest

from builds.build import (
    Attempt,
    Build,
    BuildStatus,
    Cause,
    Delivery,
    DeliveryState,
    Image,
    Kind,
    Request,
    State,
    Timings,
)
from builds.build import build_name as named
from builds.engines.kubernetes import Release as Owner
from builds.engines.kubernetes.api import Absent, Api
from builds.engines.kubernetes.records import manifest
from tests.cluster.conftest import SETTING_UP, Configured
from tests.parts.cluster import BUSYBOX, Cluster, Object, Release
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL
from tests.parts.kiln import until
from tests.parts.pods import within
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(SETTING_UP["release"] + 300)

MANY = 5000
AT_ONCE = 16
LOG_HISTORY = 10
"""Seconds, and also the interval at which the controller reads ended builds."""
TWO_READS = 120
"""Time limit in seconds of two such readings, of all builds here."""
HISTORY = timedelta(days=7)
LOOKS = 7

Store = Callable[[Build], Object]


@pytest.fixture(scope="module")
def history(cluster: Cluster, registry: Registry, host: GitHost) -> Iterator[Release]:
    """A release with one controller, so that the leader is known."""
    one, node = {"replicas": 1}, {"kubernetes.io/hostname": cluster.workers[0]}
    values = {"web": one, "controller": one, "dockerd": {"nodeSelector": node}}
    with Release(
        cluster, registry=registry, host=host, sinks=["sink"], values=values, log_history=LOG_HISTORY
    ) as release:
        yield release


@pytest.fixture
def api(configured: Configured, history: Release) -> Iterator[Api]:
    api = Api(configured(), history.namespace, timeout=30)
    yield api
    api.close()


@pytest.fixture
def store(history: Release, api: Api) -> Store:
    """Return a function that stores a record as web and controller would have left it."""
    anchor = api.read("configmaps", history.name, metadata_only=True)
    return lambda build: api.create("configmaps", manifest(build, Owner(name=history.name), anchor))


def test_five_thousand_that_have_ended(history: Release, api: Api, store: Store) -> None:
    """Ended builds cost a leader no memory, even after it has read them twice, and a list of them is complete."""
    without = memory(history, api, store)
    now = datetime.now(UTC)
    builds = [settled(number, now - timedelta(days=2, seconds=number)) for number in range(MANY)]
    with ThreadPoolExecutor(AT_ONCE) as many:
        assert len(list(many.map(store, builds))) == MANY
    listed = pages(history)
    there = {record["metadata"]["name"] for record in history.objects("configmaps", "build")}
    assert {build.name for build in builds} <= there
    assert sorted(build["name"] for build in listed) == sorted(there)
    assert all(later["queued_at"] > earlier["queued_at"] for later, earlier in pairwise(listed))
    with_them = memory(history, api, store)
    ratio = with_them / without
    print(
        f"A leader has {without:.1f} MB, with {MANY} builds that have ended {with_them:.1f} MB: {ratio:.3f} times that"
    )
    assert ratio <= 1.1


def test_what_is_over_its_time_is_deleted(history: Release, api: Api, store: Store) -> None:
    """The controller first deletes Jobs with their pods, then the record with all its objects, including the log."""
    now = datetime.now(UTC)
    old, kept = settled(MANY + 1, now - HISTORY), settled(MANY + 2, now - HISTORY + timedelta(hours=1))
    for build in (old, kept):
        add_job(history, api, store(build))
    name = history.build("ada/page", history.commit("ada/page", {"Dockerfile": SMALL}))
    tail = history.ended(name)["log"]["tail"]
    assert tail
    until(lambda: gone(api, "configmaps", old.name) and gone(api, "jobs", f"{old.name}-1"), TWO_READS)
    until(lambda: gone(api, "jobs", f"{kept.name}-1"), TWO_READS)
    assert history.one(kept.name)["state"] == "succeeded"
    until(lambda: not history.jobs(name), TWO_READS)
    found = history.one(name)
    assert (found["state"], found["log"]["tail"]) == ("succeeded", tail)
    until(lambda: not history.objects("pods", "build"))
    log = history.log(name)
    assert f"Fetching {history.host.url('ada/page')}" in log
    assert tail.splitlines()[-1] in log
    assert len(history.objects("configmaps", "log")) == 1


def memory(release: Release, api: Api, store: Store) -> float:
    """Return the memory in MB of a new leader that has read all ended builds twice.

    The leader deletes expired records in the order of their names, so the last deletion marks the end of a pass.
    """
    for pod in release.objects("pods", "controller"):
        api.delete("pods", pod["metadata"]["name"], uid=pod["metadata"]["uid"])
    for _ in range(2):
        last = settled(MANY, datetime.now(UTC) - 2 * HISTORY, name="build-zzz")
        store(last)
        until(lambda name=last.name: gone(api, "configmaps", name), TWO_READS)  # type: ignore[misc]
    (leader,) = [pod for pod in release.objects("pods", "controller") if "deletionTimestamp" not in pod["metadata"]]
    return median(rss(release.cluster, leader) for _ in range(LOOKS))


def rss(cluster: Cluster, pod: Object) -> float:
    """Return the resident memory of the pod's process in MB."""
    status = within(cluster, pod, "cat", "/proc/1/status")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


def settled(number: int, at: datetime, name: str | None = None) -> Build:
    """Return a build that ended at `at` with all events delivered, as a controller leaves it."""
    repository = f"https://git.example/course-{number % 100}/notebooks"
    request = Request(
        repository=repository,
        clone_url=f"{repository}.git",
        commit=f"{number:040x}",
        image=f"registry.example/course-{number % 100}-notebooks",
    )
    began = at - timedelta(seconds=40)
    cause = Cause(
        source=f"{repository}/",
        id=secrets.token_hex(16),
        type="com.github.push",
        by="webhook:github",
        at=began,
        kind=Kind.PUSH,
        trigger="default",
        ref="refs/heads/main",
    )
    attempt = Attempt(
        number=1,
        node="worker",
        written_at=began,
        started_at=began + timedelta(seconds=2),
        finished_at=at,
        state=State.SUCCEEDED,
        timings=Timings(fetch=1.5, build=30.25, push=4.125),
    )
    told = {"sink": "sink", "state": DeliveryState.DELIVERED, "tries": 1, "due_at": at, "at": at}
    deliveries = (
        Delivery(event=f"{number}.1.{word}", type=f"dev.kiln.build.{word}.v1", **told)  # type: ignore[arg-type]
        for word in ("queued", "started", "succeeded")
    )
    status = BuildStatus(
        state=State.SUCCEEDED,
        round=1,
        attempt=1,
        attempts=(attempt,),
        image=Image(repository=request.image, tag=request.commit, digest=f"sha256:{number:064x}"),
        queued_at=began,
        started_at=attempt.started_at,
        finished_at=at,
        answered=(cause.key,),
        deliveries=tuple(deliveries),
        log_tail="Step 7 of 9\n" * 150,
    )
    return Build(
        name=name or named("test", request),
        uid="",
        request=request,
        causes=(cause,),
        created_at=began,
        status=status,
        open=False,
    )


def add_job(release: Release, api: Api, record: Object) -> None:
    """Create the completed Job of the build's attempt."""
    name = record["metadata"]["name"]
    labels = Owner(name=release.name).labels("build") | {"kiln.dev/build": name, "kiln.dev/attempt": "1"}
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": record["metadata"]["uid"]}
    container = {"name": "builder", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["true"]}
    pod = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    metadata = {"name": f"{name}-1", "labels": labels, "ownerReferences": [owner]}
    api.create("jobs", {"metadata": metadata, "spec": {"template": pod}})


def gone(api: Api, kind: str, name: str) -> bool:
    try:
        api.read(kind, name, metadata_only=True)
    except Absent:
        return True
    return False


def pages(release: Release) -> list[dict[str, Any]]:
    """Read the whole list page by page, as a client does."""
    found: list[dict[str, Any]] = []
    more: str | None = ""
    while more is not None:
        answer = release.get("api/v1/builds?limit=50" + (f"&continue={more}" if more else ""))
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["items"]) <= 50
        found += answer.json()["items"]
        more = answer.json()["continue"]
    return found
