"""Web and controller as local processes on a cluster whose only node is simulated: nothing is built.

This module writes the node, its Docker daemon's pod and the status of build pods into the API server as a kubelet
would. Jobs, scheduling, records, watches and the Lease are the cluster's own. The figures therefore cover the work of
Kiln and of the control plane. Another revision of Kiln can run next to this one, with processes from its own tree.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
import yaml

from builds.build import Image, Result, State
from builds.engines.kubernetes.api import MERGE_PATCH, Absent, Api, ApiError
from builds.engines.kubernetes.records import Release as Owner
from builds.engines.kubernetes.records import manifest
from builds.engines.kubernetes.watch import Watch
from builds.engines.marks import joined
from tests.bench import web
from tests.bench.figures import beside
from tests.builds.engine_factories import new_submission, settled_build
from tests.builds.kubernetes_objects import TEMPLATE
from tests.parts.cluster import CONFIG, Cluster, run
from tests.parts.kiln import get, until
from tests.parts.machine import ROOT
from tests.parts.registry import free_port
from tests.parts.sink import EventSink
from tools.demo.github import delivery

NODE = "kiln-bench"
TURNS = 2
ONE = "1 sender: sent to Job, median"
ONE_BY_ONE = 30
AT_ONCE, SENDERS = 200, 8
COMMITS, REFS, STORM = 100, 5, 50
MANY = 1000
LYING = {"events": 3000, "ended": 5000, "pods": 1000, "configmaps": 1000}
SECONDS = 2.0
"""Duration of a simulated build."""


class Node:
    """A node without a kubelet, with capacity for any number of builds. Within `building`, its pods run and succeed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Node:
        with suppress(Absent):
            self._api.request("DELETE", f"/api/v1/nodes/{NODE}")
        self._api.request("POST", "/api/v1/nodes", body={"metadata": {"name": NODE}})
        self._beat()
        self._threads = [threading.Thread(target=self._beats)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._api.request("DELETE", f"/api/v1/nodes/{NODE}")

    def _beats(self) -> None:
        while not self._over.wait(5):
            with suppress(ApiError):
                self._beat()

    def _beat(self) -> None:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        ready = {"type": "Ready", "status": "True", "reason": "Bench", "message": "", "lastHeartbeatTime": now}
        room = {"cpu": "10000", "memory": "10Ti", "pods": "100000", "ephemeral-storage": "10Ti"}
        status = {"conditions": [{**ready, "lastTransitionTime": now}], "capacity": room, "allocatable": room}
        self._api.request("PATCH", f"/api/v1/nodes/{NODE}/status", body={"status": status}, content_type=MERGE_PATCH)

    @contextmanager
    def building(self, release: str) -> Iterator[None]:
        """Report build pods as a kubelet would: running once they are placed, and succeeded `SECONDS` later."""
        with ThreadPoolExecutor(8) as hands:
            seen: set[str] = set()
            timers: list[threading.Timer] = []

            def look() -> None:
                for name, pod in watch.objects().items():
                    if name not in seen and pod["spec"].get("nodeName") == NODE:
                        seen.add(name)
                        hands.submit(_run, api, name)
                        timer = threading.Timer(SECONDS, hands.submit, (_succeed, api, name))
                        timers.append(timer)
                        timer.start()

            api = self._api
            ours = f"app.kubernetes.io/component=build,app.kubernetes.io/instance={release}"
            watch = Watch(api, "pods", labels=ours, changed=look)
            watch.start()
            yield
            watch.stop()
            for timer in timers:
                timer.join()  # each timer submits work to `hands`


def _run(api: Api, name: str) -> None:
    _says(api, name, "Running", {"running": {"startedAt": _now()}})


def _succeed(api: Api, name: str) -> None:
    image = Image(repository="registry.invalid/bench", tag="x", digest="sha256:" + "0" * 64)
    result = msgspec.json.encode(Result(state=State.SUCCEEDED, image=image)).decode()
    began = _now(SECONDS)
    _says(
        api,
        name,
        "Succeeded",
        {"terminated": {"exitCode": 0, "startedAt": began, "finishedAt": _now(), "message": result}},
    )


def _now(ago: float = 0) -> str:
    return f"{datetime.now(UTC) - timedelta(seconds=ago):%Y-%m-%dT%H:%M:%SZ}"


def _says(api: Api, name: str, phase: str, state: Mapping[str, object]) -> None:
    container = {"name": "builder", "image": "x", "imageID": "x", "ready": False, "restartCount": 0, "state": state}
    body = {"status": {"phase": phase, "containerStatuses": [container]}}
    with suppress(ApiError):
        api.request("PATCH", api.path("pods", name, "status"), body=body, content_type=MERGE_PATCH)


class Side:
    """One revision of Kiln in the namespace, with its code in `tree`."""

    def __init__(self, what: str, tree: Path, cluster: Cluster, api: Api, folder: Path) -> None:
        self.what, self._tree, self._api, self._folder = what, tree, api, folder
        self.release = f"bench-{what}-{secrets.token_hex(2)}"
        self.secret = secrets.token_hex(16)
        self._cluster = cluster
        self.ops = ""

    @contextmanager
    def running(self) -> Iterator[Side]:
        """Run web and controller, with a sink that accepts every event."""
        with ExitStack() as ends, EventSink() as sink:
            self._installed()
            before = self._holder()  # a killed leader, whose Lease has yet to expire
            settings = self._settings(sink.url)
            port, ops, own = free_port(), free_port(), free_port()
            env = {**settings, "PORT": str(port), "KILN_OPS_PORT": str(ops), "PYTHONPATH": str(self._tree)}
            self.web = ends.enter_context(_process("web", self._tree, env))
            control = {**env, "KILN_OPS_PORT": str(own)}
            self.controller = ends.enter_context(_process("controller", self._tree, control))
            self.url, self.ops = f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{own}"
            for each in (ops, own):
                until(lambda each=each: get(f"http://127.0.0.1:{each}/readyz")[0] == 200, 60)  # type: ignore[misc]
            until(lambda: self._holder() not in (None, before), 60)
            yield self

    def _holder(self) -> str | None:
        holder: str | None = (self._api.read("leases", self.release).get("spec") or {}).get("holderIdentity")
        return holder

    def _installed(self) -> None:
        for kind in ("configmaps", "leases"):
            with suppress(ApiError):
                self._api.create(kind, {"metadata": {"name": self.release}})
        labels = Owner(name=self.release).of("dockerd")
        name = f"{self.release}-dockerd"
        spec = {"nodeName": NODE, "containers": [{"name": "dockerd", "image": "x"}]}
        with suppress(ApiError):
            self._api.create("pods", {"metadata": {"name": name, "labels": labels}, "spec": spec})
        ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        path = self._api.path("pods", name, "status")
        self._api.request("PATCH", path, body={"status": ready}, content_type=MERGE_PATCH)

    def _settings(self, sink: str) -> dict[str, str]:
        folder = self._folder / self.what
        hooks = folder / "secrets/webhooks/github"
        hooks.mkdir(parents=True, exist_ok=True)
        (hooks / "main").write_text(self.secret)
        config, template = folder / "config.yaml", folder / "template.yaml"
        every = {"name": "every", "push": {"branches": ["**"]}}
        config.write_text(yaml.safe_dump({"sinks": [{"name": "bench", "url": sink}], "triggers": [every]}))
        spec = {**TEMPLATE["spec"]}
        spec.pop("nodeSelector", None)
        template.write_text(yaml.safe_dump({**TEMPLATE, "spec": spec}))
        return {
            "KILN_ENGINE": "kubernetes",
            "KILN_NAMESPACE": self._api.namespace,
            "KILN_INSTANCE": f"{self._api.namespace}/{self.release}",
            "KILN_ANCHOR": self.release,
            "KILN_IMAGE_PREFIX": "registry.invalid/",
            "KILN_STATE_DIR": str(folder / "state"),
            "KILN_CONFIG": str(config),
            "KILN_SECRETS_DIR": str(folder / "secrets"),
            "KILN_BUILDER_IMAGE": "x",
            "KILN_POD_TEMPLATE": str(template),
            "KILN_DOCKER_HOST": "unix:///run/kiln/docker.sock",
            "KILN_BUILDS_PER_NODE": "1000",
            "KILN_PENDING_GRACE": "3600",
            "KILN_SUPERSEDE": "off",
            "KILN_LOG_LEVEL": "warning",
            "KUBECONFIG": str(self._cluster.kubeconfig),
            **web.FREE,
        }

    def metric(self, name: str) -> float:
        lines = get(f"{self.ops}/metrics")[1].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def pushes(self) -> Callable[[int], web.Request]:
        return partial(web.push, self.secret.encode(), secrets.randbelow(10**6))


@contextmanager
def _process(command: str, tree: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with web.process([sys.executable, "-c", _START, str(tree), command], env) as running:
        try:
            yield running
        finally:
            running.kill()  # a process that waits for the API server may take long to end


_START = """
import os, runpy, sys
tree = sys.argv.pop(1)
os.chdir(tree)
sys.path[0] = tree
runpy.run_module("kiln", run_name="__main__")
"""


# Measurements ---------------------------------------------------------------------------------------------------------


class Jobs:
    """The time at which each Job was first seen."""

    def __init__(self, api: Api) -> None:
        self.seen: dict[str, float] = {}
        self.watch = Watch(api, "jobs", labels="app.kubernetes.io/component=build", changed=self._look)

    def _look(self) -> None:
        now = time.monotonic()
        for name in self.watch.objects():
            self.seen.setdefault(name, now)


def _one_by_one(side: Side, jobs: Jobs) -> float:
    """Return the median seconds from sending a webhook until its Job exists, with one webhook at a time."""
    make, took = side.pushes(), []
    connection = http.client.HTTPConnection(urlsplit(side.url).netloc, timeout=30)
    for number in range(ONE_BY_ONE):
        headers, body = make(number)
        began = time.monotonic()
        connection.request("POST", "/webhooks/github", body, headers)
        name = json.loads(connection.getresponse().read())["builds"][0]["name"]
        until_fast(lambda name=name: f"{name}-1" in jobs.seen)  # type: ignore[misc]
        took.append(jobs.seen[f"{name}-1"] - began)
    return median(took)


def until_fast(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain")
        time.sleep(0.001)


def _burst(side: Side, jobs: Jobs) -> dict[str, float]:
    """Time 200 webhooks from 8 senders until all are answered, all Jobs exist and all events are delivered."""
    told, before = side.metric("kiln_deliveries_total"), {*jobs.seen}
    began = time.monotonic()
    web.load(partial(web.poster, side.url, "/webhooks/github", side.pushes()), senders=SENDERS, each=AT_ONCE // SENDERS)
    accepted = time.monotonic() - began
    until_fast(lambda: len(jobs.seen) >= len(before) + AT_ONCE)
    made = max(jobs.seen[name] for name in {*jobs.seen} - before) - began
    until(lambda: side.metric("kiln_deliveries_total") >= told + AT_ONCE, 300)
    all_told = time.monotonic() - began
    return {"accepted": accepted, "jobs": made, "told": all_told}


def _bare(api: Api, *, senders: int = SENDERS, builds: int = AT_ONCE) -> float:
    """Return the seconds that the writes of a burst take at least, by a client that does nothing else.

    For each build, the client creates and changes a ConfigMap and creates a Job. It uses as many threads as there are
    senders of webhooks. Meanwhile the cluster handles these Jobs as it handles Kiln's.
    """
    run, text = secrets.token_hex(3), "x" * 3000
    container = {"name": "it", "image": "x", "env": [{"name": "X", "value": text}]}
    pod = {"restartPolicy": "Never", "schedulingGates": [{"name": "kiln.dev/bench"}], "containers": [container]}
    spec = {"backoffLimit": 0, "template": {"spec": pod}}

    def write(number: int) -> None:
        name = f"bare-{run}-{number}"
        api.create("configmaps", {"metadata": {"name": name}, "data": {"record": text}})
        api.patch("configmaps", name, {"data": {"record": text[1:]}})
        api.create("jobs", {"metadata": {"name": name}, "spec": spec})

    with ThreadPoolExecutor(senders) as hands:
        began = time.monotonic()
        list(hands.map(write, range(builds)))
        return time.monotonic() - began


def _storm(side: Side, refs: int, commits: int) -> float:
    """Send many concurrent webhooks, `refs` for each commit. Return the seconds until all are answered with 202."""
    make = side.pushes()

    def one(number: int) -> None:
        headers, body = make(number // refs)
        said = json.loads(body)
        said["ref"] = f"refs/heads/b{number % refs}"
        body = json.dumps(said).encode()
        headers = delivery(side.secret.encode(), "push", body)
        web.poster(side.url, "/webhooks/github", lambda _: (headers, body))(number)

    with ThreadPoolExecutor(STORM) as senders:
        began = time.monotonic()
        list(senders.map(one, range(refs * commits)))
        return time.monotonic() - began


def compared(revision: str) -> None:
    """Compare this code with another revision in alternation on one cluster: from webhook to Job, bursts, storms."""
    with site() as (cluster, api, folder), _tree(revision) as tree:
        sides = [partial(Side, "new", ROOT, cluster, api, folder), partial(Side, "old", tree, cluster, api, folder)]
        jobs = Jobs(api)
        jobs.watch.start()
        try:
            figures = _turns(sides, jobs, api)
            _print(figures, revision)
            beside(ONE, median(figures[ONE]["new"]), median(figures[ONE]["bare"]), "ms", "the same writes, bare", 1000)
            key = f"{AT_ONCE} in one burst: all Jobs"
            beside(key, median(figures[key]["new"]), median(figures[key]["bare"]), "s", "the same writes, bare")
            full_of = sides[0]()
            _lie(api, full_of)
            loaded = _turns([partial(_same, full_of)], jobs, api, only_burst=True)
            ours, bare = (median(loaded[key][what]) for what in ("new", "bare"))
            beside(f"{key}, much lying", ours, median(figures[key]["new"]), "s", "without")
            beside(f"{key}, much lying", ours, bare, "s", "the same writes, bare")
        finally:
            jobs.watch.stop()


def _same(side: Side) -> Side:
    return side


Figures = dict[str, dict[str, list[float]]]


def _turns(sides: Sequence[Callable[[], Side]], jobs: Jobs, api: Api, *, only_burst: bool = False) -> Figures:
    found: Figures = {}

    def add(what: str, whose: str, value: float) -> None:
        found.setdefault(what, {}).setdefault(whose, []).append(value)
        print(f"  {whose}: {what}: {value:.3f} s", flush=True)

    for turn in range(TURNS):
        for make in sides if turn % 2 else [*reversed(sides)]:
            with make().running() as side:
                if not only_burst:
                    add(ONE, side.what, _one_by_one(side, jobs))
                    add(ONE, "bare", _bare(api, senders=1, builds=ONE_BY_ONE) / ONE_BY_ONE)
                burst = _burst(side, jobs)
                add(f"{AT_ONCE} in one burst: all accepted", side.what, burst["accepted"])
                add(f"{AT_ONCE} in one burst: all Jobs", side.what, burst["jobs"])
                add(f"{AT_ONCE} in one burst: all announced", side.what, burst["told"])
                if not only_burst:
                    before, began = len(jobs.seen), time.monotonic()
                    add(f"{COMMITS * REFS} webhooks, {COMMITS} commits", side.what, _storm(side, REFS, COMMITS))
                    until_fast(lambda there=before + COMMITS: len(jobs.seen) >= there)  # type: ignore[misc]
                    add(f"{COMMITS * REFS} webhooks: all Jobs", side.what, time.monotonic() - began)
                    add(f"{MANY} webhooks, as many commits", side.what, _storm(side, 1, MANY))
            add(f"{AT_ONCE} in one burst: all Jobs", "bare", _bare(api))
    return found


def _print(figures: Figures, revision: str) -> None:
    for what, of in figures.items():
        unit, scale = ("ms", 1000) if "median" in what else ("s", 1)
        beside(what, median(of["new"]), median(of["old"]), unit, revision[:20], scale)


# The cluster ----------------------------------------------------------------------------------------------------------


class _Bare(Cluster):
    """A cluster with one node and without Kiln's image, since no part of Kiln runs in it."""

    def __enter__(self) -> Self:
        there = self.name in run("kind", "get", "clusters").split()
        if there and self.keep:
            run("kind", "export", "kubeconfig", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}")
            return self
        if there:
            self.delete()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = yaml.safe_load(CONFIG.read_text())
        config["nodes"] = config["nodes"][:1]
        file = self.folder / "kind.yaml"
        file.write_text(yaml.safe_dump(config))
        named = [f"--name={self.name}", f"--config={file}", f"--kubeconfig={self.kubeconfig}"]
        run("kind", "create", "cluster", *named, "--wait=180s")
        return self


@contextmanager
def site() -> Iterator[tuple[Cluster, Api, Path]]:
    with (
        tempfile.TemporaryDirectory(prefix="kiln-bench-") as name,
        _Bare("kiln-bench", keep=bool(os.environ.get("KILN_TEST_CLUSTER"))) as cluster,
    ):
        api = Api(cluster.configuration(), f"bench-{secrets.token_hex(3)}", timeout=60)
        api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": api.namespace}})
        until(partial(_has_account, api))
        with Node(api):
            yield cluster, api, Path(name)


def _has_account(api: Api) -> bool:
    """Report whether the namespace has its default service account, without which no pod can be created."""
    try:
        return bool(api.get(f"/api/v1/namespaces/{api.namespace}/serviceaccounts/default"))
    except Absent:
        return False


@contextmanager
def _tree(revision: str) -> Iterator[Path]:
    """Extract a revision of this repository into a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="kiln-revision-") as folder:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


def _lie(api: Api, side: Side) -> None:
    """Fill the namespace with the objects that other users and time leave in one."""
    pod = {"spec": {"schedulingGates": [{"name": "kiln.dev/bench"}], "containers": [{"name": "it", "image": "x"}]}}
    target = {"kind": "Pod", "namespace": api.namespace, "name": "somebody"}

    def event(_: int) -> tuple[str, dict[str, Any]]:
        return "events", {"involvedObject": target, "reason": "Bench", "message": "x" * 200, "type": "Normal"}

    def history(_: int) -> tuple[str, dict[str, Any]]:
        return "configmaps", ended_record(api, side)

    makers: Mapping[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
        "events": event,
        "ended": history,
        "pods": lambda _: ("pods", pod),
        "configmaps": lambda _: ("configmaps", {"data": {"x": "y" * 1000}}),
    }

    def make(what: str, number: int) -> None:
        kind, body = makers[what](number)
        api.create(kind, {**body, "metadata": {"name": f"lying-{what}-{number}", **body.get("metadata", {})}})

    with ThreadPoolExecutor(8) as hands:
        for what, number in LYING.items():
            list(hands.map(partial(make, what), range(number)))


def ended_record(api: Api, side: Side) -> dict[str, Any]:
    """Return a record of an ended build."""
    now = datetime.now(UTC)
    build = settled_build(
        joined(None, [new_submission(f"build-{secrets.token_hex(10)}")], uid=str, now=now, share=1), at=now
    )
    return manifest(build, Owner(name=side.release), None)
