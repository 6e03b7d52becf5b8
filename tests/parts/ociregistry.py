"""Plain HTTP before a real registry, answering as other registries do.

with OciProxy(registry, behaviour) as oci_proxy:
    use(oci_proxy.host)

A `Behaviour` is asked before each request is passed on, and may change the answer that comes back.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.parts.registry import Registry

USER, PASSWORD = "ada", "correct-horse"


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def set(self, name: str, value: str | None) -> None:
        """`None` takes the header away."""
        self.headers = [pair for pair in self.headers if pair[0].lower() != name.lower()]
        if value is not None:
            self.headers.append((name, value))


@dataclass
class Asked:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def name(self) -> str:
        """The repository's."""
        return re.split(r"/(?:manifests|blobs|tags|referrers)/", self.target.removeprefix("/v2/"))[0]

    @property
    def login(self) -> str | None:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        return base64.b64decode(value).decode() if scheme == "Basic" else None

    @property
    def token(self) -> str | None:
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        return value if scheme == "Bearer" else None


class Behaviour:
    """An open registry. `before` may answer in the registry's place; `after` may change what it has answered."""

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:  # noqa: ARG002
        return None

    def after(self, asked: Asked, answer: Answer) -> Answer:  # noqa: ARG002
        return answer


class Stuck(Behaviour):
    """A registry that answers reads, and no push. Closing the proxy cuts off waiting requests: a daemon has few places
    for uploads, and keeps those whose builder has gone."""

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:
        pushes = asked.method in ("POST", "PATCH", "PUT") or (asked.method == "HEAD" and "/blobs/" in asked.target)
        if pushes:
            oci_proxy.closing.wait()
            raise ConnectionAbortedError
        return None


def refusal(status: int, code: str, message: str, *challenges: str) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    named = [("WWW-Authenticate", challenge) for challenge in challenges]
    return Answer(status, [*named, ("Content-Type", "application/json")], body)


class Tokens(Behaviour):
    """Distribution's token authentication. `grants` gives the actions that USER has, from whether the repository exists
    and the actions of the request.

    A request beyond its token's scope is answered with the status `denied`.
    """

    def __init__(
        self, grants: Callable[[bool, set[str]], set[str]] = lambda _, asked: asked, denied: int = 401
    ) -> None:
        self.grants, self.denied = grants, denied

    def challenge(self, asked: Asked, oci_proxy: OciProxy, *more: str) -> str:
        scope = f'scope="repository:{asked.name}:{_NEEDED.get(asked.method, "pull,push")}"'
        return ",".join([f'Bearer realm="{oci_proxy.url}/token"', 'service="oci_proxy"', scope, *more])

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:
        if asked.target.startswith("/token"):
            return self._token(asked, oci_proxy)
        if asked.target == "/v2/" and asked.token:
            return None
        needed = {*_NEEDED.get(asked.method, "pull,push").split(",")}
        if asked.token and needed <= {*_opened(asked.token).get(asked.name, [])}:
            return None
        status = self.denied if asked.token else 401
        more = ['error="insufficient_scope"'] if asked.token else []
        return refusal(status, "DENIED", "not authorized for that", self.challenge(asked, oci_proxy, *more))

    def _token(self, asked: Asked, oci_proxy: OciProxy) -> Answer:
        query = parse_qs(urlsplit(asked.target).query)
        if asked.login not in (None, f"{USER}:{PASSWORD}"):
            return refusal(401, "UNAUTHORIZED", "incorrect username or password")
        granted = {}
        for scope in query.get("scope", []) if asked.login else []:
            _, name, actions = scope.split(":")
            granted[name] = sorted(self.grants(oci_proxy.has(name), {*actions.split(",")}))
        token = base64.urlsafe_b64encode(json.dumps(granted).encode()).decode()
        return Answer(200, [("Content-Type", "application/json")], json.dumps({"token": token}).encode())


_NEEDED = {"GET": "pull", "HEAD": "pull"}


def _opened(token: str) -> dict[str, list[str]]:
    granted: dict[str, list[str]] = json.loads(base64.urlsafe_b64decode(token))
    return granted


class OciProxy:
    """Listens until `close`."""

    def __init__(self, registry: Registry, behaviour: Behaviour | None = None) -> None:
        self.registry = registry
        self.behaviour = behaviour or Behaviour()
        self.requests: list[Asked] = []
        self.closing = threading.Event()
        oci_proxy = self

        class Handler(_Handler):
            served_by = oci_proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> OciProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def has(self, name: str) -> bool:
        """Whether the repository has anything, asked of the registry itself."""
        return self.forward(Asked("GET", f"/v2/{name}/tags/list", {}, b"")).status == 200

    def forward(self, asked: Asked) -> Answer:
        connection = http.client.HTTPConnection(self.registry.address, self.registry.port, timeout=20)
        try:
            headers = {name: value for name, value in asked.headers.items() if name.lower() not in _NOT_FORWARDED}
            connection.request(asked.method, asked.target, asked.body or None, {**headers, "Host": self.host})
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()


_NOT_FORWARDED = {"connection", "content-length", "host", "transfer-encoding", "authorization", "expect"}


class _Handler(BaseHTTPRequestHandler):
    served_by: OciProxy
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        named = {name: ", ".join(self.headers.get_all(name, [])) for name in self.headers}
        asked = Asked(self.command, self.path, named, self._body())
        self.served_by.requests.append(asked)
        behaviour = self.served_by.behaviour
        try:
            answer = behaviour.before(asked, self.served_by)
        except ConnectionAbortedError:
            self.close_connection = True
            return
        if answer is None:
            answer = behaviour.after(asked, self.served_by.forward(asked))
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("connection", "transfer-encoding", "date", "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in answer.headers}.get("content-length")
        own = length if self.command == "HEAD" and length else str(len(answer.body))
        self.send_header("Content-Length", own)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 (http.server's names)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        pass
