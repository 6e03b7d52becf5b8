"""What the chart renders for Knative, held against Knative's own definitions on a real API server.

Knative itself is not here: its controllers and webhooks are in no package. So nothing would act on these objects, and
each is only sent, with the fields checked strictly, for the API server to say what it would store.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.chart.helm import VALUES, Object, merged, render
from tests.parts.cluster import CHART, Cluster
from tests.parts.machine import MachineError
from tests.parts.published import published

pytestmark = pytest.mark.timeout(300)


def of_knative(values: Path, namespace: str) -> list[Object]:
    return [one for one in render(values, namespace=namespace).objects if ".knative.dev/" in one["apiVersion"]]


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"knative-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def sent(cluster: Cluster, objects: list[Object]) -> list[Object]:
    """As the API server would have them. Raises MachineError with what it has against one."""
    options = ["--dry-run=server", "--validate=strict", "--filename=-", "--output=json"]
    said = cluster.kubectl("create", *options, stdin=yaml.safe_dump_all(objects))
    decoder, found = json.JSONDecoder(), []
    while said := said.strip():
        one, end = decoder.raw_decode(said)
        found += one["items"] if one["kind"] == "List" else [one]
        said = said[end:]
    return found


def kept(given: Any, stored: Any) -> bool:
    """Whether all that was given is there; defaults may have come to it."""
    if isinstance(given, dict):
        return all(name in stored and kept(value, stored[name]) for name, value in given.items())
    if isinstance(given, list):
        return len(given) == len(stored) and all(map(kept, given, stored))
    return bool(given == stored)


def install(cluster: Cluster, namespace: str, values: Path) -> None:
    """`helm install`, of which nothing is left. Raises MachineError."""
    given = [f"--values={values}", "--set=metrics.serviceMonitor.enabled=false"]  # that is of others, who are not here
    cluster.helm("install", "kiln", str(CHART), f"--namespace={namespace}", *given, "--dry-run=server")


def test_the_objects_of_every_mode_are_accepted_and_missed_where_nobody_knows_them(
    cluster: Cluster, namespace: str
) -> None:
    definitions = published("knative")
    modes = {name: VALUES[name] for name in ("knative", "serving")}
    cluster.kubectl("delete", f"--filename={definitions}", "--ignore-not-found")  # of a run that was broken off
    with pytest.raises(MachineError, match=r"no eventing\.knative\.dev/v1/Trigger, no sources.* no serving\.knative"):
        install(cluster, namespace, modes["serving"])
    cluster.kubectl("create", f"--filename={definitions}")
    try:
        cluster.kubectl("wait", "--for=condition=Established", f"--filename={definitions}", "--timeout=60s")
        kinds: set[str] = set()
        for values in modes.values():
            objects = of_knative(values, namespace)
            for one, stored in zip(objects, sent(cluster, objects), strict=True):
                assert kept(one, stored), stored
            kinds |= {one["kind"] for one in objects}
            install(cluster, namespace, values)
        assert kinds == {"Trigger", "SinkBinding", "Service"}
        for one in of_knative(modes["serving"], namespace):
            if (
                one["kind"] != "Trigger"
            ):  # whose definition lets everything be: `chart/test_knative.py` looks at its fields
                with pytest.raises(MachineError, match="unknown field"):
                    sent(cluster, [merged(one, {"spec": {"nobodyKnows": "x"}})])
    finally:
        cluster.kubectl("delete", f"--filename={definitions}", "--wait=true")
