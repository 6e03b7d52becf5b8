"""The release in its cluster: the API server, what this service account may do, and the daemons beside builds.

Kiln has no permission to read the namespace or the DaemonSet. If the namespace admits privileged pods, the daemons have
pods; if not, the DaemonSet has Events that say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from kiln import wiring
from kiln.doctor import cures
from kiln.doctor.findings import Probe, Symptom
from kiln.settings import Process
from kiln.wiring import Kiln

if TYPE_CHECKING:
    from builds.engines.kubernetes.api import Api

REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class Need(NamedTuple):
    """Verbs on a resource of the namespace, as in a Role; `own` if only on the object that is named as the anchor."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    own: bool = False


READS = (Need("", "pods/log", ("get", "list")), Need("", "events", ("get", "list")))
EVERYTHING = ("create", "delete", "get", "list", "patch", "update", "watch")
LEASES = "coordination.k8s.io"
NEEDS: dict[Process, tuple[Need, ...]] = {
    "web": (
        Need("", "configmaps", ("create", "get", "list", "patch")),
        Need("", "pods", ("get", "list")),
        *READS,
        Need(LEASES, "leases", ("get",), own=True),
    ),
    "controller": (
        Need("", "configmaps", EVERYTHING),
        Need("batch", "jobs", EVERYTHING),
        Need("", "pods", ("get", "list", "patch", "watch")),
        *READS,
        Need(LEASES, "leases", ("get", "patch", "update"), own=True),
    ),
}
"""The Roles of the chart (chart/templates/roles.yaml); a test holds the two together."""


class _Version(msgspec.Struct):
    version: str = msgspec.field(name="gitVersion")


class _ReviewStatus(msgspec.Struct):
    allowed: bool = False


class _Review(msgspec.Struct):
    status: _ReviewStatus


def probes(kiln: Kiln) -> Iterator[Probe]:
    if kiln.settings.engine == "kubernetes":
        yield Probe("Kubernetes API", partial(_answers, kiln))
        yield Probe("permissions", partial(_permissions, kiln))
        yield Probe("records", partial(_records, kiln))
        yield Probe("daemons", partial(_daemons, kiln))


def _api(kiln: Kiln) -> Api:
    """Raises Symptom without a cluster."""
    from builds.engines import EngineError  # noqa: PLC0415
    from builds.engines.kubernetes import connect  # noqa: PLC0415

    try:
        return connect(kiln.settings.namespace)
    except EngineError as error:
        raise Symptom(cures.API_UNREACHABLE, error) from None


def _answers(kiln: Kiln) -> str:
    from builds.engines.kubernetes.api import AccessDenied, ApiError  # noqa: PLC0415

    api = _api(kiln)
    try:
        found = msgspec.json.decode(api.get("/version"), type=_Version)
    except AccessDenied as error:
        raise Symptom(cures.API_LOGIN, error) from None
    except ApiError as error:
        raise Symptom(cures.API_UNREACHABLE, error) from None
    return f"{api.host} answers, version {found.version}"


def _permissions(kiln: Kiln) -> str:
    """Sends SelfSubjectAccessReviews, which every account may create."""
    from builds.engines.kubernetes.api import ApiError  # noqa: PLC0415

    process: Process = "web" if kiln.settings.pod_template is None else "controller"
    api, own = _api(kiln), kiln.settings.anchor or ""
    asked = [(need, verb) for need in NEEDS[process] for verb in need.verbs]
    try:
        missing = [f"{verb} {need.resource}" for need, verb in asked if not _may(api, need, verb, own)]
    except ApiError as error:
        raise Symptom(cures.API_UNREACHABLE, error) from None
    if missing:
        raise Symptom(cures.PERMISSIONS, f"The {process} may not: {', '.join(missing)}.")
    return f"the {process} may do all that it needs in the namespace {api.namespace}"


def _may(api: Api, need: Need, verb: str, own: str) -> bool:
    """https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/self-subject-access-review-v1/"""
    resource, _, part = need.resource.partition("/")
    about = {"namespace": api.namespace, "group": need.group, "resource": resource, "subresource": part, "verb": verb}
    spec = {"resourceAttributes": about | ({"name": own} if need.own else {})}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
    return msgspec.json.decode(api.request("POST", REVIEW, body=body), type=_Review).status.allowed


def _records(kiln: Kiln) -> str:
    """Checks that records can be listed, and that the chart's ConfigMap and Lease exist."""
    from builds.engines import EngineError  # noqa: PLC0415
    from builds.engines.kubernetes.api import Absent, ApiError  # noqa: PLC0415

    api, anchor = _api(kiln), kiln.settings.anchor
    try:
        for kind in ("configmaps", "leases") if anchor else ():
            api.read(kind, anchor or "")
        wiring.records(kiln).list(limit=1)
    except Absent as error:
        raise Symptom(cures.ANCHOR, error) from None
    except (ApiError, EngineError) as error:
        raise Symptom(cures.PERMISSIONS, error) from None
    return "can be listed"


def _daemons(kiln: Kiln) -> str:
    """Names the nodes that have a daemon ready for builds."""
    from builds.engines.kubernetes import Release  # noqa: PLC0415
    from builds.engines.kubernetes.api import ApiError  # noqa: PLC0415
    from builds.engines.kubernetes.records import DAEMON, selector  # noqa: PLC0415
    from builds.engines.kubernetes.sightings import nodes_of  # noqa: PLC0415

    api, release = _api(kiln), Release(name=kiln.settings.instance.partition("/")[2])
    try:
        nodes = nodes_of(api.list("pods", labels=selector(release.of(DAEMON))))
        ready = [node.name for node in nodes if node.ready]
        why = "; ".join(node.why or "" for node in nodes if not node.ready)
        if not nodes:
            raise _without_daemons(api)
    except ApiError as error:
        raise Symptom(cures.PERMISSIONS, error) from None
    if len(ready) < len(nodes):
        cure = cures.SOME_DAEMONS_NOT_READY if ready else cures.DAEMON_NOT_READY
        raise Symptom(cure, f"{len(ready)} of {len(nodes)} daemons are ready. {why}", namespace=api.namespace)
    return f"ready on {', '.join(ready)}"


def _without_daemons(api: Api) -> Symptom:
    events = api.list("events", fields="reason=FailedCreate,involvedObject.kind=DaemonSet")
    refused = [text for event in events if "violates PodSecurity" in (text := event.get("message") or "")]
    if refused:
        return Symptom(cures.NOT_PRIVILEGED, refused[-1], namespace=api.namespace)
    return Symptom(cures.NO_DAEMON, "No node has a pod of the DaemonSet.")
