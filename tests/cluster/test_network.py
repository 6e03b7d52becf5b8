"""The addresses that a build's step and a build's pod can reach. A step's packets leave from the daemon's pod.

A pod here always reaches its own node, so the test uses the control plane's node, on which no build runs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest

from tests.parts.cluster import Object, Release
from tests.parts.pods import within

pytestmark = pytest.mark.timeout(300)

PATIENCE = 3
"""Time limit of a connection in seconds, since denied packets are dropped without an answer."""

STEP = """FROM scratch
COPY busybox /busybox
COPY page /page
RUN ["/busybox", "sh", "-c", "/busybox nslookup {name} >/dev/null 2>&1 && echo found the name; {looks}"]
"""
ASK = "(echo 'GET / HTTP/1.0'; echo) | /busybox nc -w {patience} {host} {port}"
LOOK = f"echo look {{host}}:{{port}} $( {ASK} | /busybox head -n 1 | /busybox tr -d '\\r') end"
CONNECT = """
import json, socket, sys
socket.getaddrinfo(sys.argv[1], 443)
def connects(host, port):
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError:
        return False
    return True
print(json.dumps([connects(*one) for one in json.loads(sys.argv[2])]))
"""
NAME = "kubernetes.default.svc.cluster.local"


@dataclass(frozen=True)
class Places:
    """Addresses (host, port): those that builds need, and those that builds must not reach."""

    allowed: list[tuple[str, int]]
    denied: list[tuple[str, int]]
    absent: list[tuple[str, int]]
    """Denied addresses at which nothing listens on this machine."""

    @property
    def all(self) -> list[tuple[str, int]]:
        return [*self.allowed, *self.denied, *self.absent]


def places_around(release: Release) -> Places:
    cluster = release.cluster
    (api,) = [one for one in cluster.get("services") if one["metadata"]["name"] == "kubernetes"]
    dns = cluster.get("pods", "kube-system", "k8s-app=kube-dns")[0]
    web = release.objects("pods", "web")[0]
    return Places(
        allowed=[(release.host.address, release.host.port), (release.registry.address, release.registry.port)],
        denied=[
            (api["spec"]["clusterIP"], 443),
            cluster.api_server,
            (cluster.address(cluster.control_plane), 10250),
            (web["status"]["podIP"], 8000),
            (dns["status"]["podIP"], 8181),
        ],
        absent=[("169.254.169.254", 80), ("168.63.129.16", 80)],
    )


@pytest.fixture(scope="module")
def places(release: Release) -> Places:
    return places_around(release)


def connections(release: Release, pod: Object, places: Places, container: str = "") -> dict[tuple[str, int], bool]:
    """Connect from a pod to each address after resolving a name, and return which connections succeed."""
    shown = within(release.cluster, pod, "python", "-c", CONNECT, NAME, json.dumps(places.all), container=container)
    return dict(zip(places.all, json.loads(shown), strict=True))


def test_who_has_no_policy_reaches_them(release: Release, places: Places) -> None:
    """A pod without a policy reaches all addresses. Otherwise the following tests would prove nothing."""
    found = connections(release, release.objects("pods", "controller")[0], places)
    assert [place for place in (*places.allowed, *places.denied) if not found[place]] == []


def a_step_reaches_what_it_needs_and_nothing_else(release: Release, places: Places) -> None:
    looks = "; ".join(LOOK.format(host=host, port=port, patience=PATIENCE) for host, port in places.all)
    commit = release.with_busybox("ada/network", STEP.format(name=NAME, looks=looks))
    name = release.build("ada/network", commit)
    build = release.ended(name, 120)
    log = release.log(name)
    assert build["state"] == "succeeded", log
    assert "found the name" in log
    said = dict(re.findall(r"^(?:#\d+ [\d.]+ )?look (\S+) ?(.*?) ?end\r?$", log, re.MULTILINE))
    assert {*said} == {f"{host}:{port}" for host, port in places.all}
    answered = {at for at, words in said.items() if words.startswith("HTTP/1")}
    assert answered == {f"{host}:{port}" for host, port in places.allowed}, said


def test_a_step_reaches_what_it_needs_and_nothing_else(release: Release, places: Places) -> None:
    a_step_reaches_what_it_needs_and_nothing_else(release, places)


def test_a_build_s_pod_reaches_what_it_needs_and_nothing_else(release: Release, places: Places) -> None:
    commit, exactly = release.running("ada/network-pod", 240)
    name = release.build("ada/network-pod", commit)
    release.step_runs(name, exactly)
    (pod,) = release.objects("pods", selector=f"kiln.dev/build={name}")
    found = connections(release, pod, places, "builder")
    release.cancel(name)
    release.ended(name)
    assert [place for place, reached in found.items() if reached] == places.allowed
