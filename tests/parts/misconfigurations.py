"""Mistakes in a cluster around an installation (a missing object, a small quota), for as long as a context lasts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from tests.parts.cluster import Object, Release
from tests.parts.kiln import until

PUSH_SECRET = "kiln-registry"


@contextmanager
def without_push_secret(release: Release) -> Iterator[None]:
    (secret,) = [one for one in release.objects("secrets") if one["metadata"]["name"] == PUSH_SECRET]
    metadata = {name: secret["metadata"][name] for name in ("name", "namespace", "labels", "annotations")}
    release.cluster.kubectl("delete", "secret", PUSH_SECRET, f"--namespace={release.namespace}")
    try:
        yield
    finally:
        release.cluster.apply({**secret, "metadata": metadata})


@contextmanager
def quota(release: Release, what: str) -> Iterator[str]:
    """A ResourceQuota that allows none of that resource; yields its name."""
    named = {"name": f"tight-{secrets.token_hex(3)}", "namespace": release.namespace}
    release.cluster.apply(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": named, "spec": {"hard": {what: "0"}}}
    )
    try:
        until(lambda: all(map(_counted, release.cluster.get("resourcequotas", release.namespace))))
        yield named["name"]
    finally:
        release.cluster.kubectl("delete", "quota", named["name"], f"--namespace={release.namespace}")


def _counted(quota: Object) -> bool:
    return bool(quota.get("status", {}).get("hard"))


@contextmanager
def controller_with(release: Release, variable: str, value: str) -> Iterator[None]:
    """Runs the controller with another value of a variable of its environment."""
    (deployment,) = release.objects("deployments", "controller")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (before,) = [one["value"] for one in container["env"] if one["name"] == variable]
    _set_variable(release, variable, value)
    try:
        yield
    finally:
        _set_variable(release, variable, before)


def _set_variable(release: Release, variable: str, value: str) -> None:
    """Sets the variable and returns when the controllers with the old value have gone."""
    there = f"--namespace={release.namespace}"
    release.cluster.kubectl("set", "env", there, "deployment/kiln-controller", f"{variable}={value}")
    release.cluster.kubectl("rollout", "status", there, "deployment/kiln-controller", "--timeout=60s")
    for pod in release.objects("pods", "controller"):
        if "deletionTimestamp" in pod["metadata"]:
            release.cluster.kubectl("wait", there, "--for=delete", f"pod/{pod['metadata']['name']}", "--timeout=60s")
