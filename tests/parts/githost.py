"""A Git host on loopback, or on another address: smart HTTP over git's own `http-backend`, with the faults that real
hosts show.

Both ends are real git, so a refusal, a redirect or a missing answer in a test has its effect on the real client. The
demo serves its sample repository with it: hooks in the bare repositories run as on any host.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

CONFIGURATION = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.compression",
    "GIT_CONFIG_VALUE_0": "0",
}
"""Git's configuration on this side, without the machine's. Most repositories hold a busybox, which takes longer to
compress than all else that git does for a build."""
AUTHOR = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    **CONFIGURATION,
}


class GitHost:
    """Serves the bare repositories under `root` at `http://<address>:<port>/<path>.git` until `close`.

    A path prefix in `passwords` requires that credential (`user`, `password`), and a prefix in `redirects` is answered
    with 302 to its target. A prefix in `hanging` is accepted and never answered; a prefix in `old` is served by
    protocol 0, which gives only commits that refs point at. All may be changed while it runs. `requests` are the
    targets asked for so far, `credentials` those among them that came with one. `api` answers paths under `/api/` and
    `/rest/api/`: it is given the target and the headers, and returns status, headers and content. `objects` are those
    of its LFS server (`<repository>/info/lfs`), by SHA-256; `download` is the base of their URLs, if not here. With
    `tls` it is also a proxy that takes itself for every host.
    """

    def __init__(self, root: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        self.root = root
        self.api: Callable[[str, Mapping[str, str]], tuple[int, Mapping[str, str], bytes]] | None = None
        self.objects: dict[str, bytes] = {}
        self.download: str | None = None
        self.tls: ssl.SSLContext | None = None
        self.passwords: dict[str, tuple[str, str]] = {}
        self.redirects: dict[str, str] = {}
        self.hanging: set[str] = set()
        self.old: set[str] = set()
        self.requests: list[str] = []
        self.credentials: list[str] = []
        self.released = threading.Event()
        host = self

        class Handler(_Handler):
            served_by = host

        self._server = ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        self.address, self.port = address, self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def base(self) -> str:
        return f"http://{self.address}:{self.port}"

    def url(self, path: str) -> str:
        return f"{self.base}/{path}.git"

    def bare(self, path: str) -> Path:
        return self.root / f"{path}.git"

    def create(self, path: str, content: Path | None = None) -> str:
        """Creates a bare repository that accepts pushes. With `content`, it gets a first commit on `main`, whose id is
        returned."""
        bare = self.bare(path)
        git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
        return commit(bare, content) if content else ""

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> GitHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def git(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> str:
    """Runs git as a fixed author, without the caller's `GIT_*`, and returns its output. Raises CalledProcessError."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = {**clean, **AUTHOR, **(env or {})}
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, input=stdin, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(
    bare: Path, content: Path, branch: str = "main", message: str = "A commit", links: Mapping[str, str] | None = None
) -> str:
    """Commits a folder as it is on top of `branch` and returns the commit's id.

    `links` are submodules by path and commit: entries of the tree that `.gitmodules` describes.
    """
    with tempfile.TemporaryDirectory() as work:
        index = {"GIT_DIR": str(bare), "GIT_WORK_TREE": str(content), "GIT_INDEX_FILE": f"{work}/index"}
        git("add", "--all", "--force", ".", cwd=content, env=index)
        for path, target in (links or {}).items():
            git("update-index", "--add", "--cacheinfo", f"160000,{target},{path}", cwd=content, env=index)
        tree = git("write-tree", env=index)
    head = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}"], cwd=bare, check=False, capture_output=True
    )
    parents = ["-p", head.stdout.decode().strip()] if head.returncode == 0 else []
    made = git("commit-tree", tree, "-m", message, *parents, cwd=bare)
    git("update-ref", f"refs/heads/{branch}", made, cwd=bare)
    return made


class _Handler(BaseHTTPRequestHandler):
    """One request to `git http-backend` (git-http-backend(1)), which speaks CGI."""

    served_by: GitHost
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_CONNECT(self) -> None:
        if self.served_by.tls is None:
            self.send_error(405)
            return
        self.send_response(200)
        self.end_headers()
        with self.served_by.tls.wrap_socket(self.connection, server_side=True) as inside:
            type(self)(inside, self.client_address, self.server)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _serve(self) -> None:
        host, path = self.served_by, urlsplit(self.path).path
        host.requests.append(self.path)
        if "Authorization" in self.headers:
            host.credentials.append(self.path)
        with tempfile.TemporaryFile() as body:
            self._read_body(body)
            if _under(path, host.hanging) is not None:
                host.released.wait()
                self.close_connection = True
                return
            moved = _under(path, host.redirects)
            if host.api and path.startswith(("/api/", "/rest/api/")):
                self._answer(*host.api(self.path, dict(self.headers)))
            elif moved is not None:
                self._answer(302, {"Location": host.redirects[moved] + self.path.removeprefix(moved)})
            elif not self._may_come_in(path):
                self._answer(401, {"WWW-Authenticate": 'Basic realm="git"'})
            elif path.endswith("/info/lfs/objects/batch"):
                self._batch(body)
            elif (oid := path.rpartition("/lfs-objects/")[2]) in host.objects:
                self._answer(200, {"Content-Type": "application/octet-stream"}, host.objects[oid])
            else:
                self._run(body)

    def _batch(self, body: IO[bytes]) -> None:
        """git-lfs/docs/api/batch.md, for downloads."""
        host = self.served_by
        body.seek(0)
        objects = []
        for one in json.load(body)["objects"]:
            href = f"{host.download or host.base + '/lfs-objects'}/{one['oid']}"
            known = {"actions": {"download": {"href": href}}}
            lacks = {"error": {"code": 404, "message": "Object does not exist"}}
            objects.append({**one, **(known if one["oid"] in host.objects else lacks)})
        content = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self._answer(200, {"Content-Type": "application/vnd.git-lfs+json"}, content)

    def _read_body(self, body: IO[bytes]) -> None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body.write(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            body.write(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        body.flush()

    def _may_come_in(self, path: str) -> bool:
        prefix = _under(path, self.served_by.passwords)
        if prefix is None:
            return True
        user, password = self.served_by.passwords[prefix]
        return self.headers.get("Authorization") == "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def _run(self, body: IO[bytes]) -> None:
        host, target = self.served_by, urlsplit(self.path)
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            **CONFIGURATION,
            "GIT_PROJECT_ROOT": str(host.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": "" if _under(target.path, host.old) else self.headers.get("Git-Protocol", ""),
            "REQUEST_METHOD": self.command,
            "PATH_INFO": target.path,
            "QUERY_STRING": target.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(body.tell()),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": self.client_address[0],
            "REMOTE_USER": "ada",
        }
        body.seek(0)
        answer = subprocess.run(["git", "http-backend"], env=env, stdin=body, capture_output=True, check=False)
        head, _, content = answer.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self._answer(int(headers.pop("Status", "200").split()[0]), headers, content)

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _under(path: str, prefixes: Mapping[str, object] | set[str]) -> str | None:
    return next((prefix for prefix in prefixes if path.startswith(prefix)), None)
