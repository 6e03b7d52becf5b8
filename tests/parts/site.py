"""Web as a process of its own over a local engine, with control over the acts of a controller and a builder there.

with Site(folder) as site:
    build = site.harness.run(site.harness.ask().name)
    page.goto(site.page(f"builds/{build.name}"))
    site.harness.say(build.name, "a line of the log")
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

from tests.handlers.harness import Harness, create_harness
from tests.parts.kiln import Kiln, Process
from tests.parts.registry import free_port

BASE = "/services/kiln/"
TOKEN = "a canary of the tokens"


class Site:
    """People sign in with an API token, so that the pages have a session; under a base path."""

    def __init__(self, folder: Path) -> None:
        secrets = folder / "secrets" / "api-tokens"
        secrets.mkdir(parents=True)
        (secrets / "ada").write_text(TOKEN)
        self._port = free_port()
        told = {
            "KILN_AUTH": "token",
            "KILN_BASE_PATH": BASE,
            "KILN_SECRETS_DIR": str(secrets.parent),
            "KILN_IMAGE_PREFIX": "registry.example/kiln/",
        }
        self.kiln = Kiln(folder, **told)
        self.harness: Harness = create_harness(Path(self.kiln.settings["KILN_STATE_DIR"]), instance="local")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(closing(self.harness))
            stack.enter_context(self.kiln)
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> Process:
        """Starts web, always at the same address."""
        return self.kiln.start("web", PORT=str(self._port))

    def stop(self) -> None:
        self.kiln.processes[-1].stop()

    def page(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self._port}{BASE}{path}"
