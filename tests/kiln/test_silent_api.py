"""A storm of webhooks while the API server hangs: the requests that wait must not exhaust web's few threads."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import yaml

from builds.engines.kubernetes import circuit
from builds.engines.kubernetes.api import TIMEOUT
from kiln.settings import Settings
from tests.bench.web import push
from tests.parts.kiln import Kiln, until
from tests.parts.proxy import Proxy

VIEWERS = 4
THREADS = 16 + Settings.max_lookups + VIEWERS
STORM = 4 * THREADS


@pytest.fixture
def silent() -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as nobody, Proxy(nobody.getsockname()[:2]) as between:
        yield between


def kubeconfig(folder: Path, address: str) -> str:
    cluster, user = {"server": f"http://{address}"}, {"name": "it", "user": {}}
    context = {"cluster": "it", "user": "it", "namespace": "here"}
    config = {"clusters": [{"name": "it", "cluster": cluster}], "users": [user], "current-context": "it"}
    (folder / "kubeconfig").write_text(yaml.safe_dump({**config, "contexts": [{"name": "it", "context": context}]}))
    return str(folder / "kubeconfig")


def test_of_a_storm_only_the_first_wait_for_an_api_server_that_hangs(tmp_path: Path, silent: Proxy) -> None:
    """The others are refused immediately, whether web has a thread for them or not."""
    secret = secrets.token_hex(16)
    hooks = tmp_path / "secrets/webhooks/github"
    hooks.mkdir(parents=True)
    (hooks / "one").write_text(secret)
    settings = {
        "KILN_ENGINE": "kubernetes",
        "KILN_NAMESPACE": "here",
        "KILN_INSTANCE": "here/kiln",
        "KILN_AUTH": "none",
        "KILN_SECRETS_DIR": str(tmp_path / "secrets"),
        "KILN_ANCHOR": "kiln",
        "KILN_MAX_VIEWERS": str(VIEWERS),
        "KUBECONFIG": kubeconfig(tmp_path, silent.address),
    }
    with Kiln(tmp_path, **settings) as kiln, ThreadPoolExecutor(STORM) as storm:
        web = kiln.start("web")
        assert web.url
        send = partial(deliver, web.url.removeprefix("http://").strip("/"), secret)
        began = time.monotonic()
        assert Counter(storm.map(send, range(STORM))) == {(503, "5"): STORM}
        probes = (time.monotonic() - began) / circuit.REST
        until(lambda: len(refused(web.log)) == STORM)
        assert sum(seconds > 0.8 * TIMEOUT for seconds in refused(web.log)) <= THREADS + probes


def refused(log: Path) -> list[float]:
    """Return the seconds that each request with the answer 503 took."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return [line["seconds"] for line in lines if line.get("status") == 503]


def deliver(address: str, secret: str, number: int) -> tuple[int, str | None]:
    headers, body = push(secret.encode(), 0, number)
    connection = http.client.HTTPConnection(address, timeout=100)
    connection.request("POST", "/webhooks/github", body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.getheader("Retry-After")
