"""Objects of a cluster, reduced to the fields that Kiln reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from builds.build import Attempt, Build, Result
from builds.engines.kubernetes.jobs import labels
from builds.engines.kubernetes.records import Release
from tests.builds.engine_factories import new_submission

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RELEASE = Release(name="kiln")
TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
    "spec": {
        "nodeSelector": {"disk": "fast"},
        "containers": [
            {
                "name": "builder",
                "resources": {"limits": {"memory": "1Gi"}},
                "env": [{"name": "HOME", "value": "/tmp"}],
                "volumeMounts": [{"name": "socket", "mountPath": "/run/kiln", "readOnly": True}],
            }
        ],
        "volumes": [{"name": "socket", "hostPath": {"path": "/var/run/kiln/x-kiln", "type": "Directory"}}],
    },
}


def at(seconds: float) -> str:
    """The time this long before now, in the format of Kubernetes."""
    return (NOW - timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def build(name: str = "b", attempt: Attempt | None = None, **more: Any) -> Build:
    asked = new_submission(name)
    made = Build(
        name=name, uid="uid-1", request=asked.request, causes=(asked.cause,), created_at=NOW, revision="1", **more
    )
    attempts = () if attempt is None else (attempt,)
    return msgspec.structs.replace(made, status=msgspec.structs.replace(made.status, attempts=attempts))


def attempt(number: int = 1, node: str | None = "n1") -> Attempt:
    return Attempt(number=number, node=node, written_at=NOW)


def pod(phase: str = "Pending", *, node: str | None = "n1", state: dict[str, Any] | None = None, **more: Any) -> Any:
    status: dict[str, Any] = {"phase": phase, **more}
    if state is not None:
        status["containerStatuses"] = [{"name": "builder", "state": state}]
    return {
        "metadata": {"name": "b-1-xyz", "labels": {**RELEASE.labels("build"), **labels(build(), attempt())}},
        "spec": {"containers": [{"name": "builder", "image": "kiln:1"}], **({"nodeName": node} if node else {})},
        "status": status,
    }


def terminated(result: Result | None = None, **more: Any) -> dict[str, Any]:
    message = {} if result is None else {"message": msgspec.json.encode(result).decode()}
    return {"terminated": {"exitCode": 0, "startedAt": at(60), "finishedAt": at(10), **message, **more}}


def event(reason: str, message: str, seconds: float = 5) -> dict[str, Any]:
    return {"reason": reason, "message": message, "lastTimestamp": at(seconds)}
