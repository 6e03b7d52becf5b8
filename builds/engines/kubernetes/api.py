"""A client for the parts of the Kubernetes API that Kiln uses: JSON over HTTP, in one namespace.

The official client provides the parts that are hard to get right: finding the cluster, its certificates and tokens, and
the pool of connections. The models are not used. They take 1.2 s to import (0.3 s for the parts in use), and 0.25 s to
read a list of 500 objects; dictionaries contain the same data. No part of that client is imported before `connect`,
which a server calls after its socket has begun to listen.

No call waits indefinitely: every exchange has a total time limit, from the connection to the last byte of the answer.
"""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from builds.engines.kubernetes.circuit import Circuit
from builds.structs import make_ready

if TYPE_CHECKING:
    from kubernetes.client.configuration import Configuration

TIMEOUT = 5.0
"""Seconds for one exchange. The senders of webhooks wait ten for a response that may need several exchanges."""
SILENCE = 90.0
"""Default number of seconds without a byte after which a stream counts as broken."""
CONNECTIONS = 32
"""Connections that are kept for later requests; more may be open at a time."""
KEEPALIVE = {"idle": 10, "interval": 5, "count": 3}
"""Seconds and probes: the loss of a peer is detected after 25 s."""
CHUNK = 64 << 10
EXCERPT = 256
"""Characters that are kept of an answer from a proxy or load balancer instead of the API server."""

GROUPS = {
    "configmaps": "/api/v1",
    "events": "/api/v1",
    "jobs": "/apis/batch/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "pods": "/api/v1",
}
"""The kinds of objects, and their paths in the API."""

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
METADATA = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
ANY = {"Accept": "*/*"}
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Object = dict[str, Any]
"""An object in the API server's form."""
T = TypeVar("T")

Propagation = Literal["Background", "Foreground"]
"""Whether an object's dependents are deleted after the object, or before it
(https://kubernetes.io/docs/concepts/architecture/garbage-collection/)."""


class ApiError(Exception):
    """Root of this module's exceptions. The message is the API server's own if it sent one.

    ApiError
     ├── Absent         404  no such object, or no such namespace
     ├── AlreadyExists  409  an object of that name exists
     ├── Conflict409    409  the object was replaced, or changed since the revision in the request
     ├── AccessDenied   401, 403  the roles, a policy or a quota do not permit it
     ├── Invalid        400, 413, 422  the object is not valid
     ├── Gone           410  the resourceVersion or continue token is too old (.token continues the list)
     └── Busy           429, 5xx, no complete answer: retryable (after .retry_after seconds, if the server named a time)
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Absent(ApiError):
    pass


class AlreadyExists(ApiError):
    pass


class Conflict409(ApiError):
    pass


class AccessDenied(ApiError):
    pass


class Invalid(ApiError):
    pass


class Gone(ApiError):
    def __init__(self, message: str, *, status: int | None = None, token: str = "") -> None:
        super().__init__(message, status=status)
        self.token = token


class Busy(ApiError):
    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after


BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: AccessDenied,
    403: AccessDenied,
    404: Absent,
    409: Conflict409,
    413: Invalid,
    422: Invalid,
}


class _Details(msgspec.Struct):
    retry_after: float | None = msgspec.field(default=None, name="retryAfterSeconds")


class _ListMeta(msgspec.Struct):
    version: str = msgspec.field(default="", name="resourceVersion")
    token: str = msgspec.field(default="", name="continue")


class Status(msgspec.Struct):
    """The API server's response in place of an object (`meta/v1`)."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None
    metadata: _ListMeta | None = None

    def error(self, code: int, retry_after: float | None = None) -> ApiError:
        """The corresponding error; `code` and `retry_after` are those of the HTTP answer."""
        message = self.message or f"The Kubernetes API server answered {code}."
        if code == 401:  # noqa: PLR2004
            message = f"The Kubernetes API server rejected the credentials: {message}"
        if code == 410:  # noqa: PLR2004
            return Gone(message, status=code, token=self.metadata.token if self.metadata else "")
        if code == 429 or code >= 500:  # noqa: PLR2004
            said = self.details.retry_after if self.details else None
            return Busy(message, status=code, retry_after=retry_after if said is None else said)
        if self.reason == "AlreadyExists":
            return AlreadyExists(message, status=code)
        return BY_STATUS.get(code, ApiError)(message, status=code)


class ListPage(msgspec.Struct):
    """A part of a list, and the resourceVersion of the list: a watch from that version misses nothing."""

    metadata: _ListMeta
    found: list[Object] | None = msgspec.field(name="items")

    @property
    def items(self) -> list[Object]:
        """The objects. An empty list of metadata is `null`."""
        return self.found or []


def failure(code: int, body: bytes, retry_after: str | None = None) -> ApiError:
    """The error for an unsuccessful response."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:  # a proxy's or load balancer's page, or an empty body
        said = " ".join(body.decode(errors="replace").split())[:EXCERPT]
        status = Status(message=f"The Kubernetes API server answered {code}" + (f": {said}" if said else "."))
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return status.error(code, seconds)


class Stream:
    """A streamed response. `close`, from any thread, ends it immediately."""

    def __init__(self, response: urllib3.BaseHTTPResponse, host: str, silence: float) -> None:
        self._response = response
        self._host = host
        self._silence = silence
        self._closed = False
        _limit(response, silence)

    def lines(self) -> Iterator[bytes]:
        """Each line without its end, until the other side or `close` ends it. Raises Busy if the connection breaks."""
        pieces: list[bytes] = []
        for chunk in self._chunks():
            first, *others = chunk.split(b"\n")
            pieces.append(first)
            if others:
                yield b"".join(pieces)
                yield from others[:-1]
                pieces = [others[-1]]
        if not self._closed and (rest := b"".join(pieces)):
            yield rest

    def close(self) -> None:
        self._closed = True
        with suppress(OSError, RuntimeError, ValueError):  # it has ended already
            self._response.shutdown()

    def _chunks(self) -> Iterator[bytes]:
        try:
            while chunk := self._response.read1(CHUNK):
                if self._closed:  # data read after that was never decrypted
                    return
                yield chunk
        except (HTTPError, OSError, ValueError) as error:
            if not self._closed:
                raise _busy(self._host, error, self._silence) from None


class Api:
    """The API server of `configuration`, in one namespace. Safe for any number of threads.

    `timeout` is the total time in seconds for one exchange; each call can have its own. With a `circuit`, requests
    raise Busy immediately while the server does not answer.
    """

    def __init__(
        self, configuration: Configuration, namespace: str, *, timeout: float = TIMEOUT, circuit: Circuit | None = None
    ) -> None:
        from kubernetes.client.rest import RESTClientObject  # noqa: PLC0415 (see above)
        from kubernetes.utils.keepalive import tcp_keepalive_socket_options  # noqa: PLC0415

        make_ready()
        configuration.connection_pool_maxsize = CONNECTIONS
        configuration.socket_options = tcp_keepalive_socket_options(**KEEPALIVE)
        self.namespace = namespace
        self.host = configuration.host.rstrip("/")
        self._configuration = configuration
        self._pool: urllib3.PoolManager = RESTClientObject(configuration).pool_manager
        self._timeout = timeout
        self._circuit = circuit
        self._budget = threading.local()

    @classmethod
    def connect(cls, *, namespace: str | None = None, timeout: float = TIMEOUT, circuit: Circuit | None = None) -> Api:
        """Connects as the service account in a pod, elsewhere as kubectl would. Raises ApiError without either.

        The default `namespace` is the pod's own, or that of kubectl's current context.
        """
        from kubernetes.client.configuration import Configuration  # noqa: PLC0415 (see above)

        configuration = Configuration()
        own = _configure(configuration)
        return cls(configuration, namespace or own(), timeout=timeout, circuit=circuit)

    def close(self) -> None:
        self._pool.clear()

    def path(self, kind: str, *parts: str) -> str:
        """The path of the kind's objects, of one of them by name, or of a subresource (`path("pods", name, "log")`)."""
        return "/".join((GROUPS[kind], "namespaces", self.namespace, kind, *(quote(part, safe="") for part in parts)))

    # Objects. --------------------------------------------------------------------------------------------------------

    def create(self, kind: str, body: Object) -> Object:
        """Raises AlreadyExists, and the errors of all calls: AccessDenied, Invalid, Busy."""
        return _decoded(self.request("POST", self.path(kind), body=body))

    def read(self, kind: str, name: str, *, metadata_only: bool = False, timeout: float | None = None) -> Object:
        """Raises Absent."""
        accept = METADATA if metadata_only else JSON
        return _decoded(self.request("GET", self.path(kind, name), accept=accept, timeout=timeout))

    def patch(self, kind: str, name: str, body: Object, *, timeout: float | None = None) -> Object:
        """Applies a merge patch (RFC 7386). Raises Absent, and Conflict409 if it names another `resourceVersion`."""
        path = self.path(kind, name)
        return _decoded(self.request("PATCH", path, body=body, content_type=MERGE_PATCH, timeout=timeout))

    def delete(
        self,
        kind: str,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        policy: Propagation = "Background",
    ) -> None:
        """Deletes the object, and then its dependents; with `Foreground` the dependents first, then the object.

        Raises Absent, and Conflict409 if `uid` or `resource_version` does not match the object's.
        """
        given = {"uid": uid, "resourceVersion": resource_version}
        preconditions = {what: value for what, value in given.items() if value is not None}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}
        self.request("DELETE", self.path(kind, name), body={**options, "preconditions": preconditions})

    def list(
        self,
        kind: str,
        *,
        labels: str | None = None,
        fields: str | None = None,
        metadata_only: bool = False,
        limit: int = 500,
    ) -> Iterator[Object]:
        """Yields each object once, in order of the names."""
        for page in self.pages(kind, labels=labels, fields=fields, metadata_only=metadata_only, limit=limit):
            yield from page.items

    def pages(
        self,
        kind: str,
        *,
        labels: str | None = None,
        fields: str | None = None,
        metadata_only: bool = False,
        limit: int = 500,
    ) -> Iterator[ListPage]:
        """A list in parts, in the state at the time of the first part.

        A reader that takes minutes gets the later parts in their present state: the API server has dropped the earlier
        one, and names a token to continue.
        """
        accept = METADATA_LIST if metadata_only else JSON
        query: dict[str, object] = {"labelSelector": labels, "fieldSelector": fields, "limit": limit, "continue": None}
        while True:
            try:
                answer = self.request("GET", self.path(kind), accept=accept, query=query)
            except Gone as gone:
                if not gone.token or gone.token == query["continue"]:
                    raise
                query["continue"] = gone.token
                continue
            page = _decode(answer, ListPage)
            yield page
            if not page.metadata.token:
                return
            query["continue"] = page.metadata.token

    # Exchanges. ------------------------------------------------------------------------------------------------------

    def get(self, path: str, **query: object) -> bytes:
        return self.request("GET", path, query=query)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: object | None = None,
        content_type: str | None = None,
        accept: str | None = None,
        query: Mapping[str, object] | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """The body of the answer. Raises the corresponding error for an unsuccessful or missing answer.

        A GET whose connection breaks is sent once more, because the other side may just have closed a kept connection.
        Any other method might take effect twice.
        """
        limit = self._allowance(timeout)
        headers = {"Accept": accept or JSON, "Content-Type": content_type or JSON}
        sent = None if body is None else msgspec.json.encode(body)
        with self._guarded(limit) as allowed:
            return self._exchange(method, self._url(path, query), headers, sent, allowed)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Limits all exchanges of this thread inside to `seconds` in total, in addition to the limit of each."""
        before = self._deadline
        self._budget.deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._budget.deadline = before

    @property
    def _deadline(self) -> float:
        found: float = getattr(self._budget, "deadline", math.inf)
        return found

    def check(self) -> None:
        """Raises Busy while the server is known not to answer."""
        if self._circuit is not None and self._circuit.open:
            raise self._silence()

    def missed(self, error: Exception) -> None:
        """Counts a caller that waited for another caller's request, which ended with `error`."""
        if self._circuit is not None and isinstance(error, ApiError) and error.status is None:
            self._circuit.missed()

    @property
    def failing(self) -> bool:
        """Whether calls were unanswered lately (`Circuit.failing`)."""
        return self._circuit is not None and self._circuit.failing

    def _allowance(self, timeout: float | None = None) -> float:
        """Seconds for the next exchange. Raises Busy if none are left (`within`)."""
        limit = self._timeout if timeout is None else timeout
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise Busy(f"The Kubernetes API server at {self.host} answers too slowly.")
        return min(limit, left)

    def _silence(self) -> Busy:
        return Busy(f"The Kubernetes API server at {self.host} does not answer. Try again in a moment.")

    @contextmanager
    def _guarded(self, limit: float) -> Iterator[float]:
        """The time limit of an exchange in seconds. Raises Busy while the server does not answer."""
        circuit = self._circuit
        if circuit is None:
            yield limit
            return
        if not circuit.passes():
            raise self._silence()
        try:
            yield circuit.patience(limit)
        except ApiError as error:
            circuit.unanswered() if error.status is None else circuit.answered()
            raise
        circuit.answered()

    def _exchange(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, limit: float) -> bytes:
        deadline = time.monotonic() + limit
        tries = 2 if method == "GET" else 1
        while True:
            tries -= 1
            try:
                response = self._open(method, url, deadline, headers=headers, body=body)
                return _whole(response, deadline)
            except (HTTPError, OSError) as error:
                if not tries or not _broke(error):
                    raise _busy(self.host, error, limit) from None

    @contextmanager
    def stream(
        self, path: str, query: Mapping[str, object] | None = None, *, silence: float = SILENCE
    ) -> Iterator[Stream]:
        """A streamed answer, such as a watch or a followed log. Raises as `request` does.

        After `silence` seconds without a byte it counts as broken.
        """
        with self._guarded(self._allowance()) as allowed:
            try:
                response = self._open("GET", self._url(path, query), time.monotonic() + allowed, headers=ANY)
            except (HTTPError, OSError) as error:
                raise _busy(self.host, error, allowed) from None
        try:
            yield Stream(response, self.host, silence)
        finally:
            response.close()  # not back to the pool: more data may arrive on it

    def _url(self, path: str, query: Mapping[str, object] | None) -> str:
        asked = urlencode({name: value for name, value in (query or {}).items() if value is not None})
        return f"{self.host}{path}" + (f"?{asked}" if asked else "")

    def _open(
        self, method: str, url: str, deadline: float, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        """The answer up to its head, if successful. Raises ApiError for an unsuccessful one; HTTPError, OSError without
        an answer."""
        response = self._pool.request(
            method,
            url,
            body=body,
            headers={**headers, "User-Agent": "kiln", **self._authorization()},
            timeout=urllib3.Timeout(total=_left(deadline)),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        if response.status >= 300:  # noqa: PLR2004
            raise failure(response.status, _whole(response, deadline), response.headers.get("Retry-After"))
        return response

    def _authorization(self) -> dict[str, str]:
        """The header for this request. A service account's token changes every hour, and is read again every minute."""
        try:
            settings = self._configuration.auth_settings()
        except Exception as error:  # noqa: BLE001 (a file, or a program that a kubeconfig names)
            raise Busy(f"The credentials for the Kubernetes API server cannot be read: {error}.") from None
        token = settings.get("BearerToken")
        return {"Authorization": token["value"].strip()} if token and token["value"] else {}


def _configure(configuration: Configuration) -> Callable[[], str]:
    """Sets up the configuration. The returned function gives the namespace that belongs to it."""
    from kubernetes import config  # noqa: PLC0415 (see above)

    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        inside = str(error).rstrip(".")
    else:
        return lambda: NAMESPACE_FILE.read_text().strip()
    try:
        config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        _, current = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        outside = str(error).rstrip(".")
        tried = f"neither by a service account ({inside}) nor by a kubeconfig ({outside})"
        raise ApiError(f"No Kubernetes API server found, {tried}.") from None
    return lambda: current["context"].get("namespace") or "default"


def _whole(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """The body. The limit applies to the whole of it, because it may arrive in pieces."""
    chunks = []
    try:
        while chunk := response.read1(CHUNK):
            chunks.append(chunk)
            _limit(response, _left(deadline))
    except BaseException:
        response.close()
        raise
    return b"".join(chunks)


def _left(deadline: float) -> float:
    """Seconds until the deadline; never zero, which would mean no limit."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _limit(response: urllib3.BaseHTTPResponse, seconds: float) -> None:
    """Sets the time limit for the next piece. (Without a connection the response has been read, or keeps its limit.)"""
    sock = getattr(response.connection, "sock", None)
    if sock is not None:
        sock.settimeout(seconds)


def _decoded(body: bytes) -> Object:
    return _decode(body, Object)


def _decode(body: bytes, form: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.MsgspecError as error:
        raise Busy(f"The response is not one of a Kubernetes API server: {error}.") from None


def _busy(host: str, error: Exception, limit: float) -> Busy:
    return Busy(f"The Kubernetes API server at {host} {_why(error, limit)}.")


def _why(error: Exception, limit: float) -> str:
    match error:
        case NameResolutionError():
            why = "cannot be reached: its name cannot be resolved"
        case NewConnectionError():  # urllib3 counts it as a timeout, too
            cause = error.__cause__ or error.__context__
            why = f"cannot be reached: {getattr(cause, 'strerror', None) or 'no connection'}"
        case ConnectTimeoutError() | ReadTimeoutError() | TimeoutError():
            why = f"did not answer within {limit:g} s"
        case SSLError(args=[ssl.SSLCertVerificationError() as cause, *_]):
            why = f"cannot be trusted: {cause.verify_message.rstrip('.')}"
        case _ if _broke(error):
            why = "closed the connection before the end of its response"
        case _:
            why = f"gave no answer ({type(error).__name__})"
    return why


def _broke(error: Exception) -> bool:
    """Whether an existing connection has ended; over TLS that can be a TLS error."""
    match error:
        case SSLError(args=[ssl.SSLEOFError() | ssl.SSLZeroReturnError(), *_]):
            return True
    return isinstance(error, ProtocolError | ConnectionError)
