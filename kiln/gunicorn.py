"""Web's server: gunicorn with one process and many threads.

One process, because the metrics are its own and a viewer costs a thread, not a process; more of it means more replicas.
The application is imported in the worker, after the socket listens: a probe is answered before Flask is there. Nothing
is read from gunicorn's own files or variables: `KILN_*` is the only place to look.
"""

from __future__ import annotations

import errno
import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, cast

from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.errors import AppImportError  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from builds.engines import EngineError
from kiln import logs
from kiln.ops import Ops
from kiln.settings import Settings

GRACE = 30
"""Seconds for requests under way after SIGTERM: the longest that is not a viewer waits 20 s for its turn to write."""
STARTING = 10
"""Seconds in which all threads have to be there."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # for the heartbeat: the root may be read-only, and disks block


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
    """What is read from it has to be there by `deadline`, in seconds of the monotonic clock."""

    deadline = float("inf")

    def recv(self, *args: Any) -> bytes:
        """Raises ConnectionResetError past the deadline, as if the client had gone: that is no news to gunicorn."""
        usual = self.gettimeout()
        left = max(self.deadline - time.monotonic(), 0.001)  # 0 would be: do not wait, and say that differently
        self.settimeout(left if usual is None else min(left, usual))
        try:
            return super().recv(*args)
        except TimeoutError as error:
            raise ConnectionResetError(errno.ECONNRESET, "The rest does not come") from error
        finally:
            self.settimeout(usual)


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's threads, none of which anybody can keep for ever.

    gunicorn waits without end for the rest of a request and for who takes an answer, so as many senders as there are
    threads, each silent after a word, would be the end of web. And it waits for a client to close the connection in the
    one thread that accepts all others.
    """

    patience = 30.0
    """Seconds in which a request has to be there whole, and a piece of an answer has to be taken. What lies between the
    two is for the application."""
    soon = 0.02
    """Seconds in which a thread waits for the next request of a connection: from thread to thread and back takes a good
    part of what a webhook takes, and a proxy in front of web has one after the other."""
    linger = 1.0
    """Seconds for the client to close after us, so that it reads the answer though not all of its body was read."""

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """All threads are there from the start: it shows then whether they can be had, and there are never more.

        Each waits for the others, or it would do the work of several; where they cannot be had, for `STARTING` at most.
        """
        pool = super().get_thread_pool()
        there = threading.Barrier(self.cfg.threads)
        for _ in range(self.cfg.threads):
            pool.submit(there.wait, STARTING)
        return cast("ThreadPoolExecutor", pool)

    def handle(self, conn: Any) -> Any:
        if not isinstance(conn.sock, _Connection):
            conn.sock = _Connection(fileno=conn.sock.detach())
        kept = self._handle(conn)
        while kept is True and self.alive and self._asks_again(conn):
            kept = self._handle(conn)
        return kept

    def _handle(self, conn: Any) -> Any:
        conn.sock.deadline = time.monotonic() + self.patience
        kept = super().handle(conn)
        if kept is False:
            conn.sock.deadline = time.monotonic() + self.linger
            util.close_graceful(conn.sock, self.linger)
            conn.close = lambda graceful=False: None  # noqa: ARG005  # it is done
        return kept

    def _asks_again(self, conn: Any) -> bool:
        """Or has asked already, with the request before; or closes, which is for gunicorn to see."""
        if conn.parser.unreader.buf.getvalue():
            return True
        conn.sock.deadline = time.monotonic() + self.soon
        try:
            conn.sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return False
        return True

    def handle_request(self, req: Any, conn: Any) -> Any:
        conn.sock.settimeout(self.patience)
        try:
            return super().handle_request(req, conn)
        except TimeoutError as error:
            raise BrokenPipeError(errno.EPIPE, "The answer is not taken") from error  # which is no news to gunicorn


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
        super().__init__(prog="kiln web")

    def load_config(self) -> None:
        for name, value in {**options(self._settings), **self._hooks()}.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        try:
            return self._load(self._stopping)
        except EngineError as error:
            raise AppImportError(str(error)) from error  # what gunicorn takes for "do not try that again"

    def _hooks(self) -> dict[str, Callable[..., None]]:
        def post_fork(_arbiter: Any, _worker: Any) -> None:
            self._ops.serve()

        def post_worker_init(worker: Any) -> None:
            self._ops.waiting_for = None
            gc.freeze()  # the application stays: to look for garbage in it takes 50 ms in which nobody is answered

            def end(number: int, frame: FrameType | None) -> None:
                self._stopping.set()
                worker.handle_exit(number, frame)

            signal.signal(signal.SIGTERM, end)

        def when_ready(arbiter: Any) -> None:
            if self._token:
                print(f"Kiln's pages: {_address(arbiter.LISTENERS[0])}?token={self._token}", flush=True)  # noqa: T201

        return {"post_fork": post_fork, "post_worker_init": post_worker_init, "when_ready": when_ready}


def _address(listener: Any) -> str:
    host, port = listener.sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


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
