"""The engine in a namespace of a real cluster, as a controller uses it; only the engine's own Jobs run there."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from builds.builder.spec import Surroundings
from builds.engines.kubernetes import KubernetesEngine, Release
from builds.engines.kubernetes.api import Api
from tests.builds.kubernetes_objects import TEMPLATE
from tests.cluster.conftest import Configured

Engines = Callable[..., KubernetesEngine]


@pytest.fixture(scope="module")
def api(configured: Configured) -> Iterator[Api]:
    """A client for a namespace of this module's own."""
    api = Api(configured(), f"engine-{secrets.token_hex(3)}")
    api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": api.namespace}})
    yield api
    api.request("DELETE", f"/api/v1/namespaces/{api.namespace}")
    api.close()


@pytest.fixture
def engines(api: Api) -> Iterator[Engines]:
    """Return a factory of leading engines, each of its own release. Deleting the anchor removes all their objects."""
    with ExitStack() as ended:

        def make(**more: int) -> KubernetesEngine:
            name = f"kiln-{secrets.token_hex(4)}"
            api.create("configmaps", {"metadata": {"name": name}})
            api.create("leases", {"metadata": {"name": name}})
            engine = KubernetesEngine(
                api,
                Release(name=name),
                template=TEMPLATE,
                image="busybox:1.37",
                surroundings=Surroundings(),
                lease=name,
                identity="test",
                anchor=name,
                **more,
            )
            stop = threading.Event()
            for last in (lambda: api.delete("configmaps", name), engine.close, stop.set):
                ended.callback(last)
            engine.begin()
            ended.enter_context(engine.leading(stop))
            return engine

        yield make
