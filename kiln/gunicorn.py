"""Web's server: gunicorn with one process and many threads.

One process, because the metrics are its own and a viewer costs a thread, not a process; more of it means more replicas.
The application is imported in the worker, after the socket listens: a probe is answered before Flask is there. Nothing
is read from gunicorn's own files or variables: `KILN_*` is the only place to look.
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
from kiln import logs, running
from kiln.arrival import Arrival
from kiln.ops import Ops
from kiln.settings import Settings

GRACE = 30
"""Seconds for requests under way after SIGTERM: the longest that is not a viewer waits 20 s for its turn to write."""
STARTING = 10
"""Seconds in which all threads have to be there."""
LARGEST_BODY = 26 << 20
"""Bytes that are awaited before a thread has the request: more than GitHub sends. The application refuses the rest."""
MOST_HELD = 96 << 20
"""Bytes of requests that are in memory at a time; beyond it the largest that is not whole yet is refused."""
SMALL = 1 << 17
"""Bytes; no request up to this size is refused because of what others send."""
PIECE = 1 << 16
AT_ONCE = 32
"""Connections that are accepted before the others are looked at again."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
OVERLOADED = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # for the heartbeat: the root may be read-only, and disks block


log = logging.getLogger(__name__)


class KilnLogger(Logger):  # type: ignore[misc]
    """gunicorn's lines in our shape. The access log has no query string: it is not for us to write that down."""

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
    """A connection whose requests are read by the one thread that accepts; `recv` gives what has arrived of one.

    `counted` are the bytes of it that its worker has counted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.arrived = Arrival(LARGEST_BODY)
        self.counted = 0

    def take(self) -> int:
        """Reads what is there, in bytes. Raises BlockingIOError where that is nothing, OSError."""
        data = super().recv(PIECE)
        self.arrived.feed(data)
        return len(data)

    def recv(self, size: int, _flags: int = 0) -> bytes:
        """Raises ConnectionResetError where more is wanted than has come: that is no news to gunicorn."""
        data = self.arrived.read(size)
        if not data and not self.arrived.closed:
            raise ConnectionResetError(errno.ECONNRESET, "The rest does not come")
        return data

    def discard(self) -> int:
        """Reads what is there, in bytes, and throws it away. Raises BlockingIOError where that is nothing, OSError."""
        return len(super().recv(PIECE))


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threads, none of which waits for a client that sends nothing.

    gunicorn waits in a thread of the pool for the rest of a request, for who takes an answer, and for the client to
    close. Here the thread that accepts reads requests, and hands on what is whole. A connection is at any time in one
    place: with that thread (`_arriving`, `_leaving`, gunicorn's `keepalived_conns`) or with one of the pool.
    """

    patience = 30.0
    """Seconds in which a request has to be there whole, and a piece of an answer has to be taken. What lies between the
    two is for the application."""
    soon = 0.02
    """Seconds in which a thread waits for the next request of a connection: from thread to thread and back takes a good
    part of what a webhook takes, and a proxy in front of web has one after the other."""
    turn = 0.25
    """Seconds after which a thread does so no longer where others wait for one."""
    linger = 1.0
    """Seconds of silence after which a connection is closed whose client does not close after us: it may not have read
    the answer though not all of its body was read."""
    longest_linger = 10.0
    """Seconds for a client that sends on after the answer."""
    last_wait = 3.0
    """Seconds, besides gunicorn's own for connections without a request, in which a request that has begun has to be
    there whole once the worker stops."""
    youth = 1.0
    """Seconds for which no connection has to make room for new ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arriving: dict[Any, float] = {}
        self._leaving: dict[Any, float] = {}
        self._held = 0
        self._waiting: deque[Any] = deque()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """All threads are there from the start: it shows then whether they can be had, and there are never more.

        Each waits for the others, or it would do the work of several; where they cannot be had, for `STARTING` at most.
        """
        pool = super().get_thread_pool()
        there = threading.Barrier(self.cfg.threads)
        for _ in range(self.cfg.threads):
            pool.submit(there.wait, STARTING)
        return cast("ThreadPoolExecutor", pool)

    # With the thread that accepts

    def accept(self, listener: Any) -> None:
        """As many as there are, so that a crowd does not cost a round of the poller each."""
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
        """Until its request is whole, a connection is with the poller; most are whole at once."""
        self._arriving[conn] = time.monotonic() + self.patience
        self._arrive(conn)
        if conn in self._arriving:
            self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._arrive(conn))

    def _arrive(self, conn: Any) -> None:
        if conn not in self._arriving:  # given up by an event of the same round
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
        """Hands on what is whole, ends what will never be."""
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
        with suppress(KeyError):  # it was whole at once
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
        """Who has sent nothing is told nothing: it may have opened the connection ahead of need."""
        if len(conn.sock.arrived):
            self._refuse(conn, TIMED_OUT)
        else:
            self._forget(conn)
            self._close(conn)

    def murder_pending(self) -> None:
        """Ends what took too long to arrive, and closes where the client does not (gunicorn calls it in its loop)."""
        now = time.monotonic()
        for conn in [conn for conn, until in self._arriving.items() if until < now]:
            self._give_up(conn)
        for conn in [conn for conn, until in self._leaving.items() if until < now]:
            self._left(conn)
        if self.nr_conns >= self.worker_connections:
            self._make_room(now)

    def _make_room(self, now: float) -> None:
        """The oldest go, so that accepting never stops; those that have just come may be a crowd of good ones."""
        before = now - self.youth
        for conn in [conn for conn in self._leaving if conn.timeout - self.longest_linger < before]:
            self._left(conn)
        old = [conn for conn, until in self._arriving.items() if until - self.patience < before]
        for conn in old[: self.worker_connections // 4]:
            self._forget(conn)
            self._close(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """Nor is a request awaited for long once the worker stops: half of one would keep it for all of its grace."""
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
        """The client closes, or is not waited for; no thread waits with it."""
        conn.sock.arrived.drop()
        self._count(conn)
        now = time.monotonic()
        conn.timeout = now + self.longest_linger
        self._leaving[conn] = now + self.linger
        try:
            conn.sock.setblocking(False)
            self.poller.register(conn.sock, selectors.EVENT_READ, lambda _: self._discard(conn))
            conn.sock.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):  # it is closed already
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

    # With a thread of the pool

    def handle(self, conn: Any) -> bool:
        """Whether the connection stays."""
        self._waiting.popleft()
        until = time.monotonic() + self.turn
        kept = self._answer(conn)
        while kept and self.alive and not self._is_over(until) and self._asks_again(conn):
            kept = self._answer(conn)
        return kept

    def _is_over(self, until: float) -> bool:
        return bool(self._waiting) and time.monotonic() > until

    def _answer(self, conn: Any) -> bool:
        """Whether the connection stays: only where parser and `Arrival` agree on where the next request begins."""
        if super().handle(conn) is not True:
            return False
        return bool(conn.sock.arrived.next()) and not conn.parser.unreader.buf.getvalue()

    def _asks_again(self, conn: Any) -> bool:
        """Whether the next request is there whole, soon; the poller waits for the others."""
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
            raise BrokenPipeError(errno.EPIPE, "The answer is not taken") from error  # which is no news to gunicorn


def _continue(conn: Any) -> None:
    """Says what a client with `Expect: 100-continue` waits for (RFC 9110, §10.1.1). Raises OSError."""
    arrived = conn.sock.arrived
    if arrived.expects and not arrived.whole:
        arrived.expects = False
        conn.sock.send(CONTINUE)


class Web(BaseApplication):  # type: ignore[misc]
    """gunicorn with `settings`; `load` makes the WSGI application, in the worker, where `ops` answers as well.

    What it is given is set when the worker is told to end, so that streams do not use up the grace.
    """

    def __init__(
        self, settings: Settings, ops: Ops, load: Callable[[threading.Event], Any], token: str | None = None
    ) -> None:
        """`token` is the one of this machine, which the pages' address is printed with: once, for who starts web."""
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
            raise AppImportError(str(error)) from error  # what gunicorn takes for "do not try that again"

    def _announce(self, address: str) -> object:
        """For the commands of this machine, which look into the state folder. What is returned is kept open."""
        if self._settings.engine != "local":
            return None
        path = self._settings.base_path.removeprefix("/")
        try:
            return running.announce(self._settings.state_dir, f"{_reached(address)}{path}")
        except OSError as error:
            log.warning("The commands of this machine will not find this web: %s", error)
            return None

    def _hooks(self) -> dict[str, Callable[..., None]]:
        def post_fork(_arbiter: Any, _worker: Any) -> None:
            self._ops.serve()

        def post_worker_init(worker: Any) -> None:
            self._ops.ready()
            _return_memory()
            gc.freeze()  # the application stays: to look for garbage in it takes 50 ms in which nobody is answered

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
    """Has glibc give large buffers back when they are freed: otherwise it keeps, for each thread, as much as it has
    seen at a time (mallopt(3), M_MMAP_THRESHOLD). Other C libraries do so anyway."""
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(-3, 1 << 20)


def name_repeated(_worker: Any, req: Any) -> None:
    """Tells the application which headers were sent twice (`eventing.wire`); gunicorn gives names in upper case."""
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
    """gunicorn's settings (https://docs.gunicorn.org/en/stable/settings.html)."""
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
        "keepalive": 65,  # longer than the usual proxy's 60, so that it is the proxy that closes
        "limit_request_line": 8190,  # ?repository=<a whole URL, quoted>
        "limit_request_fields": 100,
        "limit_request_field_size": 8190,
        "forwarded_allow_ips": "",  # nobody may say which scheme or path it was
        "secure_scheme_headers": {},
        "forwarder_headers": "",
        "control_socket_disable": True,
        "loglevel": settings.log_level,
        "logger_class": KilnLogger,
    }
