"""A single bad object harms no other.

The objects are records that cannot be read or written, blocked threads and killed builders. The API server stores the
largest objects that a request can cause.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from builds.builder.spec import Surroundings, spec_for
from builds.engines.kubernetes.api import Api
from builds.engines.kubernetes.jobs import job
from builds.engines.kubernetes.records import build_of, manifest, patch
from kiln.config import MAX_SINKS
from kiln.vitals import STATUS
from kiln.wiring import MAX_RULES
from tests.builds.kubernetes_objects import RELEASE, TEMPLATE
from tests.builds.test_bounds import World, ask, lost
from tests.cluster.conftest import Configured
from tests.cluster.exactly_once import check_exactly_once
from tests.parts.cluster import Cluster, Object, Release, run
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, sleepers
from tests.parts.kiln import ROOT, until
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(240)

IN_TIME = 30.0
"""Seconds within which `/livez` must fail."""
ENDS = 20.0
"""Further seconds within which the process exits and its container restarts."""
STUCK = ROOT / "tests/parts/stuck/sitecustomize.py"
ASK = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen("http://127.0.0.1:9091" + sys.argv[1], timeout=5).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""

BLOCK = """
import pathlib, sys
folder = pathlib.Path("/tmp/stuck")
folder.mkdir(exist_ok=True)
(folder / sys.argv[1]).write_text("block")
"""


@pytest.fixture(scope="module")
def installed(cluster: Cluster, registry: Registry, host: GitHost) -> Iterator[Release]:
    """A release whose controllers have threads that a test can block."""
    environment = {"PYTHONPATH": "/stuck", "STUCK_THREADS": "/tmp/stuck"}
    controller = {
        "extraEnv": [{"name": name, "value": value} for name, value in environment.items()],
        "extraVolumes": [{"name": "stuck", "configMap": {"name": "stuck"}}],
        "extraVolumeMounts": [{"name": "stuck", "mountPath": "/stuck", "readOnly": True}],
    }
    with Release(cluster, registry=registry, host=host) as release:
        metadata = {"name": "stuck", "namespace": release.namespace}
        data = {STUCK.name: STUCK.read_text()}
        cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        release.upgrade(controller=controller)
        yield release


def python(release: Release, pod: Object, code: str, *arguments: str) -> str:
    """Return the output of a program in a controller's pod."""
    name, namespace = pod["metadata"]["name"], f"--namespace={release.namespace}"
    return release.cluster.kubectl(
        "exec", name, namespace, "--", "env", "-u", "PYTHONPATH", "python", "-c", code, *arguments
    )


def leader_of(release: Release) -> Object:
    until(release.leader)
    leader = release.leader()
    assert leader
    return leader


def restarts(release: Release, pod: Object) -> list[int]:
    """Return the exit status of the container's last run, if the container has restarted."""
    (now,) = [one for one in release.objects("pods", "controller") if one["metadata"]["uid"] == pod["metadata"]["uid"]]
    last = [one["lastState"].get("terminated") for one in now["status"]["containerStatuses"]]
    return [one["exitCode"] for one in last if one]


# ---- Threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thread", ["loop", "lease", "watch"])
def test_a_thread_of_the_leader_that_is_blocked_makes_the_standby_lead(installed: Release, thread: str) -> None:
    installed.recovered()
    leader = leader_of(installed)
    before = len(restarts(installed, leader))
    blocked = datetime.now(UTC)
    python(installed, leader, BLOCK, thread)
    commit = installed.commit(f"ada/{thread}", {"Dockerfile": SMALL})
    name = installed.build(f"ada/{thread}", commit)  # gives the watch an event
    said: list[str] = []

    def fails() -> bool:
        said.append(python(installed, leader, ASK, "/livez"))
        return said[-1].startswith("503 ")

    until(fails, IN_TIME)
    assert {"loop": "controller", "lease": "lease", "watch": "watch "}[thread] in said[-1]
    took = installed.taken_over(blocked)
    until(lambda: installed.lease()["holderIdentity"].rpartition("-")[0] != leader["metadata"]["name"], 60)
    until(lambda: restarts(installed, leader), ENDS)
    assert restarts(installed, leader) == [STATUS]
    check_exactly_once(installed, name, commit)
    print(f"{thread}: /livez failed and another led after {took:.0f} s; {before} restarts before")


# ---- Records --------------------------------------------------------------------------------------------------------


def test_records_that_cannot_be_read_or_written_harm_no_other(installed: Release) -> None:
    """Running builds get records that are immutable, damaged, refused by a policy or hidden from the watch."""
    installed.recovered()
    cluster, namespace = installed.cluster, f"--namespace={installed.namespace}"
    running = {}
    for what in ("immutable", "damaged", "refused", "unlabelled"):
        commit, exactly = installed.running(f"ada/{what}", 15)
        running[what] = (installed.build(f"ada/{what}", commit), exactly, commit)
    for name, exactly, _ in running.values():
        installed.step_runs(name, exactly)
    names = {what: name for what, (name, _, _) in running.items()}
    policy = _policy(installed.namespace, names["refused"])
    cluster.apply(*policy)
    try:
        until(lambda: _refuses(installed, names["refused"]))
        changes = {"immutable": {"immutable": True}, "damaged": {"data": {"record": '{"version":1,'}}}
        changes["unlabelled"] = {"metadata": {"labels": {"kiln.dev/open": None}}}
        for what, change in changes.items():
            how = ["--type=merge", f"--patch={json.dumps(change)}"]
            cluster.kubectl("patch", "configmap", names[what], namespace, *how)
        others = {}
        for number in range(8):
            commit = installed.commit(f"ada/other-{number}", {"Dockerfile": SMALL})
            others[installed.build(f"ada/other-{number}", commit)] = commit
        for name, commit in others.items():
            check_exactly_once(installed, name, commit)
        check_exactly_once(installed, names["unlabelled"], running["unlabelled"][2])
        leader = leader_of(installed)
        until(lambda: "\nkiln_records_put_aside 3.0" in python(installed, leader, ASK, "/metrics"))
        lines = cluster.kubectl("logs", leader["metadata"]["name"], namespace).splitlines()
        aside = {line["build"] for line in map(json.loads, lines) if line["message"].startswith("Record quarantined")}
        assert aside == {names[what] for what in ("immutable", "damaged", "refused")}
    finally:
        for one in policy:
            cluster.kubectl("delete", one["kind"], one["metadata"]["name"])


def _policy(namespace: str, record: str) -> list[Object]:
    """Source: https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/"""
    group = "admissionregistration.k8s.io/v1"
    name = {"name": f"{namespace}-refuses"}
    where = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    what = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["configmaps"]}
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [what], **where},
        "validations": [{"expression": f"object.metadata.name != '{record}'", "message": "not this one"}],
    }
    bound = {"policyName": name["name"], "validationActions": ["Deny"]}
    return [
        {"apiVersion": group, "kind": "ValidatingAdmissionPolicy", "metadata": name, "spec": spec},
        {"apiVersion": group, "kind": "ValidatingAdmissionPolicyBinding", "metadata": name, "spec": bound},
    ]


def _refuses(release: Release, record: str) -> bool:
    path = f"/api/v1/namespaces/{release.namespace}/configmaps/{record}?dryRun=All"
    headers = {"Content-Type": "application/merge-patch+json"}
    body = json.dumps({"metadata": {"annotations": {"tried": "yes"}}})
    return release.cluster.api("PATCH", path, data=body, headers=headers).status_code == 422


# ---- A builder ------------------------------------------------------------------------------------------------------


def test_a_builder_that_is_killed_leaves_nothing_on_its_node(installed: Release) -> None:
    installed.recovered()
    commit, exactly = installed.running("ada/killed", 20)
    name = installed.build("ada/killed", commit)
    installed.step_runs(name, exactly)
    (pod,) = installed.pods(name)
    node, folder = pod["spec"]["nodeName"], f"/var/lib/kubelet/pods/{pod['metadata']['uid']}"

    def left() -> str:
        return run("docker", "exec", node, "find", folder, "/var/run/kiln", "-name", "kiln-*", "-path", "*/kiln-*/*")

    assert left(), "while it works there is a checkout"
    installed.cluster.signal(pod, "KILL", "builds.builder")
    installed.wait(name, lambda build: build["attempts"][0]["state"])
    until(lambda: not left())
    until(lambda: not sleepers(exactly) or installed.one(name)["attempt"] == 2)
    build = check_exactly_once(installed, name, commit)
    assert [attempt["reason"] for attempt in build["attempts"]] == ["infrastructure", None]


# ---- Bounds ---------------------------------------------------------------------------------------------------------


def test_an_api_server_takes_the_largest_record_and_its_job(configured: Configured) -> None:
    api = Api(configured(), "default", timeout=30)
    world = World(MAX_SINKS)
    world.asks([ask(person) for person in range(100)])
    api.create("configmaps", manifest(world.there, RELEASE, None))
    try:
        for _ in range(9):
            world.tries(lost)
        stored = api.patch("configmaps", world.there.name, patch(replace(world.refused(), revision="")))
        build = build_of(stored)
        assert build.status == world.refused().status
        attempt = build.status.attempts[-1]
        spec = spec_for(build, attempt, Surroundings(allowed_repositories=("a" * (MAX_RULES - 4),)))
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": build.name, "uid": build.uid}
        made = job(build, attempt, spec, template=TEMPLATE, image="i", release=RELEASE, owner=owner)
        made["spec"]["suspend"] = True
        api.create("jobs", made)
    finally:
        api.delete("configmaps", world.there.name)
