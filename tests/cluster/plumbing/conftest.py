"""A real API server, and for each test a namespace of its own in it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import pytest
from kubernetes import config
from kubernetes.client.configuration import Configuration

from builds.engines.kubernetes.api import Api
from tests.parts.cluster import Cluster
from tests.parts.front import Front

Configured = Callable[..., Configuration]


@pytest.fixture(autouse=True, scope="session")
def _no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture(scope="session")
def kubeconfig(cluster: Cluster) -> str:
    return str(cluster.kubeconfig)


@pytest.fixture(scope="session")
def configured(kubeconfig: str) -> Configured:
    """Makes a configuration, for the API server itself or what stands before it (its port, on loopback)."""

    def make(port: int | None = None) -> Configuration:
        configuration = Configuration()
        config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        if port is not None:
            configuration.host = f"https://127.0.0.1:{port}"
        return configuration

    return make


@pytest.fixture(scope="session")
def everywhere(configured: Configured) -> Iterator[Api]:
    """For what is in no namespace of a test."""
    api = Api(configured(), "default")
    yield api
    api.close()


@pytest.fixture
def namespace(everywhere: Api) -> Iterator[str]:
    name = f"plumbing-{secrets.token_hex(4)}"
    everywhere.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    yield name
    everywhere.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def api(configured: Configured, namespace: str) -> Iterator[Api]:
    api = Api(configured(), namespace)
    yield api
    api.close()


@pytest.fixture
def front(configured: Configured) -> Iterator[Front]:
    with Front(configured()) as front:
        yield front


@pytest.fixture
def fronted(front: Front, namespace: str) -> Iterator[Api]:
    """Through `front`."""
    api = Api(Configuration(host=front.url), namespace)
    yield api
    api.close()
