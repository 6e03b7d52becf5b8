"""Measure web: from a webhook to its 202, from the start to the first answer, and the memory of each process."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from tests.bench import empty
from tests.bench.figures import beside, percentile
from tests.parts import machine
from tests.parts.githost import GitHost
from tests.parts.installation import Installation
from tests.parts.kiln import Kiln, get, megabytes, until
from tests.parts.machine import ROOT
from tests.parts.registry import Registry, free_port
from tests.parts.system import System
from tests.parts.viewers import Viewers
from tools.demo.github import delivery

SENDERS = 8
EACH = 100
STARTS = 5
VIEWERS = 300
ZERO = "0" * 40
FREE = {"KILN_MAX_QUEUED": "1000000", "KILN_MAX_QUEUED_PER_USER": "1000000", "KILN_LOG_LEVEL": "warning"}


def webhooks() -> None:
    """Measure webhooks from 8 senders on open connections; every webhook is a new push, hence a durable write."""
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as name:
        folder, secret, port = Path(name), secrets.token_bytes(16).hex().encode(), free_port()
        (folder / "secrets/webhooks/github").mkdir(parents=True)
        (folder / "secrets/webhooks/github/main").write_bytes(secret)
        with Kiln(folder, KILN_SECRETS_DIR=str(folder / "secrets"), **FREE) as kiln, process(empty.command(port), {}):
            answered(port)
            web = kiln.start("web")
            here, there = web.url or "", f"http://127.0.0.1:{port}/"

            def pushes() -> Callable[[int], Request]:
                return partial(push, secret, secrets.randbelow(10**6))

            ours, bare = in_turns(
                SENDERS, lambda: poster(here, "/webhooks/github", pushes()), lambda: poster(there, "/", pushes())
            )
            beside("webhook to 202, median", median(ours), median(bare), "ms", "empty Flask route", 1000)
            beside("webhook to 202, p99", percentile(ours, 99), percentile(bare, 99), "ms", "empty Flask route", 1000)
            _repeated(here, secret)
            print(f"  web's memory after it: {megabytes(web.popen.pid):.0f} MB (PSS)")


def _repeated(url: str, secret: bytes) -> None:
    """Send one delivery repeatedly, which causes no further write."""
    headers, body = push(secret, 0, 1)
    again = load(partial(poster, url, "/webhooks/github", lambda _: (headers, body)))
    print(f"  the same one again: median {median(again) * 1000:.2f} ms, p99 {percentile(again, 99) * 1000:.2f} ms")


def watched() -> None:
    """Measure webhooks while 300 clients follow the log of a running build, against the same web without them."""
    settings = {**FREE, "KILN_MAX_VIEWERS": str(VIEWERS), "KILN_BUILDS_PER_NODE": "1"}
    with (
        machine.daemon(),
        tempfile.TemporaryDirectory(prefix="kiln-bench-") as name,
        Registry(Path(name) / "registry") as registry,
        GitHost(Path(name) / "git") as host,
        System(Path(name), registry=registry, host=host, sinks=(), config={}, **settings) as system,
    ):
        process = system.start("web").popen
        system.start("controller")
        build = system.talking("bench/talks")
        before = megabytes(process.pid)
        with followers(system, build) as viewers:
            until(lambda: viewers.reading == VIEWERS)
            beside(f"web, {VIEWERS} viewers", megabytes(process.pid), before, "MB", "before them (PSS)")
        followed(system, build, lambda: b"kiln_log_viewers 0.0" in get(f"{system.web[-1].ops}/metrics")[1])
        system.cancel(build)


def followers(installation: Installation, build: str) -> Viewers:
    return Viewers(
        f"{installation.url}api/v1/builds/{build}/log",
        VIEWERS,
        installation.authorization | {"Accept": "text/event-stream"},
    )


def followed(installation: Installation, build: str, left: Callable[[], bool]) -> None:
    """Time webhooks while many viewers follow a build, in alternation with webhooks after all viewers have `left`."""
    looked: list[float] = []
    alone: list[float] = []
    for turn in range(0, 8, 2):
        alone += _pushed(installation, turn)
        with followers(installation, build) as viewers:
            until(lambda: viewers.reading == VIEWERS)
            looked += _pushed(installation, turn + 1)
        until(left)
    what = f"webhook, {VIEWERS} viewers"
    beside(f"{what}, median", median(looked), median(alone), "ms", "without viewers", 1000)
    beside(f"{what}, p99", percentile(looked, 99), percentile(alone, 99), "ms", "without viewers", 1000)


def _pushed(installation: Installation, turn: int) -> list[float]:
    make = partial(push, installation.webhook_secret.encode(), turn)
    return load(partial(poster, installation.url, "/webhooks/github", make))


def starts() -> None:
    """Measure from the start of a process to the first answer on its port, and for Kiln also to `/readyz`."""
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as name:
        ours: list[float] = []
        ready: list[float] = []
        control: list[float] = []
        bare: list[float] = []
        for turn in range(STARTS + 1):  # the first turn warms the caches
            listening = until_answered(empty.command(port := free_port()), {}, {"/": port})
            port, ops = free_port(), free_port()
            kiln = Kiln(Path(name) / str(turn), PORT=str(port), KILN_OPS_PORT=str(ops))
            paths = {"/livez": ops, "/readyz": ops, "/api/v1/builds": port}
            web = until_answered(command("web"), kiln.environment, paths)
            controller = until_answered(command("controller"), kiln.environment, {"/readyz": ops})
            if turn:
                bare += listening.values()
                ours.append(web["/livez"])
                ready.append(max(web.values()))
                control += controller.values()
        beside("web: start to /livez", median(ours), median(bare), "s", "empty Flask app answers")
        beside("web: start to ready", median(ready), median(bare), "s", "empty Flask app answers")
        beside("controller: start to ready", median(control), median(bare), "s", "empty Flask app answers")


def cold() -> None:
    """Measure from the start of web to its 202 for the event that caused the start, as at a scale from zero."""
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as name:
        ours, bare = from_zero(Path(name), {"KILN_AUTH": "none"})
        beside("web: start to first 202", ours, bare, "s", "empty Flask app")


def from_zero(folder: Path, settings: Mapping[str, str]) -> tuple[float, float]:
    """Return the median seconds from the start to the first 202, of web and of an empty Flask app."""
    ours: list[float] = []
    bare: list[float] = []
    for turn in range(STARTS + 1):  # the first turn warms the caches
        bare.append(until_accepted(empty.command(port := free_port()), {}, port, "/"))
        ports = {"PORT": str(port := free_port()), "KILN_OPS_PORT": str(free_port())}
        kiln = Kiln(folder / f"from-zero-{turn}", **ports, **settings)
        ours.append(until_accepted(command("web"), kiln.environment, port, "/events"))
    return median(ours[1:]), median(bare[1:])


def memory() -> None:
    """Measure idle processes that have answered once. PSS divides shared memory among the processes that share it."""
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as name:
        port = free_port()
        with process(empty.command(port), {}) as bare, Kiln(Path(name)) as kiln:
            answered(port)
            for what in ("web", "controller"):
                started = kiln.start(what)
                time.sleep(2)  # its work at the start is done
                beside(what, megabytes(started.popen.pid), megabytes(bare.pid), "MB", "empty Flask app")


def command(name: str) -> list[str]:
    """Return the command of `kiln web` or `kiln controller`."""
    return [sys.executable, "-m", "kiln", name]


Request = tuple[dict[str, str], bytes]


def push(secret: bytes, turn: int, number: int) -> Request:
    """Return a small push of a unique commit."""
    number += turn * 10**6
    commit = f"{number + 1:040x}"  # no commit is all zeros, which would mean a deletion
    page = "https://github.com/example/course"
    said = {
        "ref": "refs/heads/main",
        "before": ZERO,
        "after": commit,
        "created": False,
        "deleted": False,
        "forced": False,
    }
    known = {"url": page, "html_url": page, "clone_url": f"{page}.git", "default_branch": "main", "private": False}
    head = {"id": commit, "message": "x", "added": [], "removed": [], "modified": ["a.ipynb"]}
    full = {"full_name": "example/course", "name": "course", "pushed_at": 1_700_000_000 + number % 10**6}
    body = json.dumps({**said, "repository": {**known, **full}, "head_commit": head, "commits": [head]}).encode()
    return delivery(secret, "push", body), body


Send = Callable[[int], None]
"""Sends the request of that number; raises an error at any unexpected answer."""


def load(sender: Callable[[], Send], *, senders: int = SENDERS, each: int = EACH) -> list[float]:
    """Return the seconds of each of `senders * each` requests. Each thread creates its own sender with `sender`."""

    def run(first: int) -> list[float]:
        send, seconds = sender(), []
        for number in range(first, first + each):
            began = time.perf_counter()
            send(number)
            seconds.append(time.perf_counter() - began)
        return seconds

    with ThreadPoolExecutor(senders) as threads:
        return list(chain.from_iterable(threads.map(run, range(0, senders * each, each))))


def in_turns(senders: int, *each: Callable[[], Send]) -> Iterator[list[float]]:
    """Time each kind of sender in many short turns, because the machine's speed changes from second to second."""
    loads = [[load(sender, senders=senders, each=25) for sender in each] for _ in range(12)]
    return (list(chain.from_iterable(load)) for load in zip(*loads, strict=True))


def poster(url: str, path: str, make: Callable[[int], Request]) -> Send:
    """Post on one connection that stays open. The sender raises RuntimeError for any answer but 202."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)

    def send(number: int) -> None:
        headers, body = make(number)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != http.client.ACCEPTED:
            raise RuntimeError(f"not answered 202 but {answer.status}: {content[:300]!r}")

    return send


@contextmanager
def process(command: list[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with `env` added to our environment, but without our `KILN_` variables. SIGTERM ends it."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("KILN_")}
    running = subprocess.Popen(
        command,
        env={**ours, "PYTHONPATH": str(ROOT), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        running.terminate()
        running.wait(30)


def until_answered(command: list[str], env: Mapping[str, str], paths: Mapping[str, int]) -> dict[str, float]:
    """Return the seconds from the start until each path on its port is answered with 200."""
    began = time.perf_counter()
    with process(command, env):
        return {path: answered(port, path) - began for path, port in paths.items()}


def until_accepted(command: list[str], env: Mapping[str, str], port: int, path: str) -> float:
    """Return the seconds from the start until an event that requests a build is answered with 202."""
    began = time.perf_counter()
    with process(command, env):
        while time.perf_counter() - began < 60:
            try:
                poster(f"http://127.0.0.1:{port}/", path, asked)(0)
            except OSError:
                time.sleep(0.005)
            else:
                return time.perf_counter() - began
    sys.exit(f"nothing takes an event on port {port}")


def asked(number: int) -> Request:
    """Return an event that requests a build and needs no look-up of a ref."""
    names = {"specversion": "1.0", "id": str(number), "source": "/bench", "type": "dev.kiln.build.requested.v1"}
    headers = {f"ce-{name}": value for name, value in names.items()}
    data = {"repository": "https://github.com/example/course", "commit": "c" * 40}
    return {**headers, "Content-Type": "application/json"}, json.dumps(data).encode()


def answered(port: int, path: str = "/") -> float:
    """Return the time of the first answer with 200 (`time.perf_counter`)."""
    deadline = time.perf_counter() + 60
    while time.perf_counter() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == http.client.OK:
                return time.perf_counter()
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    sys.exit(f"nothing answers {path} on port {port}")
