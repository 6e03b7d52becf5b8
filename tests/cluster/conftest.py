"""One cluster for all tests of this tier; one registry, one Git host and one release for those of a process.

Making the cluster takes a minute and a half. `KILN_TEST_CLUSTER=<name>` says to use one of that name, which is made if
it is not there, and stays: so `make test` has one for several workers, and you for one test again and again (`kind
delete cluster --name <name>` ends it). A test that changes a node, or measures time, is marked `alone`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from kubernetes.client.configuration import Configuration

from tests.parts import cluster as parts
from tests.parts.cluster import Cluster, Release
from tests.parts.githost import GitHost
from tests.parts.registry import Registry

Configured = Callable[..., Configuration]

SETTING_UP = {"cluster": 600, "release": 300}
"""Seconds for the first test of a file that has them, as a test's time limit is for its fixtures, too: any file may be
the first of its worker."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for fixture, seconds in sorted(SETTING_UP.items(), key=lambda each: each[1]):
        using = [item for item in items if fixture in getattr(item, "fixturenames", ())]
        for first in {item.path: item for item in reversed(using)}.values():
            own = first.get_closest_marker("timeout")
            limit = max([seconds, *(own.args if own else ())])
            first.add_marker(pytest.mark.timeout(limit), append=False)  # before the test's own


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = parts.problem()
    if reason:
        pytest.skip(reason)
    with parts.chosen() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def configured(cluster: Cluster) -> Configured:
    """Makes a configuration, for the API server itself or what stands before it (its port, on loopback)."""

    def make(port: int | None = None) -> Configuration:
        configuration = cluster.configuration()
        if port is not None:
            configuration.host = f"https://127.0.0.1:{port}"
        return configuration

    return make


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry"), address=cluster.gateway) as registry:
        yield registry


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[GitHost]:
    with GitHost(tmp_path_factory.mktemp("git"), address=cluster.gateway) as host:
        yield host


@pytest.fixture(scope="session")
def release(cluster: Cluster, registry: Registry, host: GitHost) -> Iterator[Release]:
    """For all tests that need none of their own: release and Service are both called `kiln`.

    For its daemons the registry is Docker Hub, too.
    """
    values = {"dockerd": {"extraArgs": [f"--registry-mirror=http://{registry.host}"]}}
    with Release(cluster, registry=registry, host=host, values=values, max_viewers=300) as release:
        yield release
