"""A cancel request or a newer push ends a build at every stage."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from tests.parts.cluster import Cluster, Release
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, sleepers
from tests.parts.kiln import until
from tests.parts.misconfigurations import PUSH_SECRET, quota, without_push_secret
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def door(cluster: Cluster, registry: Registry) -> Iterator[Proxy]:
    """A proxy before the registry, which can slow a push down."""
    with Proxy((registry.address, registry.port), cluster.gateway) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def narrow(cluster: Cluster, registry: Registry, host: GitHost, door: Proxy) -> Iterator[Release]:
    """A release with one slot on each worker, in which a newer push also cancels a running build."""
    one = {"replicas": 1}
    with Release(
        cluster,
        registry=registry,
        host=host,
        through=door.address,
        values={"web": one, "controller": one},
        builds_per_node=1,
        supersede="running",
    ) as release:
        yield release


def ends(release: Release, name: str, reason: str = "requested", message: str = "Cancelled on request.") -> Any:
    """Check that the build ends as cancelled, that each sink receives one event, and that no pod continues."""
    build = release.ended(name)
    assert (build["state"], build["reason"], build["message"]) == ("cancelled", reason, message)
    assert build["waiting"] is None
    for sink in release.sinks:
        event = release.arrived(sink, name, "cancelled")
        assert event.extensions["reason"] == reason
        assert len({one.id for one in release.events(sink, name, "cancelled")}) == 1
    until(lambda: all(pod["status"]["phase"] == "Failed" for pod in existing(release, name)))
    return build


def existing(release: Release, name: str) -> Any:
    return release.objects("pods", selector=f"kiln.dev/build={name}")


def cancel(release: Release, name: str) -> Any:
    answer = release.cancel(name)
    assert answer.status_code == 202, answer.text
    build = ends(release, name)
    assert release.cancel(name).status_code == 409
    return build


@contextmanager
def busy(release: Release) -> Iterator[dict[str, str]]:
    """Fill all slots with builds and cancel them at the end; the values are the seconds that their steps sleep."""
    running = {}
    for _ in release.cluster.workers:
        path = f"ada/{secrets.token_hex(4)}"
        commit, seconds = release.running(path, 600)
        running[release.build(path, commit)] = seconds
    try:
        for name, seconds in running.items():
            release.step_runs(name, seconds)
        yield running
    finally:
        for name in running:
            release.cancel(name)
        for name in running:
            release.ended(name)


def test_queued_and_running(narrow: Release) -> None:
    with busy(narrow) as running:
        queued = narrow.build("ada/waiting", narrow.commit("ada/waiting", {"Dockerfile": SMALL}))
        narrow.wait(queued, lambda build: build["waiting"] == "Waiting for a free build slot.")
        assert cancel(narrow, queued)["attempts"] == []
        assert narrow.jobs(queued) == []
        for name, seconds in running.items():
            build = cancel(narrow, name)
            assert [attempt["state"] for attempt in build["attempts"]] == ["cancelled"]
            assert "sleep" in build["log"]["tail"]
            (pod,) = existing(narrow, name)
            (status,) = pod["status"]["containerStatuses"]
            assert status["state"]["terminated"]["exitCode"] == 143
            assert "sleep" in narrow.log(name)
            until(lambda seconds=seconds: not sleepers(seconds))  # type: ignore[misc]


def no_pod(release: Release) -> AbstractContextManager[str]:
    return quota(release, "pods")


@contextmanager
def no_container(release: Release) -> Iterator[str]:
    with without_push_secret(release):
        yield PUSH_SECRET


@pytest.mark.parametrize("kept", [no_pod, no_container])
def test_pending(narrow: Release, kept: Any) -> None:
    """A pending build has no results to keep, so cancelling deletes the Job and any pod."""
    path = f"ada/{kept.__name__}"
    with kept(narrow) as why:
        name = narrow.build(path, narrow.commit(path, {"Dockerfile": SMALL}))
        narrow.wait(name, lambda build: why in (build["waiting"] or ""))
        assert len(existing(narrow, name)) == (kept is no_container)
        build = cancel(narrow, name)
    assert [attempt["state"] for attempt in build["attempts"]] == ["cancelled"]
    until(lambda: not (narrow.jobs(name) or existing(narrow, name)))


def test_pushing(narrow: Release, door: Proxy) -> None:
    commit = narrow.commit("ada/pushed", {"Dockerfile": SMALL, "page": secrets.token_bytes(8 * 2**20)})
    name = narrow.build("ada/pushed", commit)
    door.delay = 0.2
    try:
        narrow.wait(name, lambda _: "pushing layer" in narrow.log(name))
        build = cancel(narrow, name)
    finally:
        door.delay = 0.0
    assert build["durations"]["push"] is not None
    assert narrow.digest(build["image"]["repository"], commit) is None


def test_a_queued_build_of_an_older_push(narrow: Release) -> None:
    with busy(narrow):
        old = narrow.commit("ada/queued", {"Dockerfile": SMALL})
        new = narrow.commit("ada/queued", {"Dockerfile": SMALL})
        first, second = pushed(narrow, "ada/queued", old), pushed(narrow, "ada/queued", new, before=old)
        build = ends(narrow, first, "superseded", "A newer push to the same ref superseded it.")
        assert build["attempts"] == []
    assert narrow.ended(second)["state"] == "succeeded"


def test_a_running_build_of_an_older_push(narrow: Release) -> None:
    old, seconds = narrow.running("ada/running", 600)
    first = pushed(narrow, "ada/running", old)
    narrow.step_runs(first, seconds)
    new = narrow.commit("ada/running", {"Dockerfile": SMALL})
    second = pushed(narrow, "ada/running", new, before=old)
    build = ends(narrow, first, "superseded", "A newer push to the same ref superseded it.")
    assert [attempt["state"] for attempt in build["attempts"]] == ["cancelled"]
    until(lambda: not sleepers(seconds))
    assert narrow.ended(second)["state"] == "succeeded"


def pushed(release: Release, path: str, commit: str, **options: str) -> str:
    """Deliver a push webhook and return the name of its build."""
    answer = release.deliver(release.push(path, commit, **options))
    assert answer.status_code == 202, answer.text
    (build,) = answer.json()["builds"]
    return str(build["name"])
