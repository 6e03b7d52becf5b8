"""A real JupyterHub and all of Kiln as its service `binder`, which asks the Hub who comes.

with HubService(folder, registry=registry, host=host, hub="c.JupyterHub.load_roles = …") as pair:
    pair.sign_as("ada")
    pair.system.ask(repository=…)
    requests.get(f"{pair.url}versions", …)      # through the Hub's proxy
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.parts.hub import Hub
from tests.parts.registry import free_port
from tests.parts.system import System

BASE = "/services/binder/"
"""Where a Hub's proxy has its service `binder`."""

CONFIG = """
kiln, access = {url!r}, "access:services!service=binder"
c.JupyterHub.services += [{{"name": "binder", "url": {url!r}, "api_token": {token!r}, "oauth_no_confirm": True}}]
"""


class HubService:
    """Both are created together, so that more parts can be put beside them, and started by entering. `hub` is appended
    to the Hub's configuration above, and may use its names; the other arguments are those of `System`."""

    def __init__(self, folder: Path, *, hub: str = "", **system: Any) -> None:
        self._port, token = free_port(), secrets.token_hex(16)
        service = CONFIG.format(url=f"http://127.0.0.1:{self._port}", token=token)
        self.hub = Hub(folder / "hub", config=f"{service}\n{hub}")
        told = {
            "KILN_AUTH": "hub",
            "KILN_BASE_PATH": BASE,
            "JUPYTERHUB_SERVICE_NAME": "binder",
            "JUPYTERHUB_API_URL": f"{self.hub.internal}hub/api",
            "JUPYTERHUB_API_TOKEN": token,
        }
        self.system = System(folder / "kiln", **{"sinks": (), **told, **system})
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            system = stack.enter_context(self.system)
            system.start("web", PORT=str(self._port))
            system.start("controller")
            stack.enter_context(self.hub)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Kiln, through the Hub's proxy."""
        return f"{self.hub.url}{BASE[1:]}"

    def token(self, user: str) -> str:
        self.hub.api("POST", f"users/{user}")  # unless there is one
        answer = self.hub.api("POST", f"users/{user}/tokens", {})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def builds(self, commit: str) -> list[dict[str, Any]]:
        return [build for build in self.system.listed() if build["commit"] == commit]

    def sign_as(self, user: str) -> None:
        """From now on, requests are this user's."""
        self.system.token = self.token(user)
