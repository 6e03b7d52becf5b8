"""The log of an ended attempt while the API server cannot serve it, and on a full disk."""

from __future__ import annotations

import base64
import errno
import gzip
import io
import secrets
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kubernetes.client.configuration import Configuration
from kubernetes_validate import validate
from msgspec.structs import replace

from builds.engines import Unavailable
from builds.engines.kubernetes import logs
from builds.engines.kubernetes.api import Api
from builds.engines.kubernetes.archive import Archive
from builds.engines.kubernetes.logs import Logs
from tests.builds.kubernetes_objects import RELEASE, build
from tests.parts.kiln import until

POD = {"metadata": {"name": "build-a-1-x", "resourceVersion": "1"}}
LOG = b"".join(msgspec.json.encode({"n": number, "text": f"line {number}"}) + b"\n" for number in range(1, 4))
AWAY = {"kind": "Status", "message": "dial tcp 10.0.0.7:10250: connect: no route to host", "reason": "", "code": 500}


class Replayed:
    """An API server with one pod, and with its log once `status` is 200."""

    def __init__(self) -> None:
        self.status = 200
        self.log = LOG
        self.asked = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"replayed": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, path: str) -> tuple[int, bytes]:
        if not path.endswith("/log"):
            return 200, msgspec.json.encode({"metadata": {"resourceVersion": "1"}, "items": [POD]})
        self.asked += 1
        return (200, self.log) if self.status == 200 else (self.status, msgspec.json.encode(AWAY))

    def write(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        raise NotImplementedError

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    replayed: Replayed

    def do_GET(self) -> None:
        status, body = self.replayed.answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _write(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = self.replayed.write(self.command, self.path.partition("?")[0], body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_DELETE = _write  # noqa: N815 (http.server's names)

    def log_message(self, *_: Any) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def server() -> Iterator[Replayed]:
    server = Replayed()
    yield server
    server.close()


@pytest.fixture
def read(server: Replayed) -> Iterator[Logs]:
    found = Logs(Api(Configuration(host=server.url), "kiln"))
    yield found
    found.close()


def texts(read: Logs, after: int = 0, *, ended: bool = True) -> list[str]:
    kept = (lambda: None) if ended else None
    return [line.text for line in read.lines("build-a", 1, after, ended=kept)]


@pytest.mark.parametrize("status", [403, 429, 500, 502, 503, 504])
def test_what_could_not_be_read_once_is_read_again(
    server: Replayed, read: Logs, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(logs, "RETRY_INTERVAL", 60)
    server.status = status
    for _ in range(3):
        with pytest.raises(Unavailable, match="build-a-1-x cannot be read"):
            texts(read)
    assert server.asked == 1, "a reader in between gets the same answer as the first"
    monkeypatch.setattr(logs, "RETRY_INTERVAL", 0)
    server.status = 200
    assert texts(read) == ["line 1", "line 2", "line 3"]
    server.status = status
    assert texts(read, after=1) == ["line 2", "line 3"], "what is whole is not asked for again"


def test_a_log_that_grows_is_read_again_too(server: Replayed, read: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "RETRY_INTERVAL", 0)
    server.status = 502
    with pytest.raises(Unavailable):
        texts(read, ended=False)
    server.status = 200
    assert texts(read, ended=False) == ["line 1", "line 2", "line 3"]


@pytest.mark.parametrize("status", [400, 404])
def test_where_there_is_none_it_is_empty(server: Replayed, read: Logs, status: int) -> None:
    server.status = status
    assert texts(read) == []


def test_a_full_disk_loses_no_line(server: Replayed, read: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, content: Any) -> int:  # type: ignore[override]
            if self.tell() >= 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content[:20])

    opened = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        return Full(path, "ab") if mode == "ab" else opened(path, mode, **options)

    monkeypatch.setattr(logs, "RETRY_INTERVAL", 0)
    with monkeypatch.context() as at_first:
        at_first.setattr(Path, "open", full)
        with pytest.raises(Unavailable, match="No space left"):
            texts(read)
    assert texts(read) == ["line 1", "line 2", "line 3"]


def test_nothing_is_left_behind(server: Replayed, read: Logs) -> None:
    texts(read, ended=False)
    read.close()
    until(lambda: not any(thread.name.startswith("log build-a") for thread in threading.enumerate()))


# Logs without their pod ----------------------------------------------------------------------------------------------


class Cluster(Replayed):
    """An API server that also keeps ConfigMaps; `pod` says whether the pod exists."""

    def __init__(self) -> None:
        self.maps: dict[str, dict[str, Any]] = {}
        self.pod = True
        super().__init__()

    def answer(self, path: str) -> tuple[int, bytes]:
        found = self.maps.get(path.rpartition("/")[2])
        if path.endswith("/configmaps"):
            listed = [one for one in self.maps.values() if one["metadata"]["labels"][COMPONENT] == "log"]
            return 200, msgspec.json.encode({"metadata": {"resourceVersion": "1"}, "items": listed})
        if "/configmaps/" in path:
            return (200, msgspec.json.encode(found)) if found else _absent()
        if path.endswith("/pods") and not self.pod:
            return 200, msgspec.json.encode({"metadata": {"resourceVersion": "1"}, "items": []})
        return super().answer(path)

    def write(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        if method == "DELETE":
            return (200, b"{}") if self.maps.pop(path.rpartition("/")[2], None) else _absent()
        made = msgspec.json.decode(body)
        if made["metadata"]["name"] in self.maps:
            return 409, msgspec.json.encode({**AWAY, "code": 409, "reason": "AlreadyExists"})
        made["metadata"]["creationTimestamp"] = f"2026-03-01T12:00:{len(self.maps):02}Z"
        self.maps[made["metadata"]["name"]] = made
        return 201, msgspec.json.encode(made)


def _absent() -> tuple[int, bytes]:
    return 404, msgspec.json.encode({**AWAY, "code": 404, "reason": "NotFound"})


COMPONENT = "app.kubernetes.io/component"
BUILD = build("build-a")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def api(cluster: Cluster) -> Iterator[Api]:
    api = Api(Configuration(host=cluster.url), "kiln")
    yield api
    api.close()


@pytest.fixture
def archive(api: Api) -> Archive:
    return Archive(api, RELEASE)


def lines(count: int, *, random: bool = False) -> bytes:
    texts = (secrets.token_urlsafe(600) if random else f"line {number}" for number in range(count))
    return b"".join(msgspec.json.encode({"n": n, "text": text}) + b"\n" for n, text in enumerate(texts, start=1))


@pytest.mark.parametrize("content", [lines(1), lines(200_000), lines(10_000, random=True)], ids=["one", "many", "hard"])
def test_a_log_is_kept_whole(cluster: Cluster, archive: Archive, content: bytes) -> None:
    """Even a log of maximum length that barely compresses is archived whole."""
    assert archive.read(BUILD, 1) is None
    assert not archive.has(BUILD, 1)
    archive.keep(BUILD, 1, content)
    assert archive.read(BUILD, 1) == content
    assert archive.has(BUILD, 1)
    for made in cluster.maps.values():
        validate(made, "1.34", strict=True)
        assert len(base64.b64decode(made["binaryData"]["log.gz"])) <= 900 << 10
        assert made["immutable"]
        assert made["metadata"]["ownerReferences"][0]["uid"] == BUILD.uid
    before = {**cluster.maps}
    archive.keep(BUILD, 1, content)
    assert cluster.maps == before


def test_a_log_of_another_record_of_that_name_is_not_this_ones(archive: Archive) -> None:
    archive.keep(replace(BUILD, uid="older"), 1, LOG)
    assert archive.read(BUILD, 1) is None
    assert not archive.has(BUILD, 1)


def test_a_log_that_was_not_kept_to_its_end_is_kept_again(cluster: Cluster, archive: Archive) -> None:
    content = lines(10_000, random=True)
    archive.keep(BUILD, 1, content)
    del cluster.maps["build-a-1-log"]  # the first part is written last
    assert archive.read(BUILD, 1) is None
    archive.keep(BUILD, 1, content)
    assert archive.read(BUILD, 1) == content


CUT = base64.b64encode(gzip.compress(LOG)[:20]).decode()


@pytest.mark.parametrize("damage", [{"log.gz": "!"}, {"log.gz": CUT}, {}])
def test_a_damaged_log_is_none(cluster: Cluster, archive: Archive, damage: dict[str, str]) -> None:
    archive.keep(BUILD, 1, LOG)
    cluster.maps["build-a-1-log"]["binaryData"] = damage
    assert archive.read(BUILD, 1) is None


def test_a_log_that_unpacks_to_too_much_is_none(cluster: Cluster, archive: Archive) -> None:
    archive.keep(BUILD, 1, bytes(40 << 20))
    assert archive.read(BUILD, 1) is None


def test_the_oldest_logs_make_room(api: Api, cluster: Cluster) -> None:
    content = lines(2000, random=True)
    space = 5 * len(gzip.compress(content)) // 2
    archive = Archive(api, RELEASE, space=space)
    for attempt in range(1, 5):
        archive.keep(BUILD, attempt, content)
    for _ in archive.make_room():
        pass
    assert [archive.has(BUILD, attempt) for attempt in range(1, 5)] == [False, False, True, True]
    assert {name.partition("-log")[0] for name in cluster.maps} == {"build-a-3", "build-a-4"}


def test_what_a_pod_does_not_serve_any_more_was_kept(cluster: Cluster, api: Api, archive: Archive) -> None:
    logs_ = Logs(api)
    try:
        archive.keep(BUILD, 1, logs_.content("build-a", 1))
    finally:
        logs_.close()
    for pod, status in ((False, 200), (True, 500), (True, 404)):
        cluster.pod, cluster.status = pod, status
        again = Logs(api)
        try:
            kept = partial(archive.read, BUILD, 1)
            assert [line.text for line in again.lines("build-a", 1, 1, ended=kept)] == ["line 2", "line 3"]
        finally:
            again.close()
