"""All of Kiln on one machine: a Git host, a registry, sinks, web and controller, every one of them the real thing.

    with System(folder, registry=registry, host=host) as system:
        system.start("web")
        system.start("controller")
        commit = system.commit("ada/page", {"Dockerfile": "FROM scratch\\nCOPY Dockerfile /\\n"})
        name = system.deliver(system.push("ada/page", commit)).json()["builds"][0]["name"]
        build = system.ended(name)

At its end nothing runs that was started here: web and controller, and the builders, which outlive their controller on
purpose.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from tests.parts.githost import GitHost
from tests.parts.installation import Installation
from tests.parts.kiln import Kiln, Process
from tests.parts.registry import Registry


class System(Kiln, Installation):
    """Kiln with the parts around it. Web admits requests with this machine's token."""

    def __init__(
        self,
        folder: Path,
        *,
        registry: Registry,
        host: GitHost,
        sinks: Sequence[str] = ("first", "second"),
        config: Mapping[str, object] = {},
        through: str | None = None,
        **settings: str,
    ) -> None:
        Installation.__init__(self, registry=registry, host=host, sinks=sinks, through=through)
        self.web: list[Process] = []
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({**self.config, **config}))
        self.secrets = folder / "secrets"
        (self.secrets / "webhooks/github").mkdir(parents=True)
        (self.secrets / "webhooks/github/main").write_text(self.webhook_secret)
        own = {
            "KILN_IMAGE_PREFIX": self.prefix,
            "KILN_CONFIG": str(folder / "config.yaml"),
            "KILN_SECRETS_DIR": str(self.secrets),
            "KILN_ALLOWED_REPOSITORIES": self.allowed,
        }
        Kiln.__init__(self, folder, **(own | settings))

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.stop()  # web passes the signal on to its worker
        for session in self.sessions():
            for pid in members(session):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.close()
        self._remove_images()

    def _remove_images(self) -> None:
        """From the machine's daemon; one of a test's own goes with all that it has."""
        if "KILN_DOCKER_HOST" not in self.settings:
            query = ["docker", "images", "--quiet", "--no-trunc", f"--filter=reference={self.prefix}*"]
            found = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()
            if found:
                subprocess.run(["docker", "rmi", "--force", *{*found}], check=True, capture_output=True)

    def start(self, command: str, *, ready: bool = True, **settings: str) -> Process:
        process = super().start(command, ready=ready, **settings)
        if command == "web":
            self.web.append(process)
        return process

    @property
    def authorization(self) -> dict[str, str]:
        """The header with the configured token, or else with this machine's."""
        token = self.token or self.own_token
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    @property
    def url(self) -> str:
        """The address of the web that was started last."""
        url = self.web[-1].url
        assert url
        return url

    def attempts(self, name: str) -> list[Path]:
        """The folders of its attempts."""
        return sorted((Path(self.settings["KILN_STATE_DIR"]) / "attempts").glob(f"{name}-*"))

    def sessions(self, name: str = "") -> list[int]:
        """The sessions of all attempts there were, or of one build's."""
        found = []
        for folder in self.attempts(name or "*"):
            with suppress(FileNotFoundError, ValueError):
                found.append(int((folder / "group").read_text()))
        return found

    def tails(self) -> str:
        """The ends of the processes' logs, for a test that fails."""
        alive = [one for one in self.processes if one.popen.poll() is None]
        return "\n".join(f"{one.log.name}: {one.log.read_text(errors='replace')[-1500:]}" for one in alive)


def members(session: int) -> list[int]:
    """The processes of a session that are not just waiting to be reaped."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and os.getsid(int(entry.name)) == session:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(entry.name)] if state not in "ZX" else []
    return found
