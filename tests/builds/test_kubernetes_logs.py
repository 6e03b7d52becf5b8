"""The log of an attempt that has ended, where the API server cannot give it at once, and where the disk is full."""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kubernetes.client.configuration import Configuration

from builds.engines import Unavailable
from builds.engines.kubernetes import logs
from builds.engines.kubernetes.api import Api
from builds.engines.kubernetes.logs import Logs
from tests.parts.kiln import until

POD = {"metadata": {"name": "build-a-1-x", "resourceVersion": "1"}}
LOG = b"".join(msgspec.json.encode({"n": number, "text": f"line {number}"}) + b"\n" for number in range(1, 4))
AWAY = {"kind": "Status", "message": "dial tcp 10.0.0.7:10250: connect: no route to host", "reason": "", "code": 500}


class Replayed:
    """What an API server says: a pod, and its log once `status` is 200."""

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

    def log_message(self, *_: Any) -> None:
        """Not to be written."""


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
    return [line.text for line in read.lines("build-a", 1, after, ended=ended)]


@pytest.mark.parametrize("status", [403, 429, 500, 502, 503, 504])
def test_what_could_not_be_read_once_is_read_again(
    server: Replayed, read: Logs, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(logs, "AGAIN", 60)
    server.status = status
    for _ in range(3):
        with pytest.raises(Unavailable, match="build-a-1-x cannot be read"):
            texts(read)
    assert server.asked == 1, "who comes meanwhile is told what the first was told"
    monkeypatch.setattr(logs, "AGAIN", 0)
    server.status = 200
    assert texts(read) == ["line 1", "line 2", "line 3"]
    server.status = status
    assert texts(read, after=1) == ["line 2", "line 3"], "what is whole is not asked for again"


def test_a_log_that_grows_is_read_again_too(server: Replayed, read: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "AGAIN", 0)
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

    monkeypatch.setattr(logs, "AGAIN", 0)
    with monkeypatch.context() as at_first:
        at_first.setattr(Path, "open", full)
        with pytest.raises(Unavailable, match="No space left"):
            texts(read)
    assert texts(read) == ["line 1", "line 2", "line 3"]


def test_nothing_is_left_behind(server: Replayed, read: Logs) -> None:
    texts(read, ended=False)
    read.close()
    until(lambda: not any(thread.name.startswith("log build-a") for thread in threading.enumerate()))
