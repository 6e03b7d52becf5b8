"""Jupyter's servers in an image that Kiln has built, as people start them, and Hubs."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.parts.container import DOCKER, Container, output, said


@contextmanager
def hub_api(address: str) -> Iterator[str]:
    """The URL of a Hub's API with nothing but its version, which a server requests before it serves any user."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"version": "5.4.0"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer((address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{address}:{server.server_port}/hub/api"
        server.shutdown()


def check_image(image: str, commands: Mapping[str, str], hub: str, docker: Sequence[str] = DOCKER) -> None:
    """Runs commands in it (a pattern of each output), and `jupyter lab` and `jupyterhub-singleuser`, as user 1000.

    `docker` is the command for the daemon that runs the image and then removes it.
    """
    token = secrets.token_hex(8)
    lab = f"jupyter lab --ip=0.0.0.0 --port=8888 --ServerApp.token={token}"
    env = {"JUPYTERHUB_API_URL": hub, "JUPYTERHUB_API_TOKEN": token, "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-ada"}
    env |= {"JUPYTERHUB_USER": "ada", "JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8889/user/ada/"}
    env |= {"JUPYTERHUB_SERVICE_PREFIX": "/user/ada/"}
    both = ["bash", "-c", f"jupyterhub-singleuser & exec {lab}"]
    try:
        with Container(image, both, env=env, docker=docker) as container:
            for command, pattern in commands.items():
                assert re.search(pattern, said(image, command, docker), re.MULTILINE)
            container.until_served(f"http://127.0.0.1:8888/api/status?token={token}")
            container.until_served("http://127.0.0.1:8889/user/ada/api")
            assert container.user() == 1000
    finally:
        with suppress(AssertionError):
            output(*docker, "image", "rm", "--force", image)
