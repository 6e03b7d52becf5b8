"""From a push to an image in the registry, by a pod on the node of its daemon."""

from __future__ import annotations

import pytest

from tests.parts.cluster import Release
from tests.parts.installation import SMALL

pytestmark = pytest.mark.timeout(300)


def test_a_push_becomes_an_image_and_both_sinks_are_told_its_digest(release: Release) -> None:
    commit = release.commit("ada/page", {"Dockerfile": SMALL})
    answer = release.deliver(release.push("ada/page", commit))
    assert answer.status_code == 202, answer.text
    build = release.ended(answer.json()["builds"][0]["name"])
    assert (build["state"], build["attempt"]) == ("succeeded", 1), release.log(build["name"])
    image = build["image"]
    assert image["digest"] == release.digest(image["repository"], commit)
    for sink in release.sinks:
        event = release.arrived(sink, build["name"], "succeeded")
        assert event.extensions["image"] == f"{image['repository']}:{commit}@{image['digest']}"
    (pod,) = release.pods(build["name"])
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (fields,) = [term["matchFields"] for term in terms["nodeSelectorTerms"]]
    assert fields == [{"key": "metadata.name", "operator": "In", "values": [build["node"]]}]
    assert pod["spec"]["nodeName"] == build["node"]
    assert build["node"] in release.dockerd()
    assert max(release.most_at_once().values()) <= 2  # across all tests that share the release
