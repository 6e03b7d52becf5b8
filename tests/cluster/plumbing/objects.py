"""Small objects for requests to an API server."""

from __future__ import annotations

from typing import Any


def config_map(name: str, /, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"a": "1"}}


def lease(name: str) -> dict[str, Any]:
    """Return a Lease as the chart creates it."""
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}
