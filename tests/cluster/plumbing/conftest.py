"""A real API server, with a namespace for each test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from kubernetes.client.configuration import Configuration

from builds.engines.kubernetes.api import Api
from tests.cluster.conftest import Configured
from tests.parts.apiproxy import ApiProxy
from tests.parts.proxy import Proxy


@pytest.fixture(autouse=True, scope="session")
def _no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture(scope="session")
def everywhere(configured: Configured) -> Iterator[Api]:
    """A client for objects outside of a test's namespace."""
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
def api_proxy(configured: Configured) -> Iterator[ApiProxy]:
    with ApiProxy(configured()) as api_proxy:
        yield api_proxy


@pytest.fixture
def via_api_proxy(api_proxy: ApiProxy, namespace: str) -> Iterator[Api]:
    """A client through `api_proxy`."""
    api = Api(Configuration(host=api_proxy.url), namespace)
    yield api
    api.close()


@pytest.fixture
def proxy(everywhere: Api) -> Iterator[Proxy]:
    where = urlsplit(everywhere.host)
    with Proxy((where.hostname or "", where.port or 443)) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, configured: Configured, namespace: str) -> Iterator[Api]:
    api = Api(configured(proxy.port), namespace)
    yield api
    api.close()
