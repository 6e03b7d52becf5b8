"""Kiln as its neighbours see it, wherever it runs: a Git host that pushes, a registry, sinks, and people over HTTP.

Its subclasses start Kiln: `System` on this machine, `Release` in a cluster. Every wait is for a condition.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

from eventing.event import Event
from tests.parts import machine
from tests.parts.githost import GitHost, commit
from tests.parts.kiln import until
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry
from tests.parts.sink import EventSink
from tools.demo import github

ENDED = ("succeeded", "failed", "cancelled")
NONE = "0" * 40
PATIENCE = 90.0
"""Seconds that a build may take, on a machine that does much else."""

SMALL = "FROM scratch\nCOPY page /page\n"
"""A Dockerfile that needs nothing and runs nothing."""
BROKEN = "FROM scratch\nCOPY nothing-of-that-name /\n"
"""A Dockerfile that fails with that name in its message."""
RUNNING = 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "sleep", "{seconds}"]\n'
"""A Dockerfile whose step takes a while."""
_TALK = "busybox sleep {seconds} & while kill -0 $!; do echo still here; busybox usleep 100000; done"
TALKING = f'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "sh", "-c", "{_TALK}"]\n'
"""A Dockerfile whose step writes a line ten times a second meanwhile."""

MANIFESTS = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)


@dataclass(frozen=True)
class Webhook:
    """One delivery of a Git host, as often as it is sent."""

    headers: Mapping[str, str]
    body: bytes


class Installation:
    """`sinks` are the names of the sinks. `through` is the registry's address, where a proxy stands before it.
    `sink_proxies` stand before the sinks of those names, and get their targets here. Its images have a prefix of their
    own. `token` is the credential that requests carry, where Kiln requires one."""

    def __init__(
        self,
        *,
        registry: Registry,
        host: GitHost,
        sinks: Sequence[str] = ("first", "second"),
        sink_proxies: Mapping[str, Proxy] = {},
        through: str | None = None,
    ) -> None:
        self.registry, self.host = registry, host
        self.prefix = f"{through or registry.host}/{secrets.token_hex(4)}/"
        self.sinks = {name: EventSink(address=host.address) for name in sinks}
        self._sink_proxies = dict(sink_proxies)
        for name, proxy in sink_proxies.items():
            proxy.target = (self.sinks[name].address, self.sinks[name].port)
        self.webhook_secret = secrets.token_urlsafe(32)
        self.token: str | None = None

    @property
    def url(self) -> str:
        """The address of web, with a slash at its end."""
        raise NotImplementedError

    def tails(self) -> str:
        """The ends of the processes' logs, for a test that fails."""
        raise NotImplementedError

    @property
    def config(self) -> dict[str, object]:
        """The configuration file, with the parts around this installation."""
        return {
            "hosts": {f"{self.host.address}:{self.host.port}": {"kind": "github"}},
            "sinks": [{"name": name, "url": self._way_to(name)} for name in self.sinks],
        }

    def _way_to(self, sink: str) -> str:
        proxy = self._sink_proxies.get(sink)
        return f"http://{proxy.address}/events" if proxy else self.sinks[sink].url

    @property
    def allowed(self) -> str:
        """The setting that allows the Git host's repositories."""
        return f"{self.host.base}/**,https://**"

    def close(self) -> None:
        for sink in self.sinks.values():
            sink.close()

    # Requests ---------------------------------------------------------------------------------------------------------

    def commit(self, path: str, files: Mapping[str, str | bytes], **options: Any) -> str:
        """Makes a commit on `main` (or `branch`) that holds just these files; the repository is created where it is
        missing.

        Files without a `page` get a unique one, so that two repositories never give the same image.
        """
        if not self.host.bare(path).exists():
            self.host.create(path)
        with tempfile.TemporaryDirectory() as work:
            for name, content in {"page": secrets.token_hex(8), **files}.items():
                file = Path(work) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.encode() if isinstance(content, str) else content)
                file.chmod(0o755)
            return commit(self.host.bare(path), Path(work), **options)

    def running(self, path: str, seconds: int, dockerfile: str = RUNNING) -> tuple[str, str]:
        """A commit whose build has a step that sleeps for about that long, and the exact duration. That figure
        distinguishes its process from all others, and the step from those in Docker's cache."""
        exactly = f"{seconds}.{secrets.randbelow(10**9):09}"
        return self.with_busybox(path, dockerfile.format(seconds=exactly)), exactly

    def talking(self, path: str) -> str:
        """Starts a build that runs for minutes and writes to its log meanwhile."""
        commit, exactly = self.running(path, 500, TALKING)
        name = self.build(path, commit)
        self.step_runs(name, exactly)
        return name

    def with_busybox(self, path: str, dockerfile: str) -> str:
        """A commit with a Dockerfile that copies `busybox`, to have a program to run."""
        busybox = machine.program("busybox", "busybox-static").read_bytes()
        return self.commit(path, {"Dockerfile": dockerfile, "busybox": busybox})

    def push(self, path: str, commit: str, *, before: str = NONE, ref: str = "refs/heads/main") -> Webhook:
        """The webhook that GitHub would send for that push."""
        with chdir(self.host.bare(path)):
            body = json.dumps(github.payload(self.host.url(path), before, commit, ref)).encode()
        return Webhook(github.delivery(self.webhook_secret.encode(), "push", body), body)

    def deliver(self, webhook: Webhook, url: str | None = None) -> requests.Response:
        target = f"{url or self.url}webhooks/github"
        return http("POST", target, data=webhook.body, headers=dict(webhook.headers))

    def ask(self, url: str | None = None, **body: object) -> requests.Response:
        return http("POST", f"{url or self.url}api/v1/builds", json=body, headers=self.authorization)

    def build(self, path: str, commit: str, **options: Any) -> str:
        """Asks for a build of a commit and returns its name."""
        answer = self.ask(repository=self.host.url(path), commit=commit, **options)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["name"])

    def cancel(self, name: str) -> requests.Response:
        return http("DELETE", f"{self.url}api/v1/builds/{name}", headers=self.authorization)

    # State of the installation ----------------------------------------------------------------------------------------

    @property
    def authorization(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def get(self, path: str, **headers: str) -> requests.Response:
        return http("GET", f"{self.url}{path}", headers=self.authorization | headers)

    def one(self, name: str) -> dict[str, Any]:
        answer = self.get(f"api/v1/builds/{name}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("api/v1/builds?limit=200").json()["items"]
        return found

    def log(self, name: str) -> str:
        return self.get(f"api/v1/builds/{name}/log").text

    def wait(self, name: str, what: Callable[[dict[str, Any]], object], seconds: float = PATIENCE) -> dict[str, Any]:
        """The build, as soon as the condition holds for it."""
        found: dict[str, Any] = {}

        def holds() -> object:
            found.update(self.one(name))
            return what(found)

        try:
            until(holds, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(found, indent=1)}\n{self.log(name)}\n{self.tails()}") from None
        return found

    def ended(self, name: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The build at its end, when every sink has had all its events."""
        return self.wait(name, lambda build: build["state"] in ENDED and settled(build), seconds)

    def step_runs(self, name: str, seconds: str) -> None:
        """Waits until the step of `running` runs."""
        build = self.wait(name, lambda build: sleepers(seconds) or build["state"] in ENDED)
        assert build["state"] == "running", self.log(name)

    def events(self, sink: str, name: str, word: str | None = None) -> list[Event]:
        """The events of a build that a sink has accepted; repeated deliveries are repeated here."""
        kind = f"dev.kiln.build.{word}.v1"
        taken = [event for event in self.sinks[sink].events if event.subject == name]
        return [event for event in taken if word is None or event.type == kind]

    def taken(self, sink: str, name: str, word: str, number: int) -> None:
        """Waits until the sink has accepted so many different events of that kind."""
        until(lambda: len({event.id for event in self.events(sink, name, word)}) == number)

    def arrived(self, sink: str, name: str, word: str, seconds: float = 10.0) -> Event:
        """The event, as soon as the sink has accepted it."""
        self.sinks[sink].wait_for(lambda _: self.events(sink, name, word), seconds)
        return self.events(sink, name, word)[0]

    def digest(self, image: str, tag: str) -> str | None:
        """The tag's digest in the registry; `image` with or without the registry. `None` where the tag is missing."""
        path = image.partition("/")[2]
        url = f"http://{self.registry.host}/v2/{path}/manifests/{tag}"
        answer = http("HEAD", url, headers={"Accept": MANIFESTS})
        return answer.headers.get("Docker-Content-Digest") if answer.ok else None


def http(verb: str, url: str, **options: Any) -> requests.Response:
    """One request, with a time limit and without redirects."""
    return requests.request(verb, url, **({"timeout": 20, "allow_redirects": False} | options))


def settled(build: Mapping[str, Any]) -> bool:
    return all(delivery["state"] != "pending" for delivery in build["deliveries"])


def sleepers(seconds: str) -> list[int]:
    """Processes that sleep for exactly that long, in any container."""
    command = f"sleep\0{seconds}\0"
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and command in (entry / "cmdline").read_text(errors="replace"):
                found.append(int(entry.name))
    return found


def lateness(event: Event, sink: EventSink) -> float:
    """Seconds from when the event was made to when the sink had it first."""
    at = next(one.at for one in sink.received if event.id in [each.id for each in one.events])
    assert isinstance(event.time, datetime)
    return time.time() - (time.monotonic() - at) - event.time.timestamp()
