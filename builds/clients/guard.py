"""A forward proxy on loopback, through which git and all other tools of a build reach the network.

A list of known URLs does not confine a tool. The tool can read `.gitmodules` differently from Kiln, a server can
redirect, and a name can resolve to another address a moment later. Therefore this proxy is the tools' only access to
the network. It resolves each name itself, checks the host, the port and every address against the policy, and connects
to the address that it checked. If Kiln's own environment names a proxy for the host, the connection goes through that
proxy.

A user name in the proxy's URL gives the purpose of a connection. It is one permitted repository (its host and port
only), a repository that git reaches without HTTP (`DIRECT`), or anything else that a build fetches (`ANYTHING`). The
password is random, so that neither a `RUN` step that reaches this machine's loopback nor another user of the machine
can use the proxy.

The maintained proxies (proxy.py, mitmproxy) do not suit: they bring an event loop or a TLS interceptor. Their plugins
see the name of a host but do not choose the address to connect to. CONNECT (RFC 9110 §9.3.6) and absolute-form (RFC
9112 §3.2.2) suffice: TLS stays between the tool and the host.
"""

from __future__ import annotations

import base64
import logging
import re
import secrets
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from builds.errors import CannotBuild, RepositoryError, RepositoryRefused, RequestError, TryAgain, Unreachable
from builds.repository import Policy, Repository, canonical

log = logging.getLogger(__name__)

ANYTHING = "anything"
"""The user name for connections that do not belong to a repository: objects of Git LFS, a language's list of
versions."""

DIRECT = "direct"
"""The user name for permitted repositories at `ssh://` and `git://`."""

UNKNOWN = "unknown"
"""The user name that may not connect to anything. git uses it for every URL that is not permitted."""

CONNECT_TIMEOUT = 8.0
"""Seconds for resolving a name, and for each of its addresses."""

CHAINED_TIMEOUT = 2.0
"""Seconds for resolving a name that the site's proxy resolves as well: the proxy may be the only one that can."""

MAX_HEAD = 64 << 10
"""Bytes of a request line or status line with its fields."""

HEAD_TIMEOUT = 3.0
"""Seconds for a whole head, even if it arrives in pieces: the tools are on this machine."""

ENDED_TIMEOUT = 60.0
"""Seconds of silence after which a server's connection is closed, if its client has ended its own side."""

MAX_READERS = 256
"""Concurrent connections whose head, with the password, has not been read."""

MAX_CONNECTIONS = 64
"""Concurrent connections with the password: a build's tools use a few."""

_UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class _Request(NamedTuple):
    """`target` is the destination, as a repository's address with a meaningless path. `uri` is in absolute-form, `head`
    ends with an empty line, and `rest` holds the bytes that followed."""

    method: str
    uri: str
    target: Repository
    user: str
    head: bytes
    rest: bytes


class _Refused(Exception):
    """The request is answered with this status and not forwarded."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Guard:
    """The proxy, from its construction to `close`. Also a context manager. Safe to use from many threads."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._secret = secrets.token_urlsafe(24)
        self._repositories: dict[str, Repository] = {}
        self._readers = threading.BoundedSemaphore(MAX_READERS)
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.error: RequestError | None = None
        """Why a connection was refused or failed: the first reason since this was last set to `None`."""
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Accepts no further connections; open ones end with the tools that hold them."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`, which `close` alone does not
        self._listener.close()

    def proxy(self, user: str) -> str:
        """The proxy's URL for `ANYTHING`, `DIRECT` or `UNKNOWN`."""
        return f"http://{user}:{self._secret}@127.0.0.1:{self._listener.getsockname()[1]}"

    def proxy_for(self, repository: Repository) -> str:
        """The proxy's URL for connections to this repository's host and port. The caller has checked the policy."""
        known = next((user for user, one in self._repositories.items() if one == repository), None)
        user = known or f"r{len(self._repositories)}"
        self._repositories[user] = repository
        return self.proxy(user)

    def _accept(self) -> None:
        while True:
            self._readers.acquire()
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, suppress(OSError):
                self._answer(client)
        except Exception:  # a fault in one connection must not end the process
            log.exception("A connection through the guard failed")

    def _answer(self, client: socket.socket) -> None:
        try:
            request = self._admitted(client)
            with self._places, self._connected(request) as server:
                if request.method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    server.sendall(request.rest)
                _relay(client, server, _Closing(done=request.method == "CONNECT"))
        except _Refused as refused:
            client.sendall(_response(refused.status, str(refused)))
        except RequestError as error:
            self.error = self.error or error
            status = "403 Forbidden" if isinstance(error, RepositoryError) else "502 Bad Gateway"
            client.sendall(_response(status, str(error)))

    def _admitted(self, client: socket.socket) -> _Request:
        """The request of a client with the password. The client then no longer counts as a reader. Raises as
        `_read`."""
        try:
            return self._read(client)
        finally:
            self._readers.release()

    def _read(self, client: socket.socket) -> _Request:
        """Raises _Refused, RepositoryError, TimeoutError."""
        head, _, rest = _received(client).partition(b"\r\n\r\n")
        first, *fields = head.decode("latin-1").split("\r\n")
        line = re.fullmatch(r"([A-Z]+) (\S+) HTTP/1\.[01]", first)
        if not line:
            raise _Refused("400 Bad Request")
        user = self._user(fields)
        if not all(map(_FIELD.fullmatch, fields)):
            raise _Refused("400 Bad Request")
        method, uri = line[1], line[2]
        scheme, authority, path = ("https", uri, "") if method == "CONNECT" else _absolute(uri)
        target = canonical(f"{scheme}://{authority}/-/-")
        named = target.url.removesuffix("/-/-")
        kept = [field for field in fields if not _DROPPED.match(field)]
        lines = [f"{method} {path} HTTP/1.1", f"Host: {named.partition('//')[2]}", *kept, "Connection: close", "", ""]
        return _Request(method, named + path, target, user, "\r\n".join(lines).encode("latin-1"), rest)

    def _user(self, fields: Sequence[str]) -> str:
        """The user name of the request. Raises _Refused for a wrong password."""
        for field in fields:
            if given := re.fullmatch(r"(?i)proxy-authorization: *basic +([A-Za-z0-9+/=]+) *", field):
                with suppress(ValueError):
                    user, _, password = base64.b64decode(given[1]).decode().partition(":")
                    if secrets.compare_digest(password.encode(), self._secret.encode()):
                        return user
        raise _Refused("407 Proxy Authentication Required")

    def _connected(self, request: _Request) -> socket.socket:
        """A connection to the target, on which a request in absolute-form has been sent. Raises RequestError."""
        target = request.target
        repository = self._checked(request.user, target)
        upstream = "" if request.user == DIRECT else _site_proxy(target)
        try:
            if upstream:
                with suppress(TryAgain, CannotBuild):  # if this fails, the site's proxy resolves the name
                    self._addresses(repository, target, CHAINED_TIMEOUT)
                return _through(upstream, request)
            return _direct(self._addresses(repository, target), request)
        except OSError as error:
            raise Unreachable(f"{_place(target)} could not be reached: {error.strerror or error}.") from None

    def _checked(self, user: str, target: Repository) -> Repository | None:
        """The permitted repository at the target; `None` for `ANYTHING`. Raises RepositoryRefused."""
        if user == ANYTHING:
            self._policy.check_host(target)
            return None
        if user == DIRECT:
            found = [one for one in self._repositories.values() if one.scheme not in _PORTS]
        else:
            found = [one for one in (self._repositories.get(user),) if one and one.scheme == target.scheme]
        for repository in found:
            if (repository.host, repository.port) == (target.host, target.port):
                return repository
        raise RepositoryRefused(
            f"A connection to {_authority(target) if user == DIRECT else _place(target)} was refused: neither the "
            "repository nor a submodule of its .gitmodules has this address."
        )

    def _addresses(
        self, repository: Repository | None, target: Repository, seconds: float = CONNECT_TIMEOUT
    ) -> Sequence[str]:
        """Every address of the host, each permitted. Raises RepositoryRefused, CannotBuild, Unreachable."""
        permits = self._policy.permits_address if repository else self._policy.permits_host_address
        found = addresses(target.host, seconds)
        for address in found:
            if not permits(repository or target, address):
                raise RepositoryRefused(
                    f"{target.host} leads to {address}, which is in a private network; only where "
                    "KILN_ALLOWED_REPOSITORIES names this host are its repositories fetched."
                )
        return found


def _received(client: socket.socket) -> bytes:
    """The head and all bytes that came with it. Raises _Refused, and TimeoutError after `HEAD_TIMEOUT`."""
    deadline = time.monotonic() + HEAD_TIMEOUT
    received = b""
    while b"\r\n\r\n" not in received:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        client.settimeout(left)
        piece = client.recv(1 << 16)
        if not piece or len(received) > MAX_HEAD:
            raise _Refused("400 Bad Request")
        received += piece
    client.settimeout(CONNECT_TIMEOUT)
    return received


def addresses(host: str, seconds: float = CONNECT_TIMEOUT) -> list[str]:
    """The addresses of a name, within so many seconds. Raises CannotBuild for an unknown name, Unreachable.

    A thread resolves the name, because the C library's look-up can be neither interrupted nor limited.
    """
    found: list[str] = []
    trouble: list[OSError | UnicodeError] = []

    def ask() -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found.extend(dict.fromkeys(str(entry[4][0]) for entry in entries))
        except (OSError, UnicodeError) as error:
            trouble.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return [address.partition("%")[0] for address in found]
    if any(isinstance(error, socket.gaierror) and error.errno in _UNKNOWN_NAME for error in trouble):
        raise CannotBuild(f"The host {host} does not exist in DNS.")
    raise Unreachable(f"The name {host} could not be looked up.")


def _direct(found: Sequence[str], request: _Request) -> socket.socket:
    """A connection to one of the addresses, on which a request in absolute-form has been sent. Raises OSError."""
    server = _connect(found, request.target.port or 0)
    if request.method != "CONNECT":
        server.sendall(request.head + request.rest)
    return server


def _connect(found: Sequence[str], port: int) -> socket.socket:
    """A connection to the first address that accepts it. Raises OSError, the one of the last address."""
    trouble: OSError = OSError("it has no address")
    for address in found:
        try:
            return socket.create_connection((address, port), CONNECT_TIMEOUT)
        except OSError as error:
            trouble = error
    raise trouble


# The site's own proxy


def _site_proxy(target: Repository) -> str:
    """The proxy that Kiln's environment names for this host; empty for a direct connection."""
    if proxy_bypass(target.host):
        return ""
    proxies = getproxies()
    return proxies.get(target.scheme) or proxies.get("all") or ""


def _through(upstream: str, request: _Request) -> socket.socket:
    """A connection through the site's proxy, which resolves names itself. Raises OSError, Unreachable."""
    parts = urlsplit(upstream if "://" in upstream else f"http://{upstream}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unreachable("The proxy that Kiln's environment names is of another kind than http and https.")
    server = socket.create_connection((parts.hostname, parts.port or _PORTS[parts.scheme]), CONNECT_TIMEOUT)
    if parts.scheme == "https":
        server = ssl.create_default_context().wrap_socket(server, server_hostname=parts.hostname)
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    field = b"Proxy-Authorization: Basic " + base64.b64encode(login) + b"\r\n" if parts.username else b""
    if request.method != "CONNECT":
        _, _, fields = request.head.partition(b"\r\n")
        line = f"{request.method} {request.uri} HTTP/1.1\r\n".encode("latin-1")
        server.sendall(line + field + fields + request.rest)
        return server
    authority = _authority(request.target).encode()
    server.sendall(b"CONNECT " + authority + b" HTTP/1.1\r\nHost: " + authority + b"\r\n" + field + b"\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        piece = server.recv(1)  # must not consume bytes after the head
        if not piece or len(answer) > MAX_HEAD:
            raise Unreachable(f"The proxy {parts.hostname} closed the connection to {_place(request.target)}.")
        answer += piece
    status = answer.split(b"\r\n")[0].decode("latin-1")
    if not re.match(r"HTTP/1\.[01] 2\d\d", status):
        raise Unreachable(f"The proxy {parts.hostname} does not connect to {_place(request.target)}: {status[:200]}")
    return server


_PORTS = {"http": 80, "https": 443}

_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*")
"""RFC 9112 §5: no folded lines, and no line breaks that only some parsers recognize."""

_DROPPED = re.compile(r"(?i)(proxy-[a-z]+|connection|keep-alive|host):")
"""Fields that are meant for this proxy, and `Host`, which is derived from the target (RFC 9112 §3.2.2): a client could
name another host in it than the checked one."""


def _absolute(uri: str) -> tuple[str, str, str]:
    """Scheme, authority and the rest of an absolute-form target. Raises _Refused."""
    whole = re.fullmatch(r"(?i)(http)://([^/?#]+)([^#]*)", uri)
    if not whole:
        raise _Refused("400 Bad Request")
    return whole[1].lower(), whole[2], whole[3] if whole[3].startswith("/") else f"/{whole[3]}"


def _authority(target: Repository) -> str:
    return f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"


def _place(target: Repository) -> str:
    return f"{target.scheme}://{_authority(target)}"


def _response(status: str, sentence: str) -> bytes:
    body = f"{sentence}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    challenge = 'Proxy-Authenticate: Basic realm="kiln"\r\n' if status.startswith("407") else ""
    return f"{head}{challenge}Connection: close\r\n\r\n".encode() + body


class _Closing:
    """Adds `Connection: close` to a response (after any of status 1xx) as it passes: a connection serves one request.

    A tool would otherwise reuse it for its next request, which may be for another host.
    """

    def __init__(self, *, done: bool) -> None:
        self._done = done
        self._held = b""

    def __call__(self, data: bytes) -> bytes:
        """The bytes to pass on. Raises ConnectionAbortedError for a head that does not end."""
        if self._done:
            return data
        self._held += data
        passed = b""
        while b"\r\n\r\n" in self._held and not self._done:
            head, _, self._held = self._held.partition(b"\r\n\r\n")
            self._done = not re.match(rb"HTTP/1\.\d 1\d\d", head)
            passed += head + (b"\r\nConnection: close\r\n\r\n" if self._done else b"\r\n\r\n")
        if not self._done and len(self._held) > MAX_HEAD:
            raise ConnectionAbortedError("The head of the answer is too long.")
        return passed + self._held if self._done else passed


def _relay(client: socket.socket, server: socket.socket, closing: _Closing) -> None:
    """Passes bytes on in both directions, until the server ends or stays silent to a client that has ended."""
    client.settimeout(None)
    server.settimeout(None)
    patience: float | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ)
        selector.register(server, selectors.EVENT_READ)
        while ready := selector.select(patience):
            for key, _ in ready:
                side = client if key.fileobj is client else server
                data = side.recv(1 << 16)
                if side is server and not data:
                    return
                if side is server:
                    client.sendall(closing(data))
                elif data:
                    server.sendall(data)
                else:  # git has sent its whole request (`git://`) or has ended
                    selector.unregister(client)
                    server.shutdown(socket.SHUT_WR)
                    patience = ENDED_TIMEOUT
