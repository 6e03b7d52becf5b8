"""Pods, Jobs and Events of a cluster, translated into facts for the plan."""

from __future__ import annotations

from typing import Any

import pytest

from builds.build import Phase, Reason, Result, State
from builds.engines.kubernetes.sightings import had_pod, nodes_of, of_job, of_pod
from tests.builds.kubernetes_objects import NOW, at, build, event, pod, terminated

DONE = Result(state=State.FAILED, reason=Reason.REPOSITORY, message="no")


def seen(found: Any, *events: Any) -> Any:
    return of_pod(build(), 1, found, events, NOW)


def condition(kind: str, status: str = "True", **more: Any) -> dict[str, Any]:
    return {"type": kind, "status": status, **more}


def test_a_pod_that_runs() -> None:
    sighting = seen(pod("Running", state={"running": {"startedAt": at(30)}}))
    assert (sighting.phase, sighting.node) == (Phase.RUNNING, "n1")
    assert (NOW - sighting.started_at).total_seconds() == 30


def test_the_end_is_read_from_the_termination_message() -> None:
    sighting = seen(pod("Failed", state=terminated(DONE)))
    assert (sighting.phase, sighting.result) == (Phase.ENDED, DONE)
    assert (NOW - sighting.ended_at).total_seconds() == 10


@pytest.mark.parametrize("message", ["", "not json", '{"state": "running"}', "[" * 5000])
def test_an_end_without_a_readable_result_is_a_question_for_the_registry(message: str) -> None:
    sighting = seen(pod("Failed", state=terminated(message=message)))
    assert (sighting.phase, sighting.result, sighting.result_lost) == (Phase.ENDED, None, True)


def test_a_builder_that_was_killed_for_its_memory_says_which_limit_it_is() -> None:
    assert "builds.resources" in seen(pod("Failed", state=terminated(reason="OOMKilled"))).waiting


def test_one_that_was_killed_leaves_the_end_of_its_log() -> None:
    """The kubelet truncates the message by bytes, so its first line may be incomplete."""
    message = '"text":"lost"}\n{"n":7,"phase":"build","text":"one"}\n{"n":8,"phase":null,"text":"two"}\n'
    killed = terminated(message=message, reason="OOMKilled")
    assert seen(pod("Failed", state=killed)).log_tail == "one\ntwo"
    assert seen(pod("Failed", state=terminated(message="exec: not found", reason="StartError"))).log_tail == ""


@pytest.mark.parametrize(("reason", "overdue"), [("DeadlineExceeded", True), (None, False)])
def test_whether_the_cluster_ended_it_for_its_time(reason: str | None, overdue: bool) -> None:
    assert seen(pod("Failed", state=terminated(), reason=reason)).overdue is overdue


def test_a_container_that_ended_in_a_pod_that_has_not_is_still_under_way() -> None:
    assert seen(pod("Running", state=terminated(DONE))).phase is Phase.RUNNING


@pytest.mark.parametrize(
    "status",
    [
        {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."},
        {"reason": "OutOfcpu", "message": "Pod was rejected: Node didn't have enough resource: cpu"},
        {"conditions": [condition("DisruptionTarget", message="Eviction API: evicting")]},
    ],
)
def test_what_the_node_ended_is_lost(status: dict[str, Any]) -> None:
    assert seen(pod("Failed", **status)).phase is Phase.LOST


def test_what_was_evicted_and_ended_by_its_own_account_is_not_lost() -> None:
    evicted = pod("Failed", state=terminated(DONE), conditions=[condition("DisruptionTarget")])
    assert seen(evicted).result == DONE


@pytest.mark.parametrize(("seconds", "phase"), [(10, Phase.RUNNING), (31, Phase.LOST)])
def test_an_evicted_pod_has_time_to_end(seconds: float, phase: Phase) -> None:
    running = {"running": {"startedAt": at(60)}}
    found = pod("Running", state=running, conditions=[condition("DisruptionTarget", lastTransitionTime=at(seconds))])
    assert seen(found).phase is phase


@pytest.mark.parametrize(("seconds", "phase"), [(-20, Phase.RUNNING), (29, Phase.RUNNING), (31, Phase.LOST)])
def test_a_deleted_pod_is_lost_when_its_node_says_nothing(seconds: float, phase: Phase) -> None:
    found = pod("Running", state={"running": {"startedAt": at(60)}})
    found["metadata"]["deletionTimestamp"] = at(seconds)
    assert seen(found).phase is phase


def unscheduled() -> Any:
    reason = condition("PodScheduled", "False", reason="Unschedulable", message="0/3 nodes are available")
    return pod(node=None, conditions=[reason])


PENDING = {"waiting": {"reason": "ContainerCreating"}}


@pytest.mark.parametrize(
    ("found", "events", "elsewhere", "names"),
    [
        (unscheduled(), [], True, "0/3 nodes are available"),
        (
            pod(state={"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "kiln:1"'}}),
            [],
            False,
            "kiln:1 cannot be pulled (KILN_BUILDER_IMAGE",
        ),
        (
            pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}}),
            [],
            False,
            'secret "s" not found',
        ),
        (
            pod(state=PENDING),
            [event("FailedMount", 'MountVolume.SetUp failed for volume "registry" : secret "push" not found')],
            False,
            "The Secret push that build pods mount does not exist.",
        ),
        (
            pod(state=PENDING),
            [
                event(
                    "FailedMount",
                    'volume "r" : references non-existent secret key: a.json',
                )
            ],
            False,
            "lacks the key a.json",
        ),
        (
            pod(state=PENDING),
            [event("FailedMount", "hostPath type check failed: /var/run/kiln/x is not a directory")],
            True,
            "/var/run/kiln/x does not exist on n1",
        ),
        (pod(state=PENDING), [event("FailedCreatePodSandBox", "no network")], True, "on n1: no network"),
    ],
)
def test_why_a_pod_does_not_begin(found: Any, events: list[Any], elsewhere: bool, names: str) -> None:
    sighting = seen(found, *events)
    assert sighting.phase is Phase.PENDING
    assert sighting.trouble.elsewhere is elsewhere
    assert names in sighting.trouble.message
    assert sighting.waiting == sighting.trouble.message


def test_the_newest_event_counts() -> None:
    old, new = (
        event("FailedMount", "hostPath type check failed: /a", 90),
        event("FailedMount", 'secret "b" not found', 5),
    )
    assert "Secret b" in seen(pod(state=PENDING), new, old).waiting


def test_one_that_is_only_slow_has_no_trouble() -> None:
    sighting = seen(pod(state=PENDING), event("Pulling", "Pulling image"))
    assert (sighting.trouble, sighting.waiting) == (None, "The build pod is being made ready on n1.")


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (
            'pods "b-1-x" is forbidden: exceeded quota: q, requested: pods=1',
            "The quota of the namespace does not allow",
        ),
        ('pods "b-1-x" is forbidden: violates PodSecurity "restricted:latest"', "until it has the label pod-security"),
        ('pods "b-1-x" is forbidden: no PriorityClass with name high was found', "no PriorityClass with name high"),
    ],
)
def test_a_pod_that_does_not_exist_is_explained_by_its_job(message: str, says: str) -> None:
    sighting = of_job(build(), 1, {"metadata": {}, "status": {}}, [event("FailedCreate", message)], started=False)
    assert sighting.trouble is not None
    assert says in sighting.trouble.message
    assert not sighting.trouble.elsewhere


@pytest.mark.parametrize(
    ("status", "started"),
    [({"failed": 1}, False), ({"conditions": [condition("Failed")]}, False), ({"active": 1}, True)],
)
def test_a_job_whose_pod_has_gone_has_lost_it(status: dict[str, Any], started: bool) -> None:
    assert of_job(build(), 1, {"metadata": {}, "status": status}, [], started=started).phase is Phase.LOST


def daemon(name: str, node: str | None, *, ready: bool = True, **metadata: Any) -> Any:
    return {
        "metadata": {"name": name, **metadata},
        "spec": {"nodeName": node} if node else {},
        "status": {"conditions": [condition("Ready", str(ready))]},
    }


def test_nodes_are_where_a_daemon_is_ready() -> None:
    daemons = [
        daemon("d1", "n1"),
        daemon("d2", "n2", ready=False),
        daemon("d3", "n3", deletionTimestamp=at(0)),
        daemon("d4", None),
        daemon("d5", "n5", deletionTimestamp=at(0)),
        daemon("d6", "n5"),
        daemon("d7", "n7", ready=False, labels={"kiln.dev/daemon": "podman"}),
    ]
    nodes = {node.name: node for node in nodes_of(daemons)}
    assert {name for name, node in nodes.items() if node.ready} == {"n1", "n5"}
    assert nodes["n2"].why == "On n2 the Docker daemon's pod d2 is not ready."
    assert nodes["n3"].why == "On n3 the Docker daemon's pod d3 is being stopped."
    assert nodes["n7"].why == "On n7 the Podman service's pod d7 is not ready."
    assert set(nodes) == {"n1", "n2", "n3", "n5", "n7"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, False),
        ({"ready": 0, "terminating": 0, "uncountedTerminatedPods": {}, "startTime": at(1)}, False),
        ({"active": 1}, True),
        ({"uncountedTerminatedPods": {"succeeded": ["uid"]}}, True),
        ({"failed": 1}, True),
        ({"conditions": [{"type": "Complete", "status": "True"}]}, True),
    ],
)
def test_a_job_says_whether_it_ever_had_a_pod(status: dict[str, Any], *, expected: bool) -> None:
    assert had_pod({"status": status}) is expected
