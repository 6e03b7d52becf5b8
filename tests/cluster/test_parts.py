"""The foundations of this tier: this machine and the pods reach the same servers by the same addresses."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.parts import machine
from tests.parts.cluster import BUSYBOX, Cluster, most_at_once, offer
from tests.parts.githost import GitHost, git
from tests.parts.kiln import until
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry
from tests.parts.sink import EventSink

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def pod(cluster: Cluster) -> Iterator[str]:
    """A pod with Kiln's image, in which a test can run any command."""
    name = f"probe-{secrets.token_hex(3)}"
    container = {
        "name": "probe",
        "image": cluster.kiln_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "import signal; signal.pause()"],
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    labels = {"kiln.dev/test": "probe"}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    yield name
    cluster.kubectl("delete", "pod", name, "--now")


def within(cluster: Cluster, pod: str, *command: str) -> str:
    return cluster.kubectl("exec", pod, "--", *command)


def fetched(cluster: Cluster, pod: str, url: str) -> str:
    code = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=10).read().decode())"
    return within(cluster, pod, "python", "-c", code).strip()


def test_the_nodes_are_what_the_file_says(cluster: Cluster) -> None:
    assert len(cluster.workers) == 2
    nodes = cluster.get("nodes")
    assert {one["metadata"]["name"] for one in nodes} == {cluster.control_plane, *cluster.workers}
    assert cluster.api("GET", "/readyz").text == "ok"


def test_a_pod_fetches_the_commit_that_this_machine_sees(
    cluster: Cluster, pod: str, host: GitHost, tmp_path: Path
) -> None:
    (tmp_path / "page").write_text("one")
    made = host.create("probe/one", tmp_path)
    url = host.url("probe/one")
    assert git("ls-remote", url, "refs/heads/main").split()[0] == made
    assert within(cluster, pod, "git", "ls-remote", url, "refs/heads/main").split()[0] == made


def test_an_image_has_one_name_in_the_registry(cluster: Cluster, pod: str, registry: Registry) -> None:
    path, _, tag = offer(registry, BUSYBOX, f"probe/{secrets.token_hex(3)}:1").partition("/")[2].partition(":")
    url = f"http://{registry.host}/v2/{path}/tags/list"
    assert fetched(cluster, pod, url) == requests.get(url, timeout=10).text.strip()
    assert requests.get(url, timeout=10).json() == {"name": path, "tags": [tag]}


def test_a_pod_reaches_a_sink_and_what_is_between(cluster: Cluster, pod: str) -> None:
    post = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], b'x', timeout=5).status)"
    with EventSink(address=cluster.gateway) as sink, Proxy((sink.address, sink.port), cluster.gateway) as proxy:
        through = f"http://{proxy.address}/events"
        assert within(cluster, pod, "python", "-c", post, sink.url).strip() == "202"
        assert within(cluster, pod, "python", "-c", post, through).strip() == "202"
        proxy.refuse()
        with pytest.raises(machine.MachineError, match="Connection refused"):
            within(cluster, pod, "python", "-c", post, through)
        assert len(sink.received) == 2


def test_a_process_in_a_pod_is_killed_by_its_command(cluster: Cluster, pod: str) -> None:
    """The signal restarts this pod's container, hence it reached the right process."""

    def restarts() -> int:
        shown = cluster.kubectl("get", "pod", pod, "--output=jsonpath={.status.containerStatuses[0].restartCount}")
        return int(shown)

    (found,) = [one for one in cluster.get("pods") if one["metadata"]["name"] == pod]
    before = restarts()
    cluster.signal(found, "KILL", "something else")
    cluster.signal(found, "KILL", "signal.pause")
    until(lambda: restarts() == before + 1)
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=60s")


def test_slots_are_counted_by_the_pods_own_times() -> None:
    def ran(node: str, made: int, ended: int | None) -> dict[str, object]:
        state = {"terminated": {"finishedAt": f"2026-01-01T00:00:{ended:02}Z"}} if ended else {"running": {}}
        return {
            "metadata": {"creationTimestamp": f"2026-01-01T00:00:{made:02}Z"},
            "spec": {"nodeName": node},
            "status": {"containerStatuses": [{"state": state}]},
        }

    assert most_at_once([ran("a", 1, 3), ran("a", 3, 5), ran("b", 1, 9), ran("b", 8, None)]) == {"a": 1, "b": 2}
    assert most_at_once([ran("a", 1, None), ran("a", 30, 31), ran("a", 40, 41)]) == {"a": 2}
    assert most_at_once([]) == {}
