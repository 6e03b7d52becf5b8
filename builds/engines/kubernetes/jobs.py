"""An attempt as a Job. Pure.

The operator's pod template sets resources, tolerations, volumes and the like. This module adds the parts that make a
build safe, pin it and identify it, and no template can remove them. The same record gives the same Job, so that any
leader can complete a start that another one wrote.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import msgspec

from builds.build import Attempt, Build
from builds.builder.spec import Spec, Surroundings
from builds.engines.kubernetes.records import COMPONENT, Manifest, Release
from builds.plan import BACKSTOP
from eventing.tracing import Trace

LABEL_BUILD = "kiln.dev/build"
LABEL_ATTEMPT = "kiln.dev/attempt"
LABEL_UID = "kiln.dev/uid"
"""The label with the record's uid. A record created under the name of a deleted one has other attempts."""

CONTAINER = "builder"
SPEC = "kiln.dev/spec"
TRACE = "kiln.dev/traceparent"
"""The Job's annotation for readers; the builder gets the trace in its environment."""
SPEC_FOLDER = "/etc/kiln/build"
RESULT = "/dev/termination-log"

# The mount points of the chart's template in the build pod.
SOCKET_FOLDER = "/run/kiln"
DOCKER_HOST = f"unix://{SOCKET_FOLDER}/docker.sock"
IN_USE = f"{SOCKET_FOLDER}/builds.lock"
REGISTRY = "/etc/kiln/registry"
REGISTRY_CONFIG = f"{REGISTRY}/config.json"
PRIVATE_REGISTRY = "/etc/kiln/private-registry"
PRIVATE_REGISTRY_CONFIG = f"{PRIVATE_REGISTRY}/config.json"
GIT_CREDENTIALS = "/etc/kiln/git-credentials"
SIGNING = "/etc/kiln/signing"
SIGNING_KEY = f"{SIGNING}/cosign.key"


class TemplateError(ValueError):
    """Why the pod template cannot be used, as a sentence."""


def job_name(build: str, attempt: int) -> str:
    return f"{build}-{attempt}"


def labels(build: Build, attempt: Attempt) -> dict[str, str]:
    """The labels by which an attempt's Job and pod are found."""
    return {LABEL_BUILD: build.name, LABEL_ATTEMPT: str(attempt.number), LABEL_UID: build.uid}


def checked(template: object) -> Manifest:
    """The pod template (core/v1 PodTemplateSpec), if a builder can run in it. Raises TemplateError."""
    if not isinstance(template, dict) or not isinstance(template.get("spec"), dict):
        raise TemplateError("it must be a PodTemplateSpec: a mapping with `spec`")
    containers = template["spec"].get("containers")
    names = [one.get("name") for one in containers if isinstance(one, dict)] if isinstance(containers, list) else []
    if names.count(CONTAINER) != 1:
        raise TemplateError(f"spec.containers must have one container called {CONTAINER}")
    return template


def mounted(surroundings: Surroundings, template: Manifest, *, docker_host: str | None) -> Surroundings:
    """The surroundings inside a pod of this template: its own paths, and only the mounted files."""
    folders = [mount.get("mountPath", "").rstrip("/") for mount in _builder(template).get("volumeMounts", [])]
    return msgspec.structs.replace(
        surroundings,
        docker_host=docker_host or DOCKER_HOST,
        registry_config=REGISTRY_CONFIG if REGISTRY in folders else None,
        private_registry_config=PRIVATE_REGISTRY_CONFIG if PRIVATE_REGISTRY in folders else None,
        git_credentials=GIT_CREDENTIALS if GIT_CREDENTIALS in folders else None,
        signing_key=SIGNING_KEY if SIGNING in folders else None,
    )


def job(
    build: Build,
    attempt: Attempt,
    spec: Spec,
    *,
    template: Manifest,
    image: str,
    release: Release,
    owner: Manifest,
    git_keys: Sequence[str] = (),
) -> dict[str, Any]:
    """The Job of one attempt; `owner` is the reference to its record.

    The pod mounts only the credentials that this build may use. These are `git_keys` of the Secret for Git, the private
    registry's if its image goes there, and the signing key if there will be a statement to sign.
    """
    own = {**release.labels(COMPONENT), **labels(build, attempt)}
    trace = build.status.trace
    noted = {"annotations": {TRACE: trace.traceparent}} if trace else {}
    pod = copy.deepcopy(dict(template))
    metadata = pod.setdefault("metadata", {})
    metadata["labels"] = {**metadata.get("labels", {}), **own}
    metadata["annotations"] = {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        **metadata.get("annotations", {}),
        SPEC: msgspec.json.encode(spec).decode(),
    }
    _lend(pod["spec"], GIT_CREDENTIALS, git_keys if spec.surroundings.git_credentials else ())
    _lend(pod["spec"], PRIVATE_REGISTRY, None if spec.private and not spec.refused else ())
    _lend(pod["spec"], SIGNING, None if spec.surroundings.provenance and not spec.refused else ())
    pod["spec"] |= {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "activeDeadlineSeconds": int(spec.surroundings.timeout + BACKSTOP.total_seconds()),
        "containers": [_container(one, image, trace) for one in pod["spec"]["containers"]],
        "volumes": [*pod["spec"].get("volumes", []), _spec_volume()],
    }
    if attempt.node is not None:
        pod["spec"]["affinity"] = pinned(pod["spec"].get("affinity") or {}, attempt.node)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(build.name, attempt.number),
            "labels": own,
            "ownerReferences": [dict(owner)],
            **noted,
        },
        "spec": {"backoffLimit": 0, "completions": 1, "parallelism": 1, "template": pod},
    }


def pinned(affinity: Manifest, node: str) -> dict[str, Any]:
    """The affinity with one node required in addition to its own requirements.

    Terms are alternatives, and all requirements of one term must hold, so each term gets the node
    (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#NodeSelectorTerm). The requirement
    is by `metadata.name`, which identifies the node, and not by a label, which may have another value.
    """
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    here = {"key": "metadata.name", "operator": "In", "values": [node]}
    node_affinity = affinity.get("nodeAffinity") or {}
    terms = (node_affinity.get(required) or {}).get("nodeSelectorTerms") or [{}]
    both = [{**term, "matchFields": [*term.get("matchFields", []), here]} for term in terms]
    return {**affinity, "nodeAffinity": {**node_affinity, required: {"nodeSelectorTerms": both}}}


def _builder(template: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in template["spec"]["containers"] if one["name"] == CONTAINER)
    return found


def _container(container: dict[str, Any], image: str, trace: Trace | None) -> dict[str, Any]:
    if container["name"] != CONTAINER:
        return container
    own = {"KILN_IN_USE": IN_USE, **(trace.environment if trace else {})}
    return {
        **container,
        "image": image,
        "env": [*container.get("env", []), *({"name": name, "value": value} for name, value in own.items())],
        "command": ["python", "-m", "builds.builder"],
        "args": [f"{SPEC_FOLDER}/spec.json", RESULT],
        "terminationMessagePath": RESULT,
        # A killed builder writes no message, so the kubelet uses the end of its log instead.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            *container.get("volumeMounts", []),
            {"name": "kiln-spec", "mountPath": SPEC_FOLDER, "readOnly": True},
        ],
    }


def _lend(pod: dict[str, Any], path: str, keys: Sequence[str] | None) -> None:
    """Reduces the Secret that the builder mounts at a path to these keys; `None` leaves the template's selection."""
    builder = _builder({"spec": pod})
    mounts = builder.get("volumeMounts", [])
    names = {mount["name"] for mount in mounts if mount.get("mountPath", "").rstrip("/") == path}
    if not names or keys is None:
        return
    if keys:
        items = [{"key": key, "path": key} for key in keys]
        volumes = (volume for volume in pod.get("volumes", []) if volume["name"] in names and "secret" in volume)
        for volume in volumes:
            volume["secret"] = {**volume["secret"], "items": items}
        return
    builder["volumeMounts"] = [mount for mount in mounts if mount["name"] not in names]
    used = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
    pod["volumes"] = [volume for volume in pod.get("volumes", []) if volume["name"] not in names - used]


def _spec_volume() -> dict[str, Any]:
    """The volume with the spec, which is part of the pod, so that no second object can be missing."""
    item = {"path": "spec.json", "fieldRef": {"fieldPath": f"metadata.annotations['{SPEC}']"}}
    return {"name": "kiln-spec", "downwardAPI": {"items": [item]}}
