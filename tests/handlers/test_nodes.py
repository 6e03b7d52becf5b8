"""The page of nodes, for admins: the builds on each node, without the names of hidden ones."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from kubernetes.client.configuration import Configuration

from builds.build import Disk, Node
from builds.engines.kubernetes import KubernetesRecords
from builds.engines.kubernetes.api import Api
from builds.engines.local.daemon import DaemonProbe
from builds.private import Private, PrivateRule
from builds.transitions import change
from handlers.auth import Gate
from tests.builds.kubernetes_objects import RELEASE
from tests.handlers.harness import REPOSITORY, Harness, Named
from tests.handlers.markup import check_structure, soup, text

NODES = (
    Node(name="n1", disk=Disk(free=3 << 30, size=40 << 30)),
    Node(name="n2", ready=False, why="On n2 the Docker daemon's pod d2 is not ready."),
)


def seen(harness: Harness) -> dict[str, dict[str, str]]:
    """Return the cells of each row, by the name of its node."""
    page = soup(harness.client, "/nodes")
    check_structure(page)
    found = {}
    for row in page.select("#list tbody tr"):
        cells = {str(cell["data-label"]): text(cell) for cell in row.find_all("td")}
        found[cells["Node"]] = cells
    return found


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, harness: Harness) -> Harness:
    """A Kiln whose engine reports two nodes."""
    monkeypatch.setattr(harness.engine, "nodes", lambda: NODES)
    return harness


def placed(harness: Harness, node: str, *, alone: bool = False, **asked: Any) -> str:
    build = harness.run(harness.ask(**asked).name)
    (attempt,) = build.status.attempts
    status = change(build.status, attempts=(change(attempt, node=node, alone=alone),))
    return harness.engine.write(change(build, status=status)).name


def test_each_node_says_its_state_slots_disk_and_builds(nodes: Harness) -> None:
    name = placed(nodes, "n1", subdir="a")
    placed(nodes, "n3", subdir="b", commit="b" * 40)
    placed(nodes, "n2", subdir="c", alone=True)
    nodes.ask(subdir="waits")
    found = seen(nodes)
    assert [*found] == ["n1", "n2", "n3"]
    assert (found["n1"]["State"], found["n1"]["Slots in use"]) == ("ready", "1 of 2")
    assert found["n1"]["Disk"] == "3.0 GiB of 40.0 GiB free"
    assert found["n1"]["Running builds"].startswith("running octo/stats")
    assert (found["n2"]["State"], found["n2"]["Slots in use"]) == (f"not ready {NODES[1].why}", "2 of 2")
    assert found["n3"]["State"] == "not ready Kiln has no daemon on this node."
    page = soup(nodes.client, "/nodes")
    assert page.select_one(f'tr[data-key="n1"] a[href="/builds/{name}"]')
    assert page.select_one('tr[data-key="n1"] .warning'), "less than a tenth of the disk is free"
    assert "1 build waits" in text(page.select_one("#waiting"))


def test_a_build_that_an_admin_may_not_see_is_counted_and_not_named(harnesses: Callable[..., Harness]) -> None:
    private = Private([PrivateRule(match=REPOSITORY, use_by=("group:staff",))])
    harness = harnesses(auth_gate=Gate((Named("user:root", admin=True),)), private=private)
    placed(harness, "local")
    harness.ask(subdir="waits")
    found = seen(harness)
    assert found["local"]["Slots in use"] == "1 of 2"
    assert found["local"]["Running builds"] == "1 that you may not see"
    page = soup(harness.client, "/nodes")
    assert "octo" not in text(page)
    assert "No build waits" in text(page.select_one("#waiting"))


@pytest.mark.parametrize(("admin", "status"), [(True, 200), (False, 403)])
def test_nodes_are_for_admins(harnesses: Callable[..., Harness], admin: bool, status: int) -> None:
    harness = harnesses(auth_gate=Gate((Named("user:kim", admin=admin),)))
    page = soup(harness.client, "/nodes", status)
    assert ("local" in text(page)) is admin
    links = {text(link) for link in soup(harness.client, "/").select("nav[aria-label=Main] a")}
    assert ("Nodes" in links) is admin


def test_a_local_daemon_that_does_not_answer_is_told(harnesses: Callable[..., Harness]) -> None:
    (node,) = seen(harnesses()).values()
    assert node["Node"] == "local"
    assert node["State"] == "ready" or "does not answer" in node["State"]


# Nodes as engines report them -----------------------------------------------------------------------------------------


class Told(BaseHTTPRequestHandler):
    """A server that answers every request with the same JSON."""

    said: Any

    def do_GET(self) -> None:
        body = json.dumps(self.said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "a client"


@pytest.fixture
def telling(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Return a function that starts servers, on loopback or on a Unix socket, and returns their addresses."""
    running: list[ThreadingHTTPServer] = []

    def start(said: Any, path: Path | None = None) -> str:
        handler = type("Saying", (Told,), {"said": said})
        server = Unix(str(path), handler) if path else ThreadingHTTPServer(("127.0.0.1", 0), handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"unix://{path}" if path else f"127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


class Unix(ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()[0], ("", 0)


def test_web_knows_the_nodes_of_a_cluster_by_its_daemons_pods(telling: Callable[..., str]) -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    pods = [
        {"metadata": {"name": name}, "spec": {"nodeName": node}, "status": status}
        for name, node, status in (("d1", "n1", ready), ("d2", "n2", {}))
    ]
    configuration = Configuration()
    configuration.host = f"http://{telling({'metadata': {'resourceVersion': '1'}, 'items': pods})}"
    api = Api(configuration, "here")
    records = KubernetesRecords(api, RELEASE)
    assert [(node.name, node.ready, node.disk) for node in records.nodes()] == [("n1", True, None), ("n2", False, None)]
    records.close()
    api.close()


def test_a_daemon_says_where_its_images_are(telling: Callable[..., str], tmp_path: Path) -> None:
    told = DaemonProbe(telling({"DockerRootDir": str(tmp_path), "Images": 3}, tmp_path / "told"))
    disk = told.disk()
    assert disk is not None
    assert 0 <= disk.free <= disk.size
    assert disk.size > 0


@pytest.mark.parametrize("said", [{}, [], {"DockerRootDir": 3}, {"DockerRootDir": "/no/such/folder"}])
def test_a_disk_that_cannot_be_seen_is_none(telling: Callable[..., str], tmp_path: Path, said: Any) -> None:
    assert DaemonProbe(telling(said, tmp_path / "told")).disk() is None
    assert DaemonProbe(f"unix://{tmp_path}/nobody").disk() is None
    assert DaemonProbe(f"tcp://{telling({'DockerRootDir': str(tmp_path)})}").disk() is None, "another machine's"


def test_a_page_without_nodes_says_what_brings_one(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.engine, "nodes", lambda: ())
    page = soup(harness.client, "/nodes")
    assert isinstance(page, BeautifulSoup)
    assert "No node has a build daemon" in text(page.select_one(".empty"))
