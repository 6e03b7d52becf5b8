"""Recorded starts, and the Jobs that result from them."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from msgspec.structs import replace

from builds.build import Build, Phase, State
from builds.engines.kubernetes import KubernetesEngine, jobs
from builds.engines.kubernetes.api import MERGE_PATCH, Api
from tests.builds.engine_factories import started_build
from tests.cluster.engine.conftest import Engines
from tests.parts.kiln import until


def begun(engine: KubernetesEngine) -> Build:
    """Write a start and wait until the watch shows the record, since a controller starts only watched records."""
    build = started_build(engine, f"b-{secrets.token_hex(4)}")
    until(lambda: build.name in engine._records.objects())
    return build


def phases(engine: KubernetesEngine) -> list[Phase]:
    return [sighting.phase for sighting in engine.observe().sightings]


def test_a_start_that_another_leader_wrote_is_seen_as_made_once_its_job_is(engines: Engines) -> None:
    """The engine must not report the state of the previous round; otherwise it would start the Job again.

    The watch shows the pod only later.
    """
    engine = engines()
    build = begun(engine)
    assert build.live is not None
    assert phases(engine) == [Phase.ABSENT]
    engine.start(build, build.live)
    assert phases(engine) == [Phase.PENDING]


def test_of_a_build_in_flight_no_attempt_is_seen_and_its_deletion_is_told_later(engines: Engines, api: Api) -> None:
    engine = engines()
    build = begun(engine)
    assert build.live is not None
    seen = engine.observe({build.name})
    assert ([one.name for one in seen.builds], seen.sightings) == ([build.name], ())
    engine.start(build, build.live)
    assert phases(engine) == [Phase.PENDING]
    api.delete("configmaps", build.name)
    until(lambda: not engine.observe({build.name}).builds)
    assert engine.observe({build.name}).deleted == ()
    assert [one.uid for one in engine.observe().deleted] == [build.uid]
    assert engine.observe().deleted == ()


def test_many_starts_of_another_leader_cost_no_search_each(
    engines: Engines, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines()
    builds = [begun(engine) for _ in range(12)]
    for build in builds[::2]:
        api.create("jobs", without_pod(build, api.read("configmaps", build.name)["metadata"]["labels"]))
    asked: list[str] = []
    request = api.request

    def counted(method: str, path: str, **more: Any) -> bytes:
        asked.append(method)
        return request(method, path, **more)

    monkeypatch.setattr(api, "request", counted)
    seen = {sighting.build: sighting.phase for sighting in engine.observe().sightings}
    assert asked == ["GET"]
    assert seen == {build.name: Phase.ABSENT if n % 2 else Phase.PENDING for n, build in enumerate(builds)}


def without_pod(build: Build, labels: dict[str, str]) -> dict[str, Any]:
    """Return the Job of the build's attempt, for which the Job controller creates no pod."""
    assert build.live is not None
    metadata = {
        "name": jobs.job_name(build.name, build.live.number),
        "labels": {**labels, **jobs.labels(build, build.live)},
    }
    pod = {"restartPolicy": "Never", "containers": [{"name": "builder", "image": "busybox:1.37"}]}
    return {"metadata": metadata, "spec": {"parallelism": 0, "template": {"spec": pod}}}


def gated(name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Return a pod that no scheduler places."""
    spec = {"schedulingGates": [{"name": "kiln.dev/test"}], "containers": [{"name": "builder", "image": "busybox"}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


def closed(build: Build) -> Build:
    """Return the build with its live attempt ended and a further one live."""
    *before, last = build.status.attempts
    ended = replace(last, state=State.CANCELLED, finished_at=last.written_at)
    following = replace(last, number=last.number + 1)
    return replace(build, status=replace(build.status, attempts=(*before, ended, following), attempt=following.number))


def test_a_stopped_job_without_a_pod_keeps_its_slot_while_one_may_come(engines: Engines, api: Api) -> None:
    """The Job controller may have read the Job before its deletion, and create the pod afterwards."""
    engine = engines()
    build = begun(engine)
    assert build.live is not None
    api.create("jobs", without_pod(build, api.read("configmaps", build.name)["metadata"]["labels"]))
    assert phases(engine) == [Phase.PENDING]
    engine.stop(build, build.live)
    until(lambda: phases(engine) == [Phase.ABSENT])
    engine.write(closed(build))
    seen = {(one.build, one.attempt): one.phase for one in engine.observe({build.name}).sightings}
    assert seen == {(f"{build.name}-1", 1): Phase.PENDING}
    assert phases(engine).count(Phase.PENDING) == 1


def test_a_pod_of_a_closed_attempt_has_its_slot_while_the_next_one_is_in_flight(engines: Engines, api: Api) -> None:
    engine = engines()
    build = begun(engine)
    assert build.live is not None
    stored = api.read("configmaps", build.name)["metadata"]["labels"]
    name = f"{build.name}-1-abcde"
    spec = {
        "schedulingGates": [{"name": "kiln.dev/test"}],
        "containers": [{"name": "builder", "image": "busybox:1.37"}],
    }
    labels = {**stored, **jobs.labels(build, build.live)}
    api.create("pods", {"metadata": {"name": name, "labels": labels}, "spec": spec})
    until(lambda: phases(engine) == [Phase.PENDING] and engine.observe().sightings[0].build == build.name)
    engine.write(closed(build))
    assert [one.build for one in engine.observe({build.name}).sightings] == [name]


def test_a_pod_that_came_and_ended_between_two_rounds_is_read_in_the_next(engines: Engines, api: Api) -> None:
    """The engine must not defer this until its next search of all pods in the namespace."""
    engine = engines()
    build = begun(engine)
    assert build.live is not None
    stored = api.read("configmaps", build.name)["metadata"]["labels"]
    api.create("jobs", without_pod(build, stored))
    engine.start(build, build.live)  # finds that Job and counts it as its own
    labels = {**stored, **jobs.labels(build, build.live)}
    name = f"{build.name}-1-abcde"
    api.create("pods", gated(name, labels))
    until(engine._pods.objects)
    ended = {"status": {"phase": "Failed", "reason": "Evicted"}}
    api.request("PATCH", api.path("pods", name, "status"), body=ended, content_type=MERGE_PATCH)
    until(lambda: not engine._pods.objects())
    assert phases(engine) == [Phase.LOST]
