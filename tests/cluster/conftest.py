"""One cluster for all tests of this tier; one registry, one Git host and one release per process.

Creating the cluster takes a minute and a half. `KILN_TEST_CLUSTER=<name>` uses the cluster of that name, creates it if
it is missing, and keeps it. `make test` thus shares one cluster among several workers, and a developer reuses one for a
single test (`kind delete cluster --name <name>` deletes it). A test that changes a node, or measures time, is marked
`alone`.
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
"""Time limits in seconds of the first test in each file that uses the fixture.

A test's time limit includes its fixtures, and any file may be the first of its worker.
"""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for fixture, seconds in sorted(SETTING_UP.items(), key=lambda each: each[1]):
        using = [item for item in items if fixture in getattr(item, "fixturenames", ())]
        for first in {item.path: item for item in reversed(using)}.values():
            own = first.get_closest_marker("timeout")
            limit = max([seconds, *(own.args if own else ())])
            first.add_marker(pytest.mark.timeout(limit), append=False)  # takes precedence over the test's own


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = parts.problem()
    if reason:
        pytest.skip(reason)
    with parts.chosen() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def configured(cluster: Cluster) -> Configured:
    """Return a factory of configurations for the API server, or for a proxy before it on a `port` of loopback."""

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
    """The release for all tests without their own; release and Service are both called `kiln`.

    The daemons also use the registry as their mirror of Docker Hub.
    """
    values = {"dockerd": {"extraArgs": [f"--registry-mirror=http://{registry.host}"]}}
    with Release(cluster, registry=registry, host=host, values=values, max_viewers=300) as release:
        yield release
