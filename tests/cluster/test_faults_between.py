"""The wires between Kiln and what is around it, cut and mended: the proxies of this tier are where they should be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parts.cluster import Cluster, Release
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL
from tests.parts.kiln import until
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[Proxy]:
    with Proxy(cluster.api_server, cluster.gateway) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def behind(cluster: Cluster, registry: Registry, host: GitHost, api: Proxy) -> Iterator[Release]:
    """Its web and controllers reach the API server through `api`."""
    with Release(cluster, registry=registry, host=host, api_proxy=api, sinks=["first"]) as release:
        yield release


def test_without_the_api_server_web_asks_to_try_again_and_then_takes_it(behind: Release, api: Proxy) -> None:
    url, commit = behind.host.url("ada/cut"), behind.commit("ada/cut", {"Dockerfile": SMALL})
    api.refuse()
    refused = behind.ask(repository=url, commit=commit)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    api.accept()
    until(lambda: behind.ask(repository=url, commit=commit).status_code == 202)
    (build,) = behind.listed()
    assert behind.ended(build["name"])["state"] == "succeeded"
    behind.arrived("first", build["name"], "succeeded")
