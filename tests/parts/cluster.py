"""A Kubernetes cluster made by kind, and Kiln installed there by helm.

    with Cluster() as cluster, Registry(folder, address=cluster.gateway) as registry, GitHost(…) as host:
        with Release(cluster, registry=registry, host=host) as release:
            name = release.build("ada/page", release.commit("ada/page", {"Dockerfile": SMALL}))
            build = release.ended(name)

The parts around Kiln run on this machine, at the gateway of Docker's network `kind`. That address means the same to a
test, a node, a pod and a step of a build, so references of images and URLs are equal everywhere. These parts are those
of the tests on one machine: a sink can refuse, a registry fall silent, a proxy break connections.

Tests reach web through a port of the control plane's node, which no test stops.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import requests
import yaml
from kubernetes import config
from kubernetes.client.configuration import Configuration

from builds.builder.evidence import PYPI, PYPI_FILES
from tests.parts import image, machine, podman
from tests.parts.githost import GitHost
from tests.parts.installation import Installation
from tests.parts.kiln import get, until
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry

CONFIG = machine.ROOT / "tests/cluster/kind.yaml"
"""Names the node image, too."""
CHART = machine.ROOT / "chart"
FOLDER = machine.CACHE / "cluster"
BUSYBOX = "busybox:1.37"
DAEMON = "docker:26.1-dind"
"""In place of the chart's newer image, because a machine without a registry has this version."""
BUILDPACKS_BASE = "buildpack-deps:24.04"
READY_SECONDS = 180
GROUPS = {
    "deployments": "apis/apps/v1",
    "daemonsets": "apis/apps/v1",
    "jobs": "apis/batch/v1",
    "leases": "apis/coordination.k8s.io/v1",
}
"""The API groups of kinds outside the core API."""

Object = dict[str, Any]


def absent() -> list[str]:
    """The required commands that this machine lacks."""
    return [name for name in ("kind", "kubectl", "helm") if not shutil.which(name)]


def problem() -> str | None:
    """Why no cluster can be made here, in a sentence; `None` where it can."""
    missing = absent()
    return f"there is no {' and no '.join(missing)} command" if missing else machine.problem()


class Cluster:
    """A cluster of its own, which replaces what an interrupted run has left, with Kiln's image built and loaded on its
    workers. With `keep`, an existing cluster is used as it is and left running. With `loaded`, the caller has already
    loaded the images."""

    def __init__(
        self,
        name: str = "kiln-test",
        *,
        keep: bool = False,
        loaded: bool = False,
        kiln_image: str = image.IMAGE,
        folder: Path | None = None,
    ) -> None:
        self.name, self.keep, self.kiln_image = name, keep, kiln_image
        self._loaded = loaded
        self.folder = folder or FOLDER / name
        self.kubeconfig = self.folder / "kubeconfig"

    def __enter__(self) -> Self:
        if self._loaded:
            self._start()
            return self
        with ThreadPoolExecutor(1) as aside:
            making = aside.submit(image.build, self.kiln_image)
            self._start()
            self.load(making.result(), DAEMON, BUSYBOX)
        return self

    def _start(self) -> None:
        there = self.name in run("kind", "get", "clusters").split()
        if there and not self.keep:
            self.delete()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if there and self.keep:
            run("kind", "export", "kubeconfig", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}")
        else:
            wait = f"--wait={READY_SECONDS}s"
            named = [f"--name={self.name}", f"--config={CONFIG}", f"--kubeconfig={self.kubeconfig}"]
            run("kind", "create", "cluster", *named, wait)
        self.kubectl("wait", "--for=condition=Ready", "nodes", "--all", f"--timeout={READY_SECONDS}s")

    def __exit__(self, *_: object) -> None:
        if not self.keep:
            self.delete()

    def delete(self) -> None:
        run("kind", "delete", "cluster", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}")
        shutil.rmtree(self.folder, ignore_errors=True)

    # Parts of the cluster ---------------------------------------------------------------------------------------------

    @cached_property
    def gateway(self) -> str:
        """This machine, as the nodes and their pods see it."""
        shown = json.loads(run("docker", "network", "inspect", "kind"))[0]["IPAM"]["Config"]
        return str(next(one["Gateway"] for one in shown if "." in one.get("Gateway", "")))

    @cached_property
    def control_plane(self) -> str:
        return next(name for name in self._nodes if name.endswith("control-plane"))

    @cached_property
    def workers(self) -> list[str]:
        return [name for name in self._nodes if name != self.control_plane]

    @cached_property
    def _nodes(self) -> list[str]:
        return sorted(run("kind", "get", "nodes", f"--name={self.name}").split())

    def address(self, node: str) -> str:
        shape = "{{.NetworkSettings.Networks.kind.IPAddress}}"
        return run("docker", "inspect", "--format", shape, node).strip()

    @cached_property
    def api_server(self) -> tuple[str, int]:
        """The address at which it listens for clients inside the cluster, to put a proxy before it."""
        return self.address(self.control_plane), 6443

    # Operations -------------------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return run("kubectl", f"--kubeconfig={self.kubeconfig}", *arguments, stdin=stdin)

    def helm(self, *arguments: str) -> str:
        return run("helm", f"--kubeconfig={self.kubeconfig}", *arguments)

    def apply(self, *objects: Object) -> None:
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, namespace: str = "default", selector: str = "") -> list[Object]:
        """Not by kubectl, whose start takes more than the answer. Raises MachineError."""
        path = f"/{GROUPS.get(kind, 'api/v1')}/" + (kind if kind == "nodes" else f"namespaces/{namespace}/{kind}")
        try:
            answer = self.api("GET", path, params={"labelSelector": selector})
            answer.raise_for_status()
        except requests.RequestException as error:
            raise machine.MachineError(f"no {kind} of {namespace}: {error}") from None
        listed: Object = answer.json()
        what = {"apiVersion": listed["apiVersion"], "kind": listed["kind"].removesuffix("List")}
        return [what | one for one in listed["items"]]

    def configuration(self) -> Configuration:
        """For the official client, as its administrator."""
        configuration = Configuration()
        config.load_kube_config(config_file=str(self.kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
        return configuration

    def api(self, verb: str, path: str, **options: Any) -> requests.Response:
        """A request to the API server as its administrator: where kubectl's start would count, and for watches."""
        return self._session.request(verb, f"{self._server}{path}", **({"timeout": 30} | options))

    @cached_property
    def _session(self) -> requests.Session:
        read = yaml.safe_load(self.kubeconfig.read_text())
        session, user = requests.Session(), read["users"][0]["user"]
        session.trust_env = False
        files = {
            "authority": read["clusters"][0]["cluster"]["certificate-authority-data"],
            "certificate": user["client-certificate-data"],
            "key": user["client-key-data"],
        }
        for name, content in files.items():
            (self.folder / name).write_bytes(base64.b64decode(content))
        session.verify = str(self.folder / "authority")
        session.cert = (str(self.folder / "certificate"), str(self.folder / "key"))
        return session

    @cached_property
    def _server(self) -> str:
        server: str = yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        return server

    def load(self, *images: str) -> None:
        """Puts images on the workers, as a pull would; a worker that has them is left alone."""
        for name in images:
            if subprocess.run(["docker", "image", "inspect", name], check=False, capture_output=True).returncode:
                run("docker", "pull", "--quiet", name)
        run("kind", "load", "docker-image", *images, f"--name={self.name}", f"--nodes={','.join(self.workers)}")

    def signal(self, pod: Object, number: str, command: str) -> None:
        """Sends a signal (`KILL`, `STOP`, `CONT`) to the pod's processes whose command line contains `command`."""
        uid = pod["metadata"]["uid"].replace("-", "[-_]")
        script = f"""
            for file in $(grep -lE 'pod{uid}' /proc/[0-9]*/cgroup); do
                process=${{file%/cgroup}}
                if tr '\\0' ' ' <$process/cmdline | grep -qF -e '{command}'; then kill -{number} ${{process#/proc/}}; fi
            done
        """
        run("docker", "exec", pod["spec"]["nodeName"], "bash", "-c", script)


SHARED, LOADED = "KILN_TEST_CLUSTER", "KILN_TEST_CLUSTER_LOADED"


def chosen() -> Cluster:
    """The cluster that `KILN_TEST_CLUSTER` names, which stays; without that variable, a cluster of its own. Where
    `KILN_TEST_CLUSTER_LOADED` is set, as `make test` does for its workers, its nodes have Kiln's current image already.

    Several processes may use it at a time: each has a folder, and its own copy of the kubeconfig there.
    """
    kept = os.environ.get(SHARED)
    if kept is None:
        return Cluster(kiln_image=_image_for("kiln-test"))
    own = FOLDER / kept / str(os.getpid())
    return Cluster(kept, keep=True, loaded=LOADED in os.environ, kiln_image=_image_for(kept), folder=own)


def _image_for(cluster: str) -> str:
    return f"kiln:{cluster}"


class Release(Installation):
    """One `helm install` of the chart in a namespace of its own, with the parts around it; web is open.

    `settings` are the chart's (`builds_per_node=1`). `config` is added to the configuration file beside Git host, sinks
    and registry, and `values` are any further values. With `api_proxy`, web and controller reach the API server only
    through that proxy.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        registry: Registry,
        host: GitHost,
        name: str = "kiln",
        namespace: str | None = None,
        sinks: Sequence[str] = ("first", "second"),
        config: Mapping[str, object] = {},
        values: Mapping[str, object] = {},
        through: str | None = None,
        sink_proxies: Mapping[str, Proxy] = {},
        api_proxy: Proxy | None = None,
        **settings: str | int,
    ) -> None:
        super().__init__(registry=registry, host=host, sinks=sinks, sink_proxies=sink_proxies, through=through)
        self.cluster, self.name = cluster, name
        self.namespace = namespace or f"kiln-{secrets.token_hex(3)}"
        self.values = dict(values)
        self._api_proxy = api_proxy
        self.settings = {"image_prefix": self.prefix, "auth": "none", "allowed_repositories": self.allowed, **settings}
        self._config = {**self.config, "insecure_registries": [through or registry.host], **config}
        self._seen = _Seen(cluster, self.namespace, f"{self.labels},app.kubernetes.io/component=build")

    def __enter__(self) -> Self:
        labels = {"pod-security.kubernetes.io/enforce": "privileged", "kiln.dev/test": "true"}
        metadata = {"name": self.namespace, "labels": labels}
        self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        if self._api_proxy:
            self.cluster.apply(*_called_kubernetes(self.namespace, self._api_proxy))
        self._seen.start()
        try:
            self.upgrade()
            until(lambda: get(f"{self.url}api/v1/builds")[0] in (200, 401, 403))
        except (AssertionError, machine.MachineError):
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Deletes by force and without waiting: a daemon would wait for builds that still run."""
        self._seen.stop()
        self.cluster.kubectl("delete", "namespace", self.namespace, "--wait=false")
        self.cluster.kubectl("delete", "pods", f"--namespace={self.namespace}", "--all", "--force", "--wait=false")
        self.close()

    def upgrade(self, *, wait: bool = True, **values: object) -> None:
        """Runs `helm upgrade --install` with these values over the existing ones."""
        self.values.update(values)
        written = [self.cluster.folder / f"{self.namespace}-{self.name}.{part}.yaml" for part in ("own", "test")]
        for path, content in zip(written, (self._own_values, self.values), strict=True):
            path.write_text(yaml.safe_dump(content))
        files = [f"--values={path}" for path in written]
        waiting = ["--wait", f"--timeout={READY_SECONDS}s"] if wait else []
        self._helm("upgrade", "--install", self.name, str(CHART), *files, *waiting)

    def uninstall(self) -> None:
        self._helm("uninstall", self.name, "--wait", f"--timeout={READY_SECONDS}s")

    def _helm(self, *arguments: str) -> None:
        try:
            self.cluster.helm(*arguments, f"--namespace={self.namespace}")
        except machine.MachineError as error:
            raise machine.MachineError(f"{error}\n{self.tails()}") from None

    @property
    def _own_values(self) -> dict[str, object]:
        through = [{"name": f"KUBERNETES_SERVICE_{part}", "value": what} for part, what in API.items()]
        environment = {"extraEnv": through if self._api_proxy else []}
        return {
            "image": image_values(self.cluster.kiln_image),
            "settings": self.settings,
            "config": self._config,
            "webhooks": {"github": {"values": {"main": self.webhook_secret}}},
            "service": {"type": "NodePort"},
            "web": environment,
            "controller": environment,
            "dockerd": {
                "image": image_values(DAEMON),
                "drainSeconds": 60,
                "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
            },
            "podman": {"image": image_values(podman.IMAGE)},
            "networkPolicy": {"egress": {"allow": [{"to": [{"ipBlock": {"cidr": f"{self.cluster.gateway}/32"}}]}]}},
        }

    # State of the release ---------------------------------------------------------------------------------------------

    @property
    def labels(self) -> str:
        """The selector of all objects of the release."""
        return f"app.kubernetes.io/name=kiln,app.kubernetes.io/instance={self.name}"

    @cached_property
    def url(self) -> str:
        (service,) = [one for one in self.objects("services") if one["spec"]["type"] == "NodePort"]
        port = service["spec"]["ports"][0]["nodePort"]
        base = str(self.settings.get("base_path", "/"))
        return f"http://{self.cluster.address(self.cluster.control_plane)}:{port}{base}"

    def one(self, name: str) -> dict[str, Any]:
        """A build. The request is repeated where web cannot reach the API server just now, on a busy machine."""
        answers: list[requests.Response] = []

        def known() -> bool:
            answers.append(self.get(f"api/v1/builds/{name}"))
            return answers[-1].status_code != 503

        until(known)
        assert answers[-1].status_code == 200, answers[-1].text
        found: dict[str, Any] = answers[-1].json()
        return found

    def objects(self, kind: str, component: str | None = None, selector: str = "") -> list[Object]:
        """Its objects of a kind."""
        parts = [self.labels, f"app.kubernetes.io/component={component}" if component else "", selector]
        return self.cluster.get(kind, self.namespace, ",".join(part for part in parts if part))

    def jobs(self, build: str) -> list[Object]:
        return self.objects("jobs", selector=f"kiln.dev/build={build}")

    def pods(self, build: str = "") -> list[Object]:
        """The pods of a build, or of all builds, as they were last seen, deleted ones included. Oldest first."""
        found = [pod for pod in self._seen.pods() if build in ("", pod["metadata"]["labels"].get("kiln.dev/build"))]
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def dockerd(self) -> dict[str, Object]:
        """The daemons' pods by node."""
        return {pod["spec"]["nodeName"]: pod for pod in self.objects("pods", "dockerd") if "nodeName" in pod["spec"]}

    def leader(self) -> Object | None:
        """The controller's pod that leads."""
        holders = {lease["spec"].get("holderIdentity") for lease in self.objects("leases") if "spec" in lease}
        pods = self.objects("pods", "controller")
        return next((pod for pod in pods for holder in holders if holder and pod["metadata"]["name"] in holder), None)

    def lease(self) -> Object:
        """The spec of the Lease by which a controller leads: its holder, and since when."""
        (lease,) = self.objects("leases")
        spec: Object = lease.get("spec") or {}
        return spec

    def taken_over(self, since: datetime, seconds: float = 60.0) -> float:
        """Waits until a controller leads that did not at that moment, and returns how many seconds later its lead
        began."""
        took: list[float] = []

        def led_since() -> bool:
            began = datetime.fromisoformat(self.lease()["acquireTime"])
            took.append((began - since).total_seconds())
            return began > since

        until(led_since, seconds)
        return took[-1]

    def recovered(self) -> None:
        """Waits until every workload of the chart is ready again."""
        until(lambda: all(map(_whole, (*self.objects("deployments"), *self.objects("daemonsets")))), READY_SECONDS)

    def tails(self) -> str:
        events = ["get", "events", f"--namespace={self.namespace}", "--sort-by=.lastTimestamp"]
        shown = [self._told(*events).splitlines()[-20:]]
        for component, lines in (("dockerd", 3), ("web", 10), ("controller", 10)):
            selector = f"--selector={self.labels},app.kubernetes.io/component={component}"
            logs = ["logs", f"--namespace={self.namespace}", selector, f"--tail={lines}", "--prefix"]
            shown.append(self._told(*logs, "--all-containers", "--ignore-errors").splitlines())
        return "\n".join(line[:600] for lines in shown for line in lines)

    def _told(self, *arguments: str) -> str:
        try:
            return self.cluster.kubectl(*arguments)
        except machine.MachineError as error:
            return str(error)

    def most_at_once(self) -> dict[str, int]:
        """The most build pods that each node has had at a time."""
        return most_at_once(self.pods())


def most_at_once(
    pods: Iterable[Object], of: Callable[[Object], str | None] = lambda pod: pod["spec"].get("nodeName")
) -> dict[str, int]:
    """Reads the pods' own times: a pod holds its node's slot from its creation until its container has ended.

    `of` names the shared resource, if it is not the node. A pod that was deleted before its container ran has taken
    nothing: the controller of Jobs, which is late in a storm, makes some whose Job is gone already. Kubernetes writes
    whole seconds, so where one pod ends in the second in which another is made, the end comes first.
    """
    changes: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for pod in pods:
        shared = of(pod)
        if shared and not (GONE in pod and _never_ran(pod)):
            changes[shared] += [(pod["metadata"]["creationTimestamp"], 1), (_end(pod), -1)]
    return {shared: _highest(step for _, step in sorted(steps)) for shared, steps in changes.items()}


def _whole(workload: Object) -> bool:
    """Whether a Deployment or DaemonSet has all its pods, and they are ready."""
    spec, status = workload["spec"], workload.get("status", {})
    if status.get("observedGeneration") != workload["metadata"]["generation"]:
        return False
    wanted = status["desiredNumberScheduled"] if workload["kind"] == "DaemonSet" else spec["replicas"]
    return bool(wanted == status.get("numberReady", status.get("readyReplicas", 0)))


def _highest(steps: Iterable[int]) -> int:
    now = most = 0
    for step in steps:
        now += step
        most = max(most, now)
    return most


def _never_ran(pod: Object) -> bool:
    states = [one["state"] for one in pod.get("status", {}).get("containerStatuses", [])]
    return not any("running" in state or "terminated" in state for state in states)


def _end(pod: Object) -> str:
    """When its container ended, or the pod without one. Where no kubelet reported that, it is when the pod was gone, or
    its deletion was due. A pod that is deleted before its container runs is gone long before its grace period is over.
    """
    status = pod.get("status", {})
    for container in status.get("containerStatuses", []):
        if ended := container["state"].get("terminated"):
            return str(ended["finishedAt"])
    if status.get("phase") in ("Succeeded", "Failed"):
        return max(str(condition["lastTransitionTime"]) for condition in status["conditions"])
    return str(pod.get(GONE) or pod["metadata"].get("deletionTimestamp", "never"))  # which sorts after all times


API = {"HOST": "kubernetes", "PORT": "443"}
"""The API server under the one name that its certificate holds and a namespace can give to something else."""


def _called_kubernetes(namespace: str, proxy: Proxy) -> list[Object]:
    """A Service `kubernetes` of the namespace, which leads to the proxy."""
    metadata = {"name": API["HOST"], "namespace": namespace}
    ports = [{"name": "https", "port": int(API["PORT"]), "targetPort": proxy.port, "protocol": "TCP"}]
    there = [{"name": "https", "port": proxy.port, "protocol": "TCP"}]
    slice_labels = {"kubernetes.io/service-name": API["HOST"]}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"labels": slice_labels},
            "addressType": "IPv4",
            "ports": there,
            "endpoints": [{"addresses": [proxy.listen]}],
        },
    ]


GONE = "goneAt"
"""Of a pod as it was last seen: when its absence was noticed, in whole seconds as Kubernetes writes them."""


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


class _Seen:
    """Pods as a watch last saw them: the API server forgets deleted pods."""

    def __init__(self, cluster: Cluster, namespace: str, selector: str) -> None:
        self._cluster, self._selector = cluster, selector
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._pods: dict[str, Object] = {}
        self._guard = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end with its watch; the caller does not wait for that."""
        self._stopped.set()

    def pods(self) -> list[Object]:
        """The pods that the watch has reported, and those that exist now, so that a caller sees the effect of its last
        action."""
        with self._guard:
            before = {*self._pods}
        listed = self._cluster.api("GET", self._path, params={"labelSelector": self._selector})
        listed.raise_for_status()
        there = {pod["metadata"]["uid"]: pod for pod in listed.json()["items"]}
        with self._guard:
            self._pods |= there
            for uid in before - there.keys():  # gone between two watches, perhaps
                self._pods[uid].setdefault(GONE, _now())
            return list(self._pods.values())

    def _watch(self) -> None:
        query = {"labelSelector": self._selector, "watch": "true", "timeoutSeconds": "30"}
        while not self._stopped.is_set():
            with suppress(requests.RequestException):
                answer = self._cluster.api("GET", self._path, params=query, stream=True, timeout=(5, 40))
                for line in answer.iter_lines():
                    self._note(json.loads(line))
                    if self._stopped.is_set():
                        return

    def _note(self, event: Object) -> None:
        pod = event["object"]
        if event["type"] == "DELETED":
            pod = {**pod, GONE: _now()}
        if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
            with self._guard:
                self._pods[pod["metadata"]["uid"]] = pod


@contextmanager
def cordoned(cluster: Cluster, node: str) -> Iterator[None]:
    change_node(cluster, node, {"spec": {"unschedulable": True}})
    try:
        yield
    finally:
        change_node(cluster, node, {"spec": {"unschedulable": None}})


def change_node(cluster: Cluster, node: str, patch: Object) -> None:
    headers = {"Content-Type": "application/merge-patch+json"}
    cluster.api("PATCH", f"/api/v1/nodes/{node}", json=patch, headers=headers).raise_for_status()


def offer(registry: Registry, name: str, path: str) -> str:
    """Puts an image of this machine into the registry, for a `FROM`, and returns its reference there.

    The machine's daemon speaks plain HTTP with loopback only.
    """
    with Proxy((registry.address, registry.port)) as door:
        pushed = f"{door.address}/{path}"
        run("docker", "tag", name, pushed)
        try:
            run("docker", "push", "--quiet", pushed)
        finally:
            run("docker", "rmi", pushed)
    return f"{registry.host}/{path}"


def offer_buildpacks(release: Release) -> None:
    """Offer the base of repo2docker's images in the release's registry, and let its daemons reach the package servers.

    A mirror of packages may have a private address, which the chart's network policy denies.
    """
    offer(release.registry, BUILDPACKS_BASE, f"library/{BUILDPACKS_BASE}")
    hosts = ["deb.debian.org", *(address.split("/")[2] for address in (PYPI, PYPI_FILES))]
    found = {str(entry[4][0]) for host in hosts for entry in socket.getaddrinfo(host, 443, socket.AF_INET)}
    release.cluster.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "packages", "namespace": release.namespace},
            "spec": {
                "podSelector": {"matchLabels": {"app.kubernetes.io/component": "dockerd"}},
                "policyTypes": ["Egress"],
                "egress": [{"to": [{"ipBlock": {"cidr": f"{address}/32"}} for address in sorted(found)]}],
            },
        }
    )


def image_values(reference: str) -> dict[str, str]:
    """An image in the form of the chart's values."""
    repository, _, tag = reference.partition(":")
    return {"repository": repository, "tag": tag}


def run(*command: str, stdin: str | None = None) -> str:
    """Returns the command's output. Raises MachineError with its last lines."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=stdin)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-10:])
        raise machine.MachineError(f"`{' '.join(command[:6])}` ended with status {done.returncode}: {last}")
    return done.stdout
