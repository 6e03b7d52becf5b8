"""The objects that the chart renders for Knative, checked by a real API server against Knative's own definitions.

Knative itself does not run here, because no package contains its controllers and webhooks. Nothing would act on these
objects. So each request is a dry run with strict validation, and the API server returns what it would store.
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
from tests.parts.published_data import published_data

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
    """Return the objects as the API server would store them. Raises MachineError with the reason for a refusal."""
    options = ["--dry-run=server", "--validate=strict", "--filename=-", "--output=json"]
    said = cluster.kubectl("create", *options, stdin=yaml.safe_dump_all(objects))
    decoder, found = json.JSONDecoder(), []
    while said := said.strip():
        one, end = decoder.raw_decode(said)
        found += one["items"] if one["kind"] == "List" else [one]
        said = said[end:]
    return found


def kept(given: Any, stored: Any) -> bool:
    """Report whether the stored object has all given fields; the API server may add defaults."""
    if isinstance(given, dict):
        return all(name in stored and kept(value, stored[name]) for name, value in given.items())
    if isinstance(given, list):
        return len(given) == len(stored) and all(map(kept, given, stored))
    return bool(given == stored)


def install(cluster: Cluster, namespace: str, values: Path) -> None:
    """Run `helm install` as a dry run. Raises MachineError."""
    given = [f"--values={values}", "--set=metrics.serviceMonitor.enabled=false"]  # needs a kind that is missing here
    cluster.helm("install", "kiln", str(CHART), f"--namespace={namespace}", *given, "--dry-run=server")


def test_the_objects_of_every_mode_are_accepted_and_missed_where_nobody_knows_them(
    cluster: Cluster, namespace: str
) -> None:
    definitions = published_data("knative")
    modes = {name: VALUES[name] for name in ("knative", "serving")}
    cluster.kubectl("delete", f"--filename={definitions}", "--ignore-not-found")  # left by an interrupted run
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
            if one["kind"] != "Trigger":  # its definition accepts every field, so `chart/test_knative.py` checks them
                with pytest.raises(MachineError, match="unknown field"):
                    sent(cluster, [merged(one, {"spec": {"nobodyKnows": "x"}})])
    finally:
        cluster.kubectl("delete", f"--filename={definitions}", "--wait=true")
