"""Starts that are in a record, and the Jobs that they become."""

from __future__ import annotations

import secrets

from builds.build import Phase
from builds.engines.kubernetes import KubernetesEngine
from tests.builds.making import written
from tests.cluster.engine.conftest import Engines


def phases(engine: KubernetesEngine) -> list[Phase]:
    return [sighting.phase for sighting in engine.observe().sightings]


def test_a_start_that_another_leader_wrote_is_seen_as_made_once_its_job_is(engines: Engines) -> None:
    """Not as the look before saw it: that would start it again, until the watch shows the pod."""
    engine = engines()
    build = written(engine, f"b-{secrets.token_hex(4)}")
    assert build.live is not None
    assert phases(engine) == [Phase.ABSENT]
    engine.start(build, build.live)
    assert phases(engine) == [Phase.PENDING]
