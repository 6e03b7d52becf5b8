"""Sessions that users ended, as several replicas of web keep them in one ConfigMap of a real API server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from builds.engines import Unavailable
from builds.engines.kubernetes import Release
from builds.engines.kubernetes.api import Api
from builds.engines.kubernetes.sessions import FRESH, KubernetesSessions
from tests.cluster.conftest import Configured
from tests.cluster.plumbing.objects import config_map
from tests.parts.kiln import until
from tests.parts.proxy import Proxy

NAME = "kiln-signed-out"
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def replicas(configured: Configured, namespace: str, api: Api) -> Iterator[list[KubernetesSessions]]:
    """Four replicas, each with its own client, and the anchor."""
    api.create("configmaps", config_map("kiln"))
    with ExitStack() as clients:
        made = [Api(configured(), namespace) for _ in range(4)]
        for client in made:
            clients.callback(client.close)
        yield [KubernetesSessions(client, Release(name="kiln"), anchor="kiln") for client in made]


def soon() -> float:
    return time.time() + 60


def test_a_session_ends_on_every_replica(replicas: list[KubernetesSessions], api: Api) -> None:
    assert not any(one.ended("a") for one in replicas)
    replicas[0].end("a", soon())
    assert replicas[0].ended("a"), "the replica that ended it knows immediately"
    until(lambda: all(one.ended("a") for one in replicas), FRESH + 10)
    assert not any(one.ended("b") for one in replicas)
    owners = api.read("configmaps", NAME)["metadata"]["ownerReferences"]
    assert [(owner["kind"], owner["name"]) for owner in owners] == [("ConfigMap", "kiln")]


def test_none_is_forgotten_that_others_end_at_the_same_time(replicas: list[KubernetesSessions]) -> None:
    """The first of the concurrent requests creates the ConfigMap."""
    names = [f"session-{number}" for number in range(16)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda at: replicas[at % 4].end(names[at], soon()), range(len(names))))
    until(lambda: all(one.ended(name) for one in replicas for name in names), FRESH + 10)


def test_what_has_expired_by_itself_goes(replicas: list[KubernetesSessions], api: Api) -> None:
    replicas[0].end("old", time.time() - 1)
    replicas[1].end("kept", soon())
    assert set(api.read("configmaps", NAME)["data"]) == {"kept"}


def test_without_the_api_server_nobody_is_told_that_a_session_goes_on(
    replicas: list[KubernetesSessions], proxy: Proxy, proxied: Api
) -> None:
    far = KubernetesSessions(proxied, Release(name="kiln"), anchor="kiln")
    replicas[0].end("a", soon())
    proxy.close()
    with pytest.raises(Unavailable):
        far.ended("b")
    with pytest.raises(Unavailable):
        far.end("b", soon())
