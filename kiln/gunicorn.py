"""Web's server: gunicorn with one process and many threads.

One process, because its metrics are its own, and a viewer costs a thread, not a process; replicas scale it. The worker
imports the application after the socket listens, so that probes get an answer before the import of Flask. Only `KILN_*`
configures the server: gunicorn's own files and variables are ignored.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import logging
import selectors
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, cast

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.errors import AppImportError  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

from builds.engines import EngineError
from eventing.wire import REPEATED
from kiln import discovery, logs
from kiln.arrival import Arrival
from kiln.ops import Ops
from kiln.settings import Settings

GRACE = 30
"""Seconds for active requests after SIGTERM: the longest, other than a viewer's, waits 20 s for its turn to write."""
STARTING = 10
"""Seconds within which all threads must exist."""
LARGEST_BODY = 26 << 20
"""Bytes to await before a thread gets the request: more than GitHub sends. The application refuses larger bodies."""
MOST_HELD = 96 << 20
"""Bytes of requests in memory at the same time; beyond them the largest incomplete request is refused."""
SMALL = 1 << 17
"""Bytes; requests up to this size are never refused because of other clients."""
PIECE = 1 << 16
AT_ONCE = 32
"""Connections to accept before the next round of the poller."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
OVERLOADED = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # for the heartbeat: the root may be read-only, and disks block


log = logging.getLogger(__name__)


class KilnLogger(Logger):  # type: ignore[misc]
    """gunicorn's lines in our format. The access log omits the query string, which may contain secrets."""

    def setup(self, cfg: Any) -> None:
        logs.configure(cfg.loglevel)
        self.cfg = cfg
        for logger in (self.error_log, self.access_log):
            logger.handlers.clear()
            logger.propagate = True
        logging.captureWarnings(capture=True)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:  # noqa: ARG002
        status = str(resp.status).split(None, 1)[0]
        method, path = environ.get("REQUEST_METHOD"), environ.get("PATH_INFO")
        known = {"status": int(status), "seconds": round(request_time.total_seconds(), 4)}
        about = environ.get("kiln.log", {})
        self.access_log.info("%s %s %s", method, path, status, extra={**known, **about})


class _Connection(socket.socket):
    """A connection whose requests the accepting thread reads; `recv` returns the received bytes.

    `counted` are its bytes in the total of the worker.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.arrived = Arrival(LARGEST_BODY)
        self.counted = 0

    def take(self) -> int:
        """Read the available bytes. Raises BlockingIOError without any, OSError."""
        data = super().recv(PIECE)
        self.arrived.feed(data)
        return len(data)

    def recv(self, size: int, _flags: int = 0) -> bytes:
        """Return received bytes. Raises ConnectionResetError beyond them, which gunicorn handles silently."""
        data = self.arrived.read(size)
        if not data and not self.arrived.closed:
            raise ConnectionResetError(errno.ECONNRESET, "The rest does not come")
        return data

    def discard(self) -> int:
        """Read and discard the available bytes. Raises BlockingIOError without any, OSError."""
        return len(super().recv(PIECE))


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threads, none of which waits for an idle client.

    gunicorn blocks a thread of the pool for the rest of a request, for a slow reader of an answer, and for the client
    to close. Here the accepting thread reads requests, and hands over complete ones. Either that thread owns a
    connection (`_arriving`, `_leaving`, gunicorn's `keepalived_conns`), or one thread of the pool.
    """

    patience = 30.0
    """Seconds within which a request must be complete, and a piece of an answer must be accepted. The time between them
    belongs to the application.
    """
    soon = 0.02
    """Seconds that a thread waits for the next request of a connection. Handing it back takes a large part of a
    webhook's time, and a proxy in front of web sends one request after the other.
    """
    turn = 0.25
    """Seconds after which a thread stops waiting if other connections need one."""
    linger = 1.0
    """Seconds of silence after which web closes a connection that the client keeps open: the client may not have read
    the answer, though web did not read the whole body.
    """
    longest_linger = 10.0
    """Seconds for a client that keeps sending after the answer."""
    last_wait = 3.0
    """Seconds, added to gunicorn's own for idle connections, within which a begun request must be complete once the
    worker stops.
    """
    youth = 1.0
    """Seconds for which a connection cannot be evicted for new ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arriving: dict[Any, float] = {}
        self._leaving: dict[Any, float] = {}
        self._held = 0
        self._waiting: deque[Any] = deque()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Start all threads in advance, so that a lack of them shows immediately, and their number is fixed.

        A barrier forces the pool to start every thread; without enough threads it breaks after `STARTING`.
        """
        pool = super().get_thread_pool()
        there = threading.Barrier(self.cfg.threads)
        for _ in range(self.cfg.threads):
            pool.submit(there.wait, STARTING)
        return cast("ThreadPoolExecutor", pool)

    # The accepting thread

    def accept(self, listener: Any) -> None:
        """Accept all pending connections, so that a crowd does not cost a round of the poller each."""
        for _ in range(AT_ONCE):
            if self.nr_conns >= self.worker_connections:
                return
            try:
                sock, client = listener.accept()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                    raise
                return
            self.nr_conns += 1
            connection = _Connection(sock.family, sock.type, sock.proto, fileno=sock.detach())
            conn = TConn(self.cfg, connection, client, listener.getsockname())
            conn.data_ready = True
            self._await(conn)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._await(conn)

    def enqueue_req(self, conn: Any) -> None:
        self._waiting.append(conn)
        super().enqueue_req(conn)

    def _await(self, conn: Any) -> None:
        """Leave a connection to the poller until its request is complete; most are complete immediately."""
        self._arriving[conn] = time.monotonic() + self.patience
        self._arrive(conn)
        if conn in self._arriving:
            self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._arrive(conn))

    def _arrive(self, conn: Any) -> None:
        if conn not in self._arriving:  # closed by an event of the same round
            return
        try:
            conn.sock.take()
            _continue(conn)
        except BlockingIOError:
            pass
        except OSError:
            self._forget(conn)
            self._close(conn)
            return
        self._count(conn)
        self._settle(conn)

    def _settle(self, conn: Any) -> None:
        """Hand over a complete request, close a hopeless one."""
        if conn.sock.arrived.whole:
            self._forget(conn)
            self.enqueue_req(conn)
        elif conn.sock.arrived.closed:
            self._forget(conn)
            self._close(conn)
        elif self._held > MOST_HELD:
            largest = max(self._arriving, key=lambda each: len(each.sock.arrived))
            if len(largest.sock.arrived) > SMALL:
                self._refuse(largest, OVERLOADED)

    def _count(self, conn: Any) -> None:
        self._held += len(conn.sock.arrived) - conn.sock.counted
        conn.sock.counted = len(conn.sock.arrived)

    def _forget(self, conn: Any) -> None:
        del self._arriving[conn]
        with suppress(KeyError):  # it was complete immediately
            self.poller.unregister(conn.sock)

    def _close(self, conn: Any) -> None:
        conn.sock.arrived.drop()
        self._count(conn)
        self.nr_conns -= 1
        conn.close()

    def _refuse(self, conn: Any, words: bytes) -> None:
        self._forget(conn)
        with suppress(OSError):
            conn.sock.send(words)
        self._leave(conn)

    def _give_up(self, conn: Any) -> None:
        """Close the connection. A client that has sent nothing gets no answer: it may have opened the connection in
        advance.
        """
        if len(conn.sock.arrived):
            self._refuse(conn, TIMED_OUT)
        else:
            self._forget(conn)
            self._close(conn)

    def murder_pending(self) -> None:
        """Close requests that took too long to arrive, and connections that the client keeps open (gunicorn's loop
        calls it).
        """
        now = time.monotonic()
        for conn in [conn for conn, until in self._arriving.items() if until < now]:
            self._give_up(conn)
        for conn in [conn for conn, until in self._leaving.items() if until < now]:
            self._left(conn)
        if self.nr_conns >= self.worker_connections:
            self._make_room(now)

    def _make_room(self, now: float) -> None:
        """Evict the oldest connections, so that accepting never stops; new ones may be a crowd of valid clients."""
        before = now - self.youth
        for conn in [conn for conn in self._leaving if conn.timeout - self.longest_linger < before]:
            self._left(conn)
        old = [conn for conn, until in self._arriving.items() if until - self.patience < before]
        for conn in old[: self.worker_connections // 4]:
            self._forget(conn)
            self._close(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """Limit the wait for requests once the worker stops: half a request would delay it for its grace period."""
        super()._cap_keepalive(deadline)
        for conn, until in self._arriving.items():
            begun = self.last_wait if len(conn.sock.arrived) else 0.0
            self._arriving[conn] = min(until, deadline + begun)

    def finish_request(self, conn: Any, fs: Any) -> None:
        self._count(conn)
        if fs.cancelled() or fs.exception() or not fs.result():
            self._leave(conn)
        elif len(conn.sock.arrived):
            conn.sock.setblocking(False)
            self._await(conn)
        else:
            super().finish_request(conn, fs)

    def _leave(self, conn: Any) -> None:
        """Wait in the poller, not in a thread, for the client to close."""
        conn.sock.arrived.drop()
        self._count(conn)
        now = time.monotonic()
        conn.timeout = now + self.longest_linger
        self._leaving[conn] = now + self.linger
        try:
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._discard(conn))
            conn.sock.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):  # already closed
            self._left(conn)

    def _discard(self, conn: Any) -> None:
        try:
            if conn.sock.discard():
                if self.alive:
                    self._leaving[conn] = min(time.monotonic() + self.linger, conn.timeout)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._left(conn)

    def _left(self, conn: Any) -> None:
        del self._leaving[conn]
        with suppress(KeyError):
            self.poller.unregister(conn.sock)
        self._close(conn)

    # A thread of the pool

    def handle(self, conn: Any) -> bool:
        """Return whether the connection stays open."""
        self._waiting.popleft()
        until = time.monotonic() + self.turn
        kept = self._answer(conn)
        while kept and self.alive and not self._is_over(until) and self._asks_again(conn):
            kept = self._answer(conn)
        return kept

    def _is_over(self, until: float) -> bool:
        return bool(self._waiting) and time.monotonic() > until

    def _answer(self, conn: Any) -> bool:
        """Return whether the connection stays open: only if parser and `Arrival` agree on the start of the next
        request.
        """
        if super().handle(conn) is not True:
            return False
        return bool(conn.sock.arrived.next()) and not conn.parser.unreader.buf.getvalue()

    def _asks_again(self, conn: Any) -> bool:
        """Return whether the next request completes soon; the poller waits for the others."""
        until = time.monotonic() + self.soon
        while not conn.sock.arrived.whole and (left := until - time.monotonic()) > 0:
            conn.sock.settimeout(left)
            try:
                if not conn.sock.take():
                    break
            except OSError:
                break
        return bool(conn.sock.arrived.whole)

    def handle_request(self, req: Any, conn: Any) -> Any:
        conn.sock.settimeout(self.patience)
        try:
            return super().handle_request(req, conn)
        except TimeoutError as error:
            raise BrokenPipeError(errno.EPIPE, "The answer is not taken") from error  # which gunicorn handles silently


def _continue(conn: Any) -> None:
    """Answer `Expect: 100-continue` (RFC 9110, §10.1.1). Raises OSError."""
    arrived = conn.sock.arrived
    if arrived.expects and not arrived.whole:
        arrived.expects = False
        conn.sock.send(CONTINUE)


class Web(BaseApplication):  # type: ignore[misc]
    """gunicorn with `settings`; `load` makes the WSGI application, in the worker, where `ops` answers as well.

    Its argument is set when the worker must stop, so that streams do not use up the grace period.
    """

    def __init__(
        self, settings: Settings, ops: Ops, load: Callable[[threading.Event], Any], token: str | None = None
    ) -> None:
        """`token` is the token of this machine, which completes the printed URL of the pages."""
        self._settings, self._ops, self._load, self._token = settings, ops, load, token
        self._stopping = threading.Event()
        self._announced: object = None
        super().__init__(prog="kiln web")

    def load_config(self) -> None:
        for name, value in {**options(self._settings), **self._hooks()}.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        try:
            return self._load(self._stopping)
        except EngineError as error:
            raise AppImportError(str(error)) from error  # gunicorn's exit status for "do not restart"

    def _announce(self, address: str) -> object:
        """Announce web to commands of this machine in the state folder. The caller keeps the returned object open."""
        if self._settings.engine != "local":
            return None
        path = self._settings.base_path.removeprefix("/")
        try:
            return discovery.announce(self._settings.state_dir, f"{_reached(address)}{path}")
        except OSError as error:
            log.warning("The commands of this machine will not find this web: %s", error)
            return None

    def _hooks(self) -> dict[str, Callable[..., None]]:
        def post_fork(_arbiter: Any, _worker: Any) -> None:
            self._ops.serve()

        def post_worker_init(worker: Any) -> None:
            self._ops.ready()
            _return_memory()
            gc.freeze()  # the application stays: a search for garbage in it takes 50 ms without answers

            def end(number: int, frame: FrameType | None) -> None:
                self._stopping.set()
                worker.handle_exit(number, frame)

            signal.signal(signal.SIGTERM, end)

        def when_ready(arbiter: Any) -> None:
            address = _address(arbiter.LISTENERS[0])
            self._announced = self._announce(address)
            if self._settings.engine == "local":
                token = f"?token={self._token}" if self._token else ""
                pages = f"{_reached(address)}{self._settings.base_path.removeprefix('/')}"
                print(f"Kiln's pages: {pages}{token}", flush=True)  # noqa: T201

        return {
            "post_fork": post_fork,
            "post_worker_init": post_worker_init,
            "pre_request": name_repeated,
            "when_ready": when_ready,
        }


def _return_memory() -> None:
    """Make glibc return large freed buffers: otherwise each thread keeps its peak (mallopt(3), M_MMAP_THRESHOLD).

    Other C libraries return them anyway.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(-3, 1 << 20)


def name_repeated(_worker: Any, req: Any) -> None:
    """Give the application the names of repeated headers (`eventing.wire`); gunicorn's names are in upper case."""
    names = Counter(name for name, _ in req.headers)
    repeated = sorted(name.lower() for name, number in names.items() if number > 1)
    if repeated or _OWN in names:
        own = [(_OWN, ",".join(repeated))] if repeated else []
        req.headers = [header for header in req.headers if header[0] != _OWN] + own


_OWN = REPEATED.upper()


def _address(listener: Any) -> str:
    host, port = listener.sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _reached(address: str) -> str:
    """The address by which this machine reaches a server that listens everywhere."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def options(settings: Settings) -> dict[str, Any]:
    """Return gunicorn's settings (https://docs.gunicorn.org/en/stable/settings.html)."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return {
        "bind": f"{host}:{settings.port}",
        "backlog": 512,
        "workers": 1,
        "worker_class": Worker,
        "threads": settings.threads,
        "worker_connections": settings.threads + 512,
        "worker_tmp_dir": str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
        "timeout": 60,  # of the worker's heartbeat, not of a request
        "graceful_timeout": GRACE,
        "keepalive": 65,  # longer than the usual proxy's 60, so that the proxy closes first
        "limit_request_line": 8190,  # ?repository=<a whole URL, quoted>
        "limit_request_fields": 100,
        "limit_request_field_size": 8190,
        "forwarded_allow_ips": "",  # no client may set scheme or path
        "secure_scheme_headers": {},
        "forwarder_headers": "",
        "control_socket_disable": True,
        "loglevel": settings.log_level,
        "logger_class": KilnLogger,
    }
