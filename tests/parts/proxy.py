"""A TCP proxy to put between two real parts, so that the network between them can fail.

Its attributes and methods set its faults:

    with Proxy(("127.0.0.1", registry_port)) as proxy:
        use(proxy.port)
        proxy.delay = 0.5       # seconds per piece, in each direction
        proxy.drop = True       # keeps connections, loses data
        proxy.cut()             # resets connections (RST)
        proxy.refuse()          # refuses new ones until proxy.accept()
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress


class Proxy:
    """Passes everything on by default. It can be switched at any time and from any thread."""

    def __init__(self, target: tuple[str, int], listen: str = "127.0.0.1") -> None:
        self.target, self.listen = target, listen
        self.delay = 0.0
        self.drop = False
        self.connections = 0
        """The number of connections so far."""
        self._open: set[_Connection] = set()
        self._guard = threading.Lock()
        self._acceptor: threading.Thread | None = None
        self._listener = self._bound(0)
        self.port: int = self._listener.getsockname()[1]
        self.accept()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        return f"{self.listen}:{self.port}"

    def accept(self) -> None:
        """Accepts connections (again)."""
        if self._acceptor is None:
            self._listener.listen(128)
            self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
            self._acceptor.start()

    def refuse(self) -> None:
        """Breaks all connections and refuses new ones. The port stays ours."""
        self.close()
        self._listener = self._bound(self.port)

    def cut(self) -> None:
        """Breaks the existing connections; new ones are passed on."""
        with self._guard:
            connections, self._open = self._open, set()
        for connection in connections:
            connection.cut()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()
        if self._acceptor is not None:
            self._acceptor.join()
            self._acceptor = None
        self._listener.close()
        self.cut()

    def _bound(self, port: int) -> socket.socket:
        """Binds without listening: connections are refused, and no other process can take the port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.listen, port))
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self.target)
        except OSError:
            _reset_at_close(near)
            near.close()
            return
        connection = _Connection(self, near, far)
        with self._guard:
            self._open.add(connection)
        connection.run()
        with self._guard:
            self._open.discard(connection)


class _Connection:
    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self._proxy = proxy
        self._ends = (near, far)
        self._cut = False

    def run(self) -> None:
        near, far = self._ends
        with near, far:
            back = threading.Thread(target=self._pass, args=(far, near), daemon=True)
            back.start()
            self._pass(near, far)
            back.join()

    def cut(self) -> None:
        self._cut = True
        for end in self._ends:
            with suppress(OSError):
                _reset_at_close(end)
                end.shutdown(socket.SHUT_RD)  # wakes the thread that reads, and says nothing to the other side

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        """One direction. A half-closed connection stays half open, as over a wire."""
        with suppress(OSError):
            while data := source.recv(64 * 1024):
                if self._proxy.delay:
                    time.sleep(self._proxy.delay)  # that is the fault itself, not a wait for something
                if not self._proxy.drop:
                    sink.sendall(data)
            if not self._proxy.drop and not self._cut:
                sink.shutdown(socket.SHUT_WR)


def _reset_at_close(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
