"""Measure Kiln on Kubernetes, each figure next to that of the least that does the same on the same cluster.

A webhook comes down to one durable write, so its figure stands next to that write. The same ConfigMap is posted to the
API server by web's client (`Api`), from the process that sends the webhooks. As many threads post it, on connections
that stay open. The ratio therefore covers all that Kiln adds between a Git host and that write: one more connection,
the server, the signature, the policy and the name. No controller acts on the posted objects meanwhile; otherwise the
two would run under different loads.

Kubernetes records whole seconds. Times in the cluster are therefore those at which a watch of this process receives a
change, as the controller's own watch does.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from msgspec.structs import replace

from builds.engines.kubernetes import Release as Owner
from builds.engines.kubernetes.api import Api
from builds.engines.kubernetes.records import build_of, manifest
from builds.engines.kubernetes.sightings import terminal
from builds.engines.kubernetes.watch import Watch
from tests.bench import building, empty, web
from tests.bench.figures import beside, percentile
from tests.parts import cluster as parts
from tests.parts.cluster import Cluster, Object, Release
from tests.parts.githost import GitHost
from tests.parts.kiln import Kiln, until
from tests.parts.pods import Pod, within
from tests.parts.registry import Registry, free_port

TURNS = 5
JSON = {"Content-Type": "application/json"}
STORM = 800
NOWHERE = {"nodeSelector": {"kiln.dev/bench": "nowhere"}}
BARE = r"""
import pathlib, subprocess, sys, time
pathlib.Path("/tmp/config.py").write_text(sys.argv[1])
began = time.monotonic()
done = subprocess.run(["jupyter-repo2docker", "--config=/tmp/config.py", *sys.argv[2:]], capture_output=True, text=True)
if done.returncode:
    sys.exit("\n".join(line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower())[-1500:])
print(time.monotonic() - began)
"""
"""Bare repo2docker in a pod. It is timed inside, so that the time to start a command in a pod does not count."""


@contextmanager
def _site() -> Iterator[tuple[Release, Pods, Path]]:
    """Install a release, with a folder for the parts around it and a watch of the pods of its Jobs."""
    with (
        tempfile.TemporaryDirectory(prefix="kiln-bench-") as name,
        parts.chosen() as cluster,
        Registry(Path(name) / "registry", address=cluster.gateway) as registry,
        GitHost(Path(name) / "git", address=cluster.gateway) as host,
        _release(cluster, registry, host) as release,
        _watched(release) as pods,
    ):
        yield release, pods, Path(name)


def figures() -> None:
    """Measure from webhook to event in a kind cluster, and Kubernetes' own share of that time."""
    if reason := parts.problem():
        print(f"  not measured: {reason}")
        return
    with _site() as (release, pods, folder):
        _builds(release, pods)
        _starts(release, folder)
        _followed(release)
        _accepted(release, pods.api)
        _sustained(release, pods.api)


def with_environments() -> None:
    """Compare builds with an `environment.yml` in a cluster with repo2docker in a pod, by the same node's daemon."""
    if reason := parts.problem():
        print(f"  not measured: {reason}")
        return
    with _site() as (release, pods, _):
        parts.offer_buildpacks(release)
        _kiln(release, pods, building.environment(release))  # fills the caches of the node that it is placed on
        builder = release.pods()[0]
        bare_pod = _bare_pod(release, pods.api, builder["spec"]["nodeName"])
        for what, make in (("cold", building.environment_anew), ("warm", building.environment)):
            told: dict[str, list[float]] = {"event": [], "bare": [], "job": []}
            for _ in range(building.PAIRS):
                told["bare"].append(_bare(release, bare_pod, make(release)))
                told["event"].append(_kiln(release, pods, make(release))["event"])
                told["job"].append(_job(pods, builder)["job"])
            for number, (bare, event) in enumerate(zip(told["bare"], told["event"], strict=True), 1):
                beside(f"{what}, pair {number}", event, bare, "s", "repo2docker --push")
            found = {which: median(seconds) for which, seconds in told.items()}
            least = found["bare"] + found["job"]
            against = "repo2docker + a Job that does nothing"
            beside(f"environment.yml, {what}, median", found["event"], least, "s", against)
        nodes = {pod["spec"]["nodeName"] for pod in release.pods()}
        print(f"  builds ran on {len(nodes)} node{'s' if len(nodes) > 1 else ''}")


def _release(cluster: Cluster, registry: Registry, host: GitHost) -> Release:
    """Return a release whose daemons also use the registry as their mirror of Docker Hub."""
    values = {"dockerd": {"extraArgs": [f"--registry-mirror=http://{registry.host}"]}}
    settings = {"max_queued": 100_000, "scale_up_after": 3600, "max_viewers": web.VIEWERS, "values": values}
    return Release(cluster, registry=registry, host=host, sinks=["bench"], **settings)  # type: ignore[arg-type]


# A build ------------------------------------------------------------------------------------------------------------


class Pods:
    """The times at which pods were created and ended, by the names of their Jobs (`time.monotonic`)."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.made: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.watch = Watch(api, "pods", labels="batch.kubernetes.io/job-name", changed=self._look)

    def _look(self) -> None:
        now = time.monotonic()
        for pod in self.watch.objects().values():
            job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
            self.made.setdefault(job, now)
            if terminal(pod):
                self.ended.setdefault(job, now)


@contextmanager
def _watched(release: Release) -> Iterator[Pods]:
    pods = Pods(Api(release.cluster.configuration(), release.namespace, timeout=30))
    pods.watch.start()
    yield pods
    pods.watch.stop()
    pods.api.close()


def _builds(release: Release, pods: Pods) -> None:
    """Time single builds with a slot free, each next to a Job that does nothing and to repo2docker in a running pod."""
    building.through_kiln(release, building.fresh(release))  # warms the caches of the node on which it is placed
    builder = release.pods()[0]
    bare_pod = _bare_pod(release, pods.api, builder["spec"]["nodeName"])
    told: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for what, seconds in (_kiln(release, pods, building.fresh(release)) | _job(pods, builder)).items():
            told.setdefault(what, []).append(seconds)
        told.setdefault("bare", []).append(_bare(release, bare_pod, building.fresh(release)))
    found = {what: median(seconds) for what, seconds in told.items()}
    beside("202 to pod created", found["pod made"], found["job's pod made"], "s", "POST of a Job to its pod")
    beside("pod ended to event at sink", found["told"], 0, "s", "")
    least = found["bare"] + found["job"]
    beside("webhook to event", found["event"], least, "s", "repo2docker + a Job that does nothing")


def _bare(release: Release, pod: Object, commit: str) -> float:
    """Return the seconds that repo2docker takes in the pod, from the clone to the pushed image."""
    command = ("python", "-c", BARE, building.CONFIG, *building.options(release, commit))
    return float(within(release.cluster, pod, *command))


def _kiln(release: Release, pods: Pods, commit: str) -> dict[str, float]:
    webhook = release.push(building.REPOSITORY, commit)
    began = time.monotonic()
    name = release.deliver(webhook).json()["builds"][0]["name"]
    answered = time.monotonic()
    release.arrived("bench", name, "succeeded", building.SECONDS)
    event = next(
        received.at
        for received in release.sinks["bench"].received
        for event in received.events
        if (event.subject, event.type) == (name, "dev.kiln.build.succeeded.v1")
    )
    job = f"{name}-1"
    until(lambda: job in pods.ended)
    return {"pod made": pods.made[job] - answered, "told": event - pods.ended[job], "event": event - began}


def _job(pods: Pods, builder: Object) -> dict[str, float]:
    """Time a Job whose pod is the builder's, with its node and volumes, but for the command, which does nothing."""
    name = f"bench-{secrets.token_hex(4)}"
    spec = {field: value for field, value in builder["spec"].items() if field != "nodeName"}
    spec["containers"] = [{**spec["containers"][0], "command": ["true"], "args": []}]
    template = {"metadata": {"annotations": builder["metadata"]["annotations"]}, "spec": spec}
    began = time.monotonic()
    pods.api.create("jobs", {"metadata": {"name": name}, "spec": {"backoffLimit": 0, "template": template}})
    until(lambda: name in pods.ended)
    return {"job's pod made": pods.made[name] - began, "job": pods.ended[name] - began}


def _bare_pod(release: Release, api: Api, node: str) -> Object:
    """Create a pod that waits for commands next to the node's daemon."""
    spec = _pod_spec(release, node, ["sleep", "infinity"])
    spec["volumes"] = [{"name": "docker", "hostPath": {"path": f"/var/run/kiln/{release.namespace}_{release.name}"}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "docker", "mountPath": "/run/kiln"}]
    variables = {"DOCKER_HOST": "unix:///run/kiln/docker.sock", "HOME": "/tmp"}
    spec["containers"][0]["env"] = [{"name": name, "value": value} for name, value in variables.items()]
    api.create("pods", {"metadata": {"name": "bench-bare"}, "spec": spec})
    until(lambda: api.read("pods", "bench-bare")["status"]["phase"] == "Running", 120)
    return api.read("pods", "bench-bare")


def _pod_spec(release: Release, node: str, command: list[str]) -> dict[str, Any]:
    fields = [{"key": "metadata.name", "operator": "In", "values": [node]}]
    terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
    image = release.cluster.kiln_image
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [{"name": "it", "image": image, "imagePullPolicy": "Never", "command": command}],
    }


# Web ----------------------------------------------------------------------------------------------------------------


def _starts(release: Release, folder: Path) -> None:
    """Time a local web process against the cluster's API server.

    The figures are the seconds from its start until it answers and has read the records, and until it has written one.
    """
    where = {
        "KILN_ENGINE": "kubernetes",
        "KILN_NAMESPACE": release.namespace,
        "KILN_INSTANCE": f"{release.namespace}/{release.name}",
        "KILN_ANCHOR": release.name,
        "KUBECONFIG": str(release.cluster.kubeconfig),
    }
    ours: list[float] = []
    bare: list[float] = []
    for turn in range(TURNS + 1):  # the first turn warms the caches
        bare += web.until_answered(empty.command(port := free_port()), {}, {"/": port}).values()
        port, ops = free_port(), free_port()
        kiln = Kiln(folder / f"web-{turn}", PORT=str(port), KILN_OPS_PORT=str(ops), **where)
        paths = {"/livez": ops, "/readyz": ops, "/api/v1/builds": port}
        ours.append(max(web.until_answered(web.command("web"), kiln.environment, paths).values()))
    beside("web: start to ready", median(ours[1:]), median(bare[1:]), "s", "empty Flask app answers")
    taken, empty_app = web.from_zero(folder, {**where, "KILN_AUTH": "none"})
    beside("web: start to first 202", taken, empty_app, "s", "empty Flask app")


def _followed(release: Release) -> None:
    """Measure webhooks under log viewers while no controller runs."""
    build = release.talking("bench/talks")
    _scale(release, 0)
    webs = [Pod(release.cluster, pod, 9090) for pod in release.objects("pods", "web")]
    web.followed(release, build, lambda: all("kiln_log_viewers 0.0" in pod.get("metrics").text for pod in webs))
    _forget(release)


def _accepted(release: Release, api: Api) -> None:
    """Measure accepted webhooks while no controller runs."""
    _scale(release, 0)
    secret, port = release.webhook_secret.encode(), free_port()
    model = _model(release, api, secret)
    told = {"KUBECONFIG": str(release.cluster.kubeconfig), empty.NAMESPACE: release.namespace}

    def webhooks() -> web.Send:
        return web.poster(release.url, "/webhooks/github", partial(web.push, secret, secrets.randbelow(10**6)))

    def through_flask() -> web.Send:
        return web.poster(f"http://127.0.0.1:{port}/", "/configmaps", lambda _: (JSON, json.dumps(model()).encode()))

    with web.process(empty.command(port), told):
        web.answered(port)
        for senders in (1, web.SENDERS):
            ours, bare, least = web.in_turns(senders, webhooks, lambda: _creator(api, model), through_flask)
            by = "1 sender" if senders == 1 else f"{senders} senders"
            for against, theirs in (("POST of its ConfigMap", bare), ("Flask route that POSTs it", least)):
                beside(f"202, {by}, median", median(ours), median(theirs), "ms", against, 1000)
                beside(f"202, {by}, p99", percentile(ours, 99), percentile(theirs, 99), "ms", against, 1000)
    _forget(release)


def _model(release: Release, api: Api, secret: bytes) -> Callable[[], Object]:
    """Return a factory of the objects that web writes for a webhook, with new names and an unmanaged owner."""
    web.poster(release.url, "/webhooks/github", partial(web.push, secret, 0))(1)
    labels = f"{release.labels},app.kubernetes.io/component=build,kiln.dev/open"
    build = build_of(max(api.list("configmaps", labels=labels), key=lambda one: one["metadata"]["creationTimestamp"]))
    anchor = api.read("configmaps", release.name)

    def make() -> Object:
        name = f"{build.name[:-20]}{secrets.token_hex(10)}"
        return manifest(replace(build, name=name, uid="", revision=""), Owner(name="nobody"), anchor)

    return make


def _creator(api: Api, model: Callable[[], Object]) -> web.Send:
    return lambda _: [api.create("configmaps", model())].clear()


def _sustained(release: Release, api: Api) -> None:
    """Measure webhooks while every part works except builds, which have no node.

    Each webhook is written, observed and announced.
    """
    release.upgrade(dockerd=NOWHERE)
    secret = release.webhook_secret.encode()
    model = _model(release, api, secret)
    each = STORM // web.SENDERS
    began = time.monotonic()
    web.load(lambda: _creator(api, model), each=each)
    bare = STORM / (time.monotonic() - began)
    queued = _queued(release)
    began = time.monotonic()
    make = partial(web.push, secret, secrets.randbelow(10**6))
    web.load(partial(web.poster, release.url, "/webhooks/github", make), each=each)
    accepted = STORM / (time.monotonic() - began)
    until(lambda: _queued(release) >= queued + STORM, 300)
    told = STORM / (time.monotonic() - began)
    beside("events accepted", accepted, bare, "/s", "POSTs of ConfigMaps")
    beside("events written and announced", told, bare, "/s", "POSTs of ConfigMaps")


def _queued(release: Release) -> int:
    return sum(event.type == "dev.kiln.build.queued.v1" for event in release.sinks["bench"].events)


def _scale(release: Release, controllers: int) -> None:
    """Scale the controllers with kubectl, because the chart requires at least one."""
    which = [f"--namespace={release.namespace}", f"--selector={release.labels},app.kubernetes.io/component=controller"]
    release.cluster.kubectl("scale", "deployments", *which, f"--replicas={controllers}")
    until(lambda: len(release.objects("pods", "controller")) == controllers, 120)


def _forget(release: Release) -> None:
    """Delete all records and start controllers again."""
    for owner in (release.labels, release.labels.replace(f"instance={release.name}", "instance=nobody")):
        selector = {"labelSelector": f"{owner},app.kubernetes.io/component=build"}
        path = f"/api/v1/namespaces/{release.namespace}/configmaps"
        release.cluster.api("DELETE", path, params=selector, timeout=120).raise_for_status()
    _scale(release, 2)
