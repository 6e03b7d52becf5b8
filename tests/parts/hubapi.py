"""A stand-in for a Hub's API that can fail as no healthy Hub would; the real one is `tests.parts.hub`.

Its attributes set its state and its faults:

    with HubApi() as api:
        api.tokens["canary"] = {"kind": "user", "name": "ada", "scopes": ["access:services!service=binder"]}
        api.stall = 2.0      # each answer takes that many seconds
        api.says = (500, b"")
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs


class HubApi:
    """`tokens` are holders by token, `codes` tokens by a sign-in's code; `asked` the tokens that it was asked about.
    `moved` are addresses by the path that leads a browser there."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {}
        self.codes: dict[str, str] = {}
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.moved: dict[str, str] = {}
        self.stall = 0.0
        self.trickle = False
        self.says: tuple[int, bytes] | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hub/api"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, token: str, name: str = "ada", **more: object) -> str:
        self.tokens[token] = {"kind": "user", "name": name, "scopes": ["access:services!service=binder"], **more}
        return token


class _Handler(BaseHTTPRequestHandler):
    api: HubApi

    def do_GET(self) -> None:
        if "Authorization" not in self.headers:
            self._page()
            return
        token = self.headers["Authorization"].partition(" ")[2]
        self.api.asked.append(token)
        holder = self.api.tokens.get(token)
        self._say(403 if holder is None else 200, json.dumps(holder).encode())

    def _page(self) -> None:
        """Answers a browser: with a redirect where that path has moved, otherwise with its name."""
        there = self.api.moved.get(self.path)
        self.send_response(302 if there else 200)
        self.send_header("Location" if there else "Content-Type", there or "text/html")
        self.end_headers()
        self.wfile.write(b"" if there else f"<h1>{self.path}</h1>".encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {name: values[0] for name, values in parse_qs(body).items()}
        self.api.forms.append(form)
        token = self.api.codes.pop(form["code"], None)
        self._say(400 if token is None else 200, json.dumps({"access_token": token}).encode())

    def _say(self, status: int, body: bytes) -> None:
        time.sleep(self.api.stall)
        status, body = self.api.says or (status, body)
        try:
            self.send_response(status)
            self.send_header("Location", self.api.url)
            self.end_headers()
            for piece in [body[place : place + 1] for place in range(len(body))] if self.api.trickle else [body]:
                self.wfile.write(piece)
                time.sleep(0.1 if self.api.trickle else 0)
        except OSError:
            pass  # the client has gone

    def log_message(self, *_: object) -> None:
        pass
