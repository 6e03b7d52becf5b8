"""Reads the state of an attempt or a node from pods, Jobs and Events. Pure.

The end of an attempt is read from the Pod: the Job reports it seconds later, and without the reason. Kubernetes reports
the obstacles to a start in three places. A pod's conditions report that no node fits, and its container's state reports
problems with the image. Only Events report a volume that cannot be mounted, or a pod that was refused and does not
exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any

import msgspec

from builds.build import Build, Node, Phase, Result, Sighting, Trouble
from builds.builder.spec import DAEMON_NAMES
from builds.engines import UNREADABLE, logfile
from builds.engines.kubernetes.jobs import CONTAINER, LABEL_ATTEMPT, LABEL_BUILD
from builds.engines.kubernetes.records import Manifest

LABEL_DAEMON = "kiln.dev/daemon"
"""The label of a daemon's pod: its kind, unless it is Docker's."""
BEING_MADE = "Its pod is being made."

PRIVILEGED = "pod-security.kubernetes.io/enforce=privileged"
"""The required policy, because a build pod mounts a folder of its node."""
GONE_AFTER = timedelta(seconds=30)
"""Grace after the time by which a deleted or evicted pod should have ended. Its node will not report anything later."""


def attempt_of(pod: Manifest) -> tuple[str, int] | None:
    """(build, attempt) of a build pod."""
    labels = pod["metadata"].get("labels", {})
    number = labels.get(LABEL_ATTEMPT, "")
    return (labels.get(LABEL_BUILD, ""), int(number)) if number.isdecimal() else None


def terminal(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def began(pod: Manifest) -> bool:
    """Whether its builder has run. It then has a log, and perhaps a result, that could be lost."""
    return any(state in _state(pod) for state in ("running", "terminated"))


def of_pod(build: Build, number: int, pod: Manifest, events: Iterable[Manifest], now: datetime) -> Sighting:
    """The sighting of an attempt that has a pod."""
    state = _state(pod)
    run = state.get("running") or state.get("terminated") or {}
    seen = Sighting(
        build=build.name,
        attempt=number,
        phase=Phase.PENDING,
        node=pod["spec"].get("nodeName"),
        started_at=moment(run.get("startedAt")),
    )
    if terminal(pod):
        return _ended(seen, pod, state.get("terminated") or {})
    lost = _taken_away(pod, now)
    if lost:
        return msgspec.structs.replace(seen, phase=Phase.LOST, waiting=lost)
    if "running" in state or "terminated" in state:
        return msgspec.structs.replace(seen, phase=Phase.RUNNING)
    trouble = _pod_trouble(pod, events)
    waiting = trouble.message if trouble else _getting_ready(pod)
    return msgspec.structs.replace(seen, trouble=trouble, waiting=waiting)


def of_job(build: Build, number: int, job: Manifest, events: Iterable[Manifest], *, started: bool) -> Sighting:
    """The sighting of an attempt that has a Job and no pod."""
    seen = Sighting(build=build.name, attempt=number, phase=Phase.PENDING)
    status = job.get("status", {})
    over = [one for one in status.get("conditions", []) if one["type"] in ("Failed", "Complete") and _true(one)]
    if over or status.get("failed") or started:
        return msgspec.structs.replace(seen, phase=Phase.LOST, waiting="The build pod has gone: it was deleted.")
    refused = _latest(event for event in events if event.get("reason") == "FailedCreate")
    if refused is None:
        return msgspec.structs.replace(seen, waiting=BEING_MADE)
    message = _said(refused)
    trouble = Trouble(message=f"{_refusal(message)}: {message}", elsewhere=False)
    return msgspec.structs.replace(seen, trouble=trouble, waiting=trouble.message)


def had_pod(job: Manifest) -> bool:
    """Whether the Job's status counts a pod, present or past."""
    status = job.get("status", {})
    fields = ("active", "succeeded", "failed", "terminating", "conditions")
    return any(status.get(name) for name in fields) or any((status.get("uncountedTerminatedPods") or {}).values())


def _refusal(message: str) -> str:
    if "exceeded quota" in message:
        return "The quota of the namespace does not allow the build pod"
    if "violates PodSecurity" in message:
        return f"The namespace admits no build pods until it has the label {PRIVILEGED}"
    return "The cluster refuses the build pod"


def nodes_of(daemons: Iterable[Manifest]) -> tuple[Node, ...]:
    """The nodes that run a daemon of this release. If a node has several pods, the best state counts."""
    found: dict[str, Node] = {}
    for pod in daemons:
        name = pod["spec"].get("nodeName")
        if name is None:
            continue
        why = _not_ready(pod)
        if name not in found or why is None:
            found[name] = Node(name=name, ready=why is None, why=why and f"On {name} {why}")
    return tuple(found[name] for name in sorted(found))


def moment(text: str | None) -> datetime | None:
    """Parses RFC 3339 in Kubernetes' form."""
    return None if text is None else datetime.fromisoformat(text)


# ---- The end --------------------------------------------------------------------------------------------------------


def _ended(seen: Sighting, pod: Manifest, terminated: dict[str, Any]) -> Sighting:
    status = pod["status"]
    at = moment(terminated.get("finishedAt")) or _changed(pod)
    seen = msgspec.structs.replace(seen, ended_at=at, overdue=status.get("reason") == "DeadlineExceeded")
    message = terminated.get("message")
    result = _result(message)
    if result is not None:
        return msgspec.structs.replace(seen, phase=Phase.ENDED, result=result)
    seen = msgspec.structs.replace(seen, log_tail=_log_tail(message))
    disrupted = _condition(pod, "DisruptionTarget")
    if disrupted or status.get("reason") in _REFUSED_BY_NODE or (not terminated and not seen.started_at):
        why = status.get("message") or (disrupted or {}).get("message") or status.get("reason") or "no reason given"
        return msgspec.structs.replace(seen, phase=Phase.LOST, waiting=f"The node ended the build pod: {why}")
    return msgspec.structs.replace(seen, phase=Phase.ENDED, result_lost=True, waiting=_last_words(terminated))


_REFUSED_BY_NODE = {
    *("Evicted", "NodeAffinity", "NodeLost", "NodeShutdown", "Terminated", "UnexpectedAdmissionError"),
    *("OutOfcpu", "OutOfmemory", "OutOfpods", "OutOfephemeral-storage"),
}
"""`status.reason` of a pod that the kubelet refused or ended."""


def _last_words(terminated: dict[str, Any]) -> str | None:
    if terminated.get("reason") == "OOMKilled":
        return "The builder was killed for its memory: its limit is `builds.resources` of the chart."
    if terminated.get("reason") in ("StartError", "ContainerCannotRun"):
        return f"The builder cannot be started: {terminated.get('message', 'no reason given')}"
    return None


def _result(message: str | None) -> Result | None:
    """The builder's result; `None` if it is missing or invalid."""
    if not message:
        return None
    try:
        result = msgspec.json.decode(message, type=Result)
    except UNREADABLE:
        return None
    return result if result.state.ended else None


def _log_tail(message: str | None) -> str:
    """The end of the log, which the kubelet stores in place of a missing result."""
    lines = BytesIO(f"{message or ''}\n".encode())
    return "\n".join(line.text for line in logfile.lines(lines, attempt=0, after=0))


def _taken_away(pod: Manifest, now: datetime) -> str | None:
    """Why a pod that has not ended never will, as far as its state tells; `None` while it may."""
    disrupted = _condition(pod, "DisruptionTarget")
    since = moment(disrupted.get("lastTransitionTime")) if disrupted else None
    deleted = moment(pod["metadata"].get("deletionTimestamp"))
    if since is not None and now - since > GONE_AFTER and (deleted is None or now > deleted):
        why = (disrupted or {}).get("message") or "it was evicted"
        return f"The build pod was taken from its node: {why}"
    if deleted is not None and now - deleted > GONE_AFTER:
        return "The build pod was deleted, and its node does not say that it has ended."
    return None


# ---- The beginning --------------------------------------------------------------------------------------------------


def _pod_trouble(pod: Manifest, events: Iterable[Manifest]) -> Trouble | None:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled and not _true(scheduled) and scheduled.get("reason") == "Unschedulable":
        return Trouble(message=f"No node takes the build pod: {scheduled.get('message', '')}", elsewhere=True)
    waiting = _state(pod).get("waiting", {})
    if waiting.get("reason") in _NO_IMAGE:
        image = next(one["image"] for one in pod["spec"]["containers"] if one["name"] == CONTAINER)
        said = waiting.get("message") or waiting["reason"]
        message = f"The builder's image {image} cannot be pulled (KILN_BUILDER_IMAGE, imagePullSecrets): {said}"
        return Trouble(message=message, elsewhere=False)
    if waiting.get("reason") in _NO_CONTAINER:
        said = waiting.get("message") or waiting["reason"]
        return Trouble(message=f"The builder's container cannot be made: {said}", elsewhere=False)
    return _mount_trouble(pod, events)


_NO_IMAGE = {
    *("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"),
    *("RegistryUnavailable", "SignatureValidationFailed"),
}
_NO_CONTAINER = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}

_MISSING = re.compile(
    r'(?P<kind>secret|configmap) "(?P<name>[^"]+)" not found|references non-existent \w+ key: (?P<key>\S+)'
)
_HOST_PATH = re.compile(r"hostPath type check failed: (?P<path>\S+)")


def _mount_trouble(pod: Manifest, events: Iterable[Manifest]) -> Trouble | None:
    reasons = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
    event = _latest(event for event in events if event.get("reason") in reasons)
    if event is None:
        return None
    said, node = _said(event), pod["spec"].get("nodeName")
    if missing := _MISSING.search(said):
        kind = "ConfigMap" if missing["kind"] == "configmap" else "Secret"
        absent = f"The {kind} {missing['name']} that build pods mount does not exist."
        no_key = f"A Secret that build pods mount lacks the key {missing['key']}: {said}"
        return Trouble(message=absent if missing["name"] else no_key, elsewhere=False)
    if path := _HOST_PATH.search(said):
        message = f"The daemon's folder {path['path']} does not exist on {node}: the daemon's pod creates it."
        return Trouble(message=message, elsewhere=True)
    return Trouble(message=f"The build pod cannot begin on {node}: {said}", elsewhere=True)


def _getting_ready(pod: Manifest) -> str:
    node = pod["spec"].get("nodeName")
    return "The build pod waits for a node." if node is None else f"The build pod is being made ready on {node}."


# ---- Daemons --------------------------------------------------------------------------------------------------------


def _not_ready(pod: Manifest) -> str | None:
    """Why builds cannot be placed beside this daemon; `None` if they can."""
    name = pod["metadata"]["name"]
    daemon = DAEMON_NAMES[pod["metadata"].get("labels", {}).get(LABEL_DAEMON, "docker")]
    if pod["metadata"].get("deletionTimestamp"):
        return f"the {daemon}'s pod {name} is being stopped."
    ready = _condition(pod, "Ready")
    if ready and _true(ready):
        return None
    for status in pod.get("status", {}).get("containerStatuses", []):
        waiting = status.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"the {daemon}'s pod {name} does not come up: {waiting['reason']}."
    return f"the {daemon}'s pod {name} is not ready."


# ---- Pieces ---------------------------------------------------------------------------------------------------------


def _state(pod: Manifest) -> dict[str, Any]:
    """The builder's container state: `waiting`, `running` or `terminated`; empty before the first report."""
    for status in pod.get("status", {}).get("containerStatuses", []):
        if status["name"] == CONTAINER:
            state: dict[str, Any] = status.get("state", {})
            return state
    return {}


def _condition(pod: Manifest, kind: str) -> dict[str, Any] | None:
    conditions = pod.get("status", {}).get("conditions", [])
    found: dict[str, Any] | None = next((one for one in conditions if one["type"] == kind), None)
    return found


def _true(condition: Manifest) -> bool:
    return bool(condition.get("status") == "True")


def _changed(pod: Manifest) -> datetime | None:
    """When the pod entered its present phase, if no container reports a time."""
    times = (one.get("lastTransitionTime") for one in pod.get("status", {}).get("conditions", []))
    return max((at for at in map(moment, times) if at is not None), default=None)


def _latest(events: Iterable[Manifest]) -> Manifest | None:
    """The latest Event. Each may have its time in three places:
    https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/"""

    def at(event: Manifest) -> str:
        series = event.get("series") or {}
        return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")

    return max(events, key=at, default=None)


def _said(event: Manifest) -> str:
    """An Event's message on one line, shortened to a readable length."""
    return " ".join(str(event.get("message", "")).split())[:500]
