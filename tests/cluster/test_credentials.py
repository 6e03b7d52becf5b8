"""Credentials that are refused or changed: Kiln reads changed Secrets without a restart."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Iterator

import pytest

from tests.parts.cluster import Cluster, Release
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL
from tests.parts.kiln import until
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(300)

USER = "kiln"
UPDATED = 150.0
"""Seconds within which a kubelet updates a changed Secret in its pods, even without a hint."""


@pytest.fixture(scope="module")
def password() -> str:
    return secrets.token_urlsafe(16)


@pytest.fixture(scope="module")
def guarded_registry(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster, password: str) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("guarded")
    with Registry(folder, {USER: password}, address=cluster.gateway) as registry:
        yield registry


@pytest.fixture(scope="module")
def guarded(cluster: Cluster, guarded_registry: Registry, host: GitHost, password: str) -> Iterator[Release]:
    """A release that requires credentials from its clients and uses some itself."""
    one, token = {"replicas": 1}, secrets.token_urlsafe(32)
    with Release(
        cluster,
        registry=guarded_registry,
        host=host,
        auth="token",
        max_attempts=1,
        values={
            "web": one,
            "controller": one,
            "apiTokens": {"values": {"ci": token}},
            "registry": {"server": guarded_registry.host, "username": USER, "password": password},
            "gitCredentials": {"values": {"elsewhere": f"https://kiln:{secrets.token_urlsafe(24)}@git.example/ada"}},
            "sinkHeaders": {"values": {"first": f"Authorization: Bearer {secrets.token_urlsafe(24)}"}},
        },
    ) as release:
        release.token = token
        yield release


def restarts(release: Release) -> dict[str, int]:
    """Return the restarts of web's and the controller's pods."""
    return {
        pod["metadata"]["name"]: sum(one["restartCount"] for one in pod["status"]["containerStatuses"])
        for component in ("web", "controller")
        for pod in release.objects("pods", component)
    }


def change(release: Release, secret: str, **values: str) -> None:
    name = {"name": f"kiln-{secret}", "namespace": release.namespace}
    release.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": name, "stringData": values})


def hurry_kubelets(release: Release) -> None:
    """Annotate all pods, because a kubelet reads a pod's Secrets when the pod changes, and otherwise once a minute.

    Source: https://kubernetes.io/docs/concepts/configuration/configmap/#mounted-configmaps-are-updated-automatically
    """
    release.cluster.kubectl("annotate", "pods", "--all", f"--namespace={release.namespace}", "kiln.dev/test=changed")


def test_changed_credentials(guarded: Release, guarded_registry: Registry) -> None:
    """A password changed only at the registry fails a build, whose message names the file with the wrong one.

    Then all of Kiln's credentials change at the same time.
    """
    new = {what: secrets.token_urlsafe(16) for what in ("password", "token", "webhook")}
    guarded_registry.let_in({USER: new["password"]})
    before = restarts(guarded)
    name = guarded.build("ada/refused", guarded.commit("ada/refused", {"Dockerfile": SMALL}))
    build = guarded.ended(name, 60)
    assert (build["state"], build["reason"], build["attempt"]) == ("failed", "infrastructure", 1)
    refused = f"The registry {guarded_registry.host} does not accept the credential for it in /etc/kiln/registry/config"
    for sink in guarded.sinks:
        event = guarded.arrived(sink, name, "failed")
        assert isinstance(event.data, dict)
        assert refused in event.data["message"]
        assert refused in event.data["log"]["tail"]

    login = {"auths": {guarded_registry.host: {"username": USER, "password": new["password"]}}}
    change(guarded, "registry", **{".dockerconfigjson": json.dumps(login)})
    change(guarded, "api-tokens", ci=new["token"])
    change(guarded, "webhooks-github", main=new["webhook"])
    hurry_kubelets(guarded)

    old_push = guarded.push("ada/refused", guarded.commit("ada/refused", {"Dockerfile": SMALL}))
    old_token, guarded.token = guarded.token, new["token"]
    guarded.webhook_secret = new["webhook"]
    commit = guarded.commit("ada/taken", {"Dockerfile": SMALL})
    push = guarded.push("ada/taken", commit)
    until(lambda: guarded.deliver(push).status_code == 202, UPDATED)
    until(lambda: guarded.get("api/v1/builds").status_code == 200, UPDATED)
    assert guarded.deliver(old_push).status_code == 401
    assert guarded.get("api/v1/builds", Authorization=f"Bearer {old_token}").status_code == 401

    (name,) = (one["name"] for one in guarded.deliver(push).json()["builds"])
    assert guarded.ended(name)["state"] == "succeeded"
    assert guarded.build("ada/taken", commit) == name
    until(lambda: len({event.id for event in guarded.events("first", name, "succeeded")}) == 2, UPDATED)
    assert restarts(guarded) == before
    assert set(before.values()) == {0}


def test_what_secrets_hold_is_nowhere_else(guarded: Release) -> None:
    """Secrets appear in no object that web or a user with `get` may read, in no log and in no event to a sink."""
    name = guarded.build("ada/told", guarded.commit("ada/told", {"Dockerfile": SMALL}))
    assert guarded.ended(name)["state"] == "succeeded"
    guarded.arrived("second", name, "succeeded")
    held, told = canaries(guarded), readable(guarded)
    assert len(held) >= 6
    assert name in told
    assert [canary for canary in held if canary in told] == []


def canaries(release: Release) -> set[str]:
    """Return the long words in the release's Secrets, also in Base64, as headers and objects contain them."""
    stored = [one for one in release.cluster.get("secrets", release.namespace) if one["type"] != "helm.sh/release.v1"]
    texts = [base64.b64decode(value).decode() for one in stored for value in (one.get("data") or {}).values()]
    plain = {word for text in texts for word in re.findall(r"[A-Za-z0-9_+/=-]{16,}", text)}
    return plain | {base64.b64encode(text.encode()).decode().rstrip("=") for text in plain}


def readable(release: Release) -> str:
    kinds = "configmaps,jobs,pods,events,leases,services,deployments,daemonsets"
    shown = [release.cluster.kubectl("get", kinds, f"--namespace={release.namespace}", "--output=yaml")]
    for pod in release.cluster.get("pods", release.namespace):
        logs = ["logs", pod["metadata"]["name"], f"--namespace={release.namespace}", "--all-containers"]
        shown.append(release.cluster.kubectl(*logs, "--ignore-errors"))
    for sink in release.sinks.values():
        shown += [json.dumps(event.data) for event in sink.events]
    return "\n".join(shown)
