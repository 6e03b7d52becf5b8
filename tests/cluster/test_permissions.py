"""The parts' permissions in their cluster, as the API server and its admission enforce them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts.cluster import Cluster, Object, Release
from tests.parts.kiln import Kiln, until
from tests.parts.pods import within

pytestmark = pytest.mark.timeout(300)

READS = {"pods": "get list", "pods/log": "get list", "events": "get list"}
ALL = "create delete get list patch update watch"
LEASE = "leases.coordination.k8s.io kiln"
MAY = {
    "web": READS | {"configmaps": "create get list patch", LEASE: "get"},
    "controller": READS
    | {"pods": "get list patch watch", "configmaps": ALL, "jobs.batch": ALL, LEASE: "get patch update"},
    "dockerd": {},
    "build": {},
}
"""By component: the verbs for each resource, or resource and name."""


def permitted(cluster: Cluster, account: str, namespace: str) -> dict[str, set[str]]:
    """Parse `kubectl auth can-i --list` into the format of `MAY`; non-resource URLs are keys of their own."""
    listed = cluster.kubectl("auth", "can-i", "--list", "--no-headers", f"--namespace={namespace}", f"--as={account}")
    found: dict[str, set[str]] = {}
    for line in listed.splitlines():
        match = re.fullmatch(r"(\S*)\s+\[(.*?)\]\s+\[(.*?)\]\s+\[(.*?)\]\s*", line)
        assert match, line
        what = " ".join(filter(None, match.groups()[:3]))
        found.setdefault(what, set()).update(match[4].split())
    return found


@pytest.mark.parametrize("component", MAY)
def test_a_service_account_has_its_role_and_nothing_else(release: Release, component: str) -> None:
    """The account may otherwise only do what every account may: review its own access and discover the API."""
    accounts = f"system:serviceaccount:{release.namespace}"
    everybody = permitted(release.cluster, f"{accounts}:default", release.namespace)
    assert not any("*" in verbs for verbs in everybody.values())
    own = permitted(release.cluster, f"{accounts}:kiln-{component}", release.namespace)
    assert own == everybody | {what: set(verbs.split()) for what, verbs in MAY[component].items()}
    for elsewhere in ("default", "kube-system"):
        assert permitted(release.cluster, f"{accounts}:kiln-{component}", elsewhere) == everybody


@pytest.mark.parametrize(("component", "missing"), [("web", ""), ("build", "create configmaps, get configmaps")])
def test_kiln_doctor_names_what_an_account_may_not_do(
    release: Release, tmp_path: Path, component: str, missing: str
) -> None:
    kubeconfig = as_account(release, f"kiln-{component}", tmp_path / "kubeconfig")
    settings = {
        "KILN_ENGINE": "kubernetes",
        "KILN_AUTH": "none",
        "KUBECONFIG": str(kubeconfig),
        "KILN_ANCHOR": "kiln",
        "KILN_NAMESPACE": release.namespace,
        "KILN_INSTANCE": f"{release.namespace}/kiln",
    }
    with Kiln(tmp_path, **settings) as kiln:
        found = json.loads(kiln.run("doctor", "--json").stdout)["findings"]
    by_probe = {finding["probe"]: finding for finding in found}
    assert by_probe["Kubernetes API"]["state"] == "ok", found
    if missing:
        assert missing in by_probe["permissions"]["found"]
        assert "helm upgrade" in by_probe["permissions"]["cure"]
        assert {by_probe[name]["state"] for name in ("permissions", "records", "daemons")} == {"failed"}
    else:
        assert {by_probe[name]["state"] for name in ("permissions", "records", "daemons")} == {"ok"}, found
        assert all(node in by_probe["daemons"]["found"] for node in release.dockerd())


def as_account(release: Release, account: str, path: Path) -> Path:
    """Write a kubeconfig for a service account of the release to `path`."""
    config = yaml.safe_load(release.cluster.kubeconfig.read_text())
    token = release.cluster.kubectl("create", "token", account, f"--namespace={release.namespace}").strip()
    config["users"] = [{**user, "user": {"token": token}} for user in config["users"]]
    path.write_text(yaml.safe_dump(config))
    return path


POST = """
import json, sys, urllib.error, urllib.request, ssl
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
token = open(f"{folder}/token").read()
def post(path, body):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"https://kubernetes.default.svc{path}", json.dumps(body).encode(), headers)
    try:
        return urllib.request.urlopen(request, context=ssl.create_default_context(cafile=f"{folder}/ca.crt")).status
    except urllib.error.HTTPError as error:
        return error.code
print(json.dumps([post(*one) for one in json.loads(sys.argv[1])]))
"""


def test_web_can_record_a_build_and_start_nothing(release: Release) -> None:
    """Web's pod sends the requests with its own token."""
    pod_spec = {"containers": [{"name": "c", "image": "busybox"}], "restartPolicy": "Never"}
    metadata = {"name": "probe"}
    core, batch = f"/api/v1/namespaces/{release.namespace}", f"/apis/batch/v1/namespaces/{release.namespace}"
    dry = "?dryRun=All"
    asked: list[tuple[str, dict[str, Any]]] = [
        (f"{core}/configmaps{dry}", {"metadata": metadata}),
        (f"{core}/pods{dry}", {"metadata": metadata, "spec": pod_spec}),
        (f"{batch}/jobs{dry}", {"metadata": metadata, "spec": {"template": {"spec": pod_spec}}}),
        (f"{core}/secrets{dry}", {"metadata": metadata}),
        (f"{core}/serviceaccounts/kiln-controller/token{dry}", {"spec": {}}),
    ]
    web = release.objects("pods", "web")[0]
    assert json.loads(within(release.cluster, web, "python", "-c", POST, json.dumps(asked))) == [
        201,
        403,
        403,
        403,
        403,
    ]


@pytest.fixture(scope="module")
def building(release: Release) -> Iterator[Object]:
    """A build's pod while its step runs."""
    commit, exactly = release.running("ada/permissions", 240)
    name = release.build("ada/permissions", commit)
    release.step_runs(name, exactly)
    (pod,) = release.objects("pods", selector=f"kiln.dev/build={name}")
    yield pod
    release.cancel(name)
    release.ended(name)


def test_builds_and_daemons_have_no_token(release: Release, building: Object) -> None:
    found = {}
    for pod in (building, *release.dockerd().values()):
        assert not any("projected" in volume for volume in pod["spec"]["volumes"])
        for container in pod["spec"]["containers"]:
            look = "ls -d /var/run/secrets/kubernetes.io /run/secrets/kubernetes.io 2>/dev/null; true"
            name = container["name"]
            found[name] = within(release.cluster, pod, "sh", "-c", look, container=name).split()
    assert found == {"builder": [], "dockerd": [], "prune": []}


def test_nothing_of_it_is_of_the_whole_cluster(cluster: Cluster, release: Release) -> None:
    """Neither helm's manifest nor the cluster's objects without a namespace contain anything of Kiln."""
    kinds = cluster.kubectl("api-resources", "--namespaced=false", "--verbs=list", "--output=name").split()
    objects = json.loads(cluster.kubectl("get", ",".join(kinds), "--output=json"))["items"]
    assert [one for one in objects if _belongs(one, release.namespace)] == []
    objects_of_no_namespace = {one["kind"] for one in objects}
    assert {"Node", "ClusterRoleBinding", "Namespace"} <= objects_of_no_namespace
    parts = [
        cluster.helm("get", part, release.name, f"--namespace={release.namespace}") for part in ("manifest", "hooks")
    ]
    installed = set(re.findall(r"^kind: (\w+)$", "\n".join(parts), re.MULTILINE))
    assert {"DaemonSet", "Role", "Pod"} <= installed
    assert not installed & objects_of_no_namespace


def _belongs(one: Object, namespace: str) -> bool:
    """Report whether the chart, Kiln or helm created the object, or whether it binds the namespace's accounts."""
    metadata = one["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    subjects = [subject.get("namespace") for subject in one.get("subjects") or []]
    owners = {owner["kind"] for owner in metadata.get("ownerReferences") or []}
    return (
        labels.get("app.kubernetes.io/name") == "kiln"
        or annotations.get("meta.helm.sh/release-namespace") == namespace
        or namespace in subjects
        or bool(owners & {"ConfigMap", "Job", "DaemonSet", "Deployment"})
    )


# Pod security: the admission of a namespace that enforces a profile checks each pod as it runs. -----------------------


@pytest.fixture(scope="module")
def profiles(cluster: Cluster, release: Release) -> Iterator[dict[str, str]]:
    """The namespaces by the profile that they enforce."""
    names = {profile: f"{release.namespace}-{profile}" for profile in ("restricted", "baseline")}
    for profile, name in names.items():
        labels = {"pod-security.kubernetes.io/enforce": profile, "kiln.dev/test": "true"}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    accounts = [("default", name) for name in names.values()]
    until(lambda: all(_there(cluster, "serviceaccount", *one) for one in accounts))
    yield names
    for name in names.values():
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def _there(cluster: Cluster, kind: str, name: str, namespace: str) -> bool:
    return bool(cluster.kubectl("get", kind, name, f"--namespace={namespace}", "--ignore-not-found"))


def refused(cluster: Cluster, pod: Object, namespace: str) -> str:
    """Return the violations that the namespace's profile reports for a pod; empty if it admits the pod."""
    answer = cluster.api("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", json=anew(pod))
    if answer.status_code == 201:
        return ""
    found = re.search(r'violates PodSecurity "\w+:latest": (.*)$', answer.json()["message"])
    assert found, answer.text
    return found[1]


def anew(pod: Object) -> Object:
    """Return the pod as before its admission: without account, node and the token's volume."""
    spec = copy.deepcopy(pod["spec"])
    for name in ("nodeName", "serviceAccount", "serviceAccountName", "priority", "tolerations"):
        spec.pop(name, None)
    tokens = {volume["name"] for volume in spec["volumes"] if volume["name"].startswith("kube-api-access-")}
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] not in tokens]
    for container in spec["containers"]:
        container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] not in tokens]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "again"}, "spec": spec}


@pytest.mark.parametrize("component", ["web", "controller"])
def test_web_and_controller_are_restricted(release: Release, profiles: dict[str, str], component: str) -> None:
    for pod in release.objects("pods", component):
        assert refused(release.cluster, pod, profiles["restricted"]) == ""


def test_a_build_is_restricted_but_for_the_folder_of_the_socket(
    release: Release, profiles: dict[str, str], building: Object
) -> None:
    against = refused(release.cluster, building, profiles["restricted"])
    assert against == 'restricted volume types (volume "sockets" uses restricted volume type "hostPath")'
    without = copy.deepcopy(building)
    for volume in without["spec"]["volumes"]:
        if volume.pop("hostPath", None):
            volume["emptyDir"] = {}
    assert refused(release.cluster, without, profiles["restricted"]) == ""


def test_only_the_daemon_is_privileged(release: Release, profiles: dict[str, str], building: Object) -> None:
    privileged = {
        (pod["metadata"]["labels"]["app.kubernetes.io/component"], container["name"])
        for pod in (building, *release.cluster.get("pods", release.namespace))
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]
        if container.get("securityContext", {}).get("privileged")
    }
    assert privileged == {("dockerd", "dockerd")}
    daemon = next(iter(release.dockerd().values()))
    against = refused(release.cluster, daemon, profiles["baseline"])
    assert 'container "dockerd" must not set securityContext.privileged=true' in against
    assert "host namespaces" not in against
