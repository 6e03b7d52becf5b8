"""The values: refusals and their messages, the settings, and an up-to-date table in the README."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from kiln.settings import SETTINGS, Setting
from tests.cluster.chart.helm import CHART, LEAST, Refused, environment, merged, render
from tools.values_table import readme, rows

SCHEMA = json.loads((CHART / "values.schema.json").read_text())

OURS = {
    "KILN_ENGINE", "KILN_NAMESPACE", "KILN_INSTANCE", "KILN_ANCHOR", "KILN_POD_TEMPLATE", "KILN_POD_TEMPLATE_SHA256",
    "KILN_BUILDER_IMAGE", "KILN_HOST", "KILN_CONFIG", "KILN_CONFIG_SHA256", "KILN_SECRETS_DIR", "KILN_REGISTRY_CONFIG",
    "KILN_PRIVATE_REGISTRY_CONFIG", "KILN_DAEMON", "KILN_DOCKER_HOST", "KILN_SIGNING_KEY",
}  # fmt: skip
"""Settings that the chart itself sets."""
ELSEWHERE = {"PORT", "KILN_OPS_PORT", "KILN_STATE_DIR", "KILN_FAULT", "K_SINK", "K_CE_OVERRIDES", "K_CA_CERTS"}
"""Settings that a pod does not use, that a test sets by `extraEnv`, or that a SinkBinding injects."""
OFFERED = [setting for setting in SETTINGS if setting.name not in OURS | ELSEWHERE]


SERVING = {"knative": {"enabled": True, "serving": {"enabled": True}}}


def trigger(**about: Any) -> dict[str, Any]:
    return {"knative": {"enabled": True, "triggers": [{"name": "a", "broker": "default", **about}]}}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(Refused) as caught:
        render(values)
    return str(caught.value)


# Refused values. -----------------------------------------------------------------------------------------------------


def test_who_may_come_in_has_to_be_said_and_the_choices_are_named() -> None:
    words = refusal({"settings": {"image_prefix": "registry.example/org/"}})
    assert "missing property 'auth (who may use the API and the pages: hub, the JupyterHub" in words
    assert "or none, which admits every client" in words


def test_where_images_go_has_to_be_said() -> None:
    assert "image_prefix (how the name of every image starts" in refusal({"settings": {"auth": "token"}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 2}, "additional properties 'replicas' not allowed"),
        ({"web": {"replica": 2}}, "at '/web': additional properties 'replica' not allowed"),
        ({"web": {"replicas": "two"}}, "at '/web/replicas': got string, want integer"),
        ({"settings": {"allowed_repository": "x"}}, "at '/settings': additional properties 'allowed_repository'"),
        ({"settings": {"engine": "local"}}, "at '/settings': additional properties 'engine'"),
        ({"settings": {"auth": "nobody"}}, "at '/settings/auth': value must be one of 'hub', 'token'"),
        ({"settings": {"build_timeout": "soon"}}, "at '/settings/build_timeout': 'soon' does not match"),
        ({"settings": {"builds_per_node": 0}}, "at '/settings/builds_per_node': minimum: got 0, want 1"),
        ({"config": {"trigger": []}}, "at '/config': additional properties 'trigger' not allowed"),
        ({"webhooks": {"githib": {}}}, "at '/webhooks': additional properties 'githib' not allowed"),
        ({"webhooks": {"github": {"values": {"main": ""}}}}, "at '/webhooks/github/values/main': minLength"),
        ({"service": {"type": "Cluster"}}, "at '/service/type': value must be one of 'ClusterIP', 'NodePort'"),
        ({"dockerd": {"affinity": {"podAffinity": {}}}}, "at '/dockerd/affinity': additional properties 'podAffinity'"),
        ({"dockerd": {"podLabels": {"app.kubernetes.io/name": "x"}}}, "invalid propertyName 'app.kubernetes.io/name'"),
        ({"settings": {"events_auth": "network"}}, "networkPolicy.ingress.from (who may post events"),
        (
            {"settings": {"base_path": "/kiln/"}, "jupyterhub": {"service": "binder"}},
            "only one of settings.base_path and jupyterhub.service",
        ),
        ({"settings": {"auth": "hub"}}, "jupyterhub.service (the name under which the hub has Kiln"),
        ({"settings": {"auth": "none", "events_auth": "hub,token"}}, "jupyterhub.service (the name under which"),
        (
            {"settings": {"auth": "hub,oidc"}, "jupyterhub": {"service": "x"}},
            "oidc_issuer and oidc_audience (the OpenID",
        ),
        (
            {"settings": {"events_auth": "oidc", "oidc_issuer": "https://x"}},
            "oidc_events_issuer and oidc_events_audience",
        ),
        ({"registry": {"server": "registry.example"}}, "registry.username and registry.password (registry.server is"),
        ({"privateRegistry": {"server": "registry.example"}}, "privateRegistry.username and privateRegistry.password"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs (the gateways"),
        ({"dockerd": {"image": {"tag": "latest"}}}, "dockerd.version must be set"),
        ({"daemon": "containerd"}, "at '/daemon': value must be one of 'docker', 'podman'"),
        ({"daemon": "podman", "dockerd": {"extraArgs": ["--bip=10.0.0.1/24"]}}, "these are flags of dockerd"),
        ({"podman": {"subnet": "10.88.0.0"}}, "at '/podman/subnet'"),
        ({"podman": {"mirrors": {"docker.io": []}}}, "at '/podman/mirrors/docker.io'"),
        ({"podman": {"mirrors": {"docker.io": ['a"\nb']}}}, "at '/podman/mirrors/docker.io/0'"),
        ({"knative": {"broker": "default"}}, "at '/knative': additional properties 'broker' not allowed"),
        (trigger(brokers="default"), "at '/knative/triggers/0': additional properties 'brokers' not allowed"),
        ({"knative": {"triggers": [{"name": "a"}]}}, "at '/knative/triggers/0': missing property 'broker'"),
        (trigger(name="A b"), "at '/knative/triggers/0/name': 'A b' does not match"),
        (trigger(filter={"type": "x"}), "at '/knative/triggers/0/filter'"),
        (trigger(filter={"attributes": {"type": "x"}}, filters=[{"exact": {"type": "x"}}]), "at '/knative/triggers/0'"),
        (trigger(filters=[{"equals": {"type": "x"}}]), "additional properties 'equals' not allowed"),
        (trigger(filters=[{"any": [{"not": {"exact": {"Type": "x"}}}]}]), "/any/0/not/exact"),
        (trigger(filters=[{"exact": {"type": "x"}, "prefix": {"type": "x"}}]), "at '/knative/triggers/0/filters/0'"),
        (trigger(delivery={"retries": 3}), "additional properties 'retries' not allowed"),
        (trigger(delivery={"backoffDelay": "1s"}), "at '/knative/triggers/0/delivery/backoffDelay'"),
        (trigger(delivery={"timeout": "PT"}), "at '/knative/triggers/0/delivery/timeout'"),
        (trigger(delivery={"deadLetterSink": {"audience": "x"}}), "at '/knative/triggers/0/delivery/deadLetterSink'"),
        ({"knative": {"sink": {"audience": "x"}}}, "at '/knative/sink'"),
        ({"knative": {"sink": {"uri": "http://a", "ca": "x"}}}, "additional properties 'ca' not allowed"),
        (
            {"knative": {"sink": {"uri": "http://a", "ceOverrides": {"extensions": {"Team": "x"}}}}},
            "invalid propertyName 'Team'",
        ),
        ({"knative": {"oidc": {"subjects": []}}}, "additional properties 'subjects' not allowed"),
        ({"knative": {"oidc": {"issuer": "kubernetes"}}}, "at '/knative/oidc/issuer'"),
        (
            {"knative": {"enabled": True, "oidc": {"audience": "a"}}, "settings": {"events_auth": "token"}},
            "oidc in settings.events_auth, or no settings.events_auth",
        ),
        (
            {"knative": {"enabled": True, "oidc": {"audience": "a"}}, "settings": {"oidc_subjects": "a"}},
            "no settings.oidc_events_issuer, settings.oidc_events_audience and settings.oidc_subjects",
        ),
        ({"knative": {"serving": {"replicas": 1}}}, "additional properties 'replicas' not allowed"),
        ({"knative": {"serving": {"visibility": "local"}}}, "at '/knative/serving/visibility'"),
        (
            merged(SERVING, {"settings": {"events_auth": "network"}, "networkPolicy": {"ingress": {"from": [{}]}}}),
            "another settings.events_auth than network (with knative.serving",
        ),
        (merged(SERVING, {"ingress": {"enabled": True}}), "neither ingress nor httpRoute (with knative.serving"),
        (
            merged(SERVING, {"httpRoute": {"enabled": True, "parentRefs": [{"name": "a"}]}}),
            "neither ingress nor httpRoute (with knative.serving",
        ),
        (
            {"knative": {"triggers": [{"name": "a", "broker": "b"}]}, "settings": {"events_auth": "network"}},
            "networkPolicy.ingress.from (who may post events",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(values: dict[str, Any], words: str) -> None:
    assert words in refusal(merged(LEAST, values))


def test_each_choice_of_auth_is_one_that_kiln_takes() -> None:
    [read] = [setting.read for setting in SETTINGS if setting.name == "KILN_AUTH"]
    for word in SCHEMA["definitions"]["settings"]["properties"]["auth"]["enum"]:
        assert read(word) == tuple(word.split(","))


# Settings. -----------------------------------------------------------------------------------------------------------


def test_there_is_a_key_for_each_setting_and_no_other() -> None:
    assert {*SCHEMA["definitions"]["settings"]["properties"]} == {setting.field for setting in OFFERED}


@pytest.mark.parametrize("setting", OFFERED, ids=lambda setting: setting.name)
def test_its_default_is_a_value_and_arrives(setting: Setting) -> None:
    examples = {
        "KILN_IMAGE_PREFIX": "registry.example/",
        "KILN_AUTH": "none",
        "KILN_EVENTS_AUTH": "token",
        "KILN_PUBLIC_URL": "https://kiln.example/",
    }
    value = examples.get(setting.name) or setting.default or "x"
    release = render(merged(LEAST, {"settings": {setting.field: int(value) if value.isdigit() else value}}))
    for component in ("web", "controller"):
        [deployment] = release.of("Deployment", component=component)
        assert environment(deployment["spec"]["template"]["spec"]["containers"][0])[setting.name] == value


def test_lists_and_large_numbers_are_written_as_kiln_reads_them() -> None:
    values = {
        "settings": {"allowed_repositories": ["https://a.example/**", "https://b.example/x"], "max_queued": 1000000}
    }
    [web] = render(merged(LEAST, values)).of("Deployment", component="web")
    env = environment(web["spec"]["template"]["spec"]["containers"][0])
    assert env["KILN_ALLOWED_REPOSITORIES"] == "https://a.example/**,https://b.example/x"
    assert env["KILN_MAX_QUEUED"] == "1000000"


def test_the_environment_has_no_name_that_kiln_does_not_know() -> None:
    known = {setting.name for setting in SETTINGS}
    for component in ("web", "controller"):
        [deployment] = render().of("Deployment", component=component)
        assert {*environment(deployment["spec"]["template"]["spec"]["containers"][0])} <= known


# The table. ----------------------------------------------------------------------------------------------------------


def test_the_readme_s_table_of_values_is_what_values_yaml_says() -> None:
    assert (CHART / "README.md").read_text() == readme(), "`make chart` renews it"


def test_a_value_that_nobody_explained_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"web\.b has no comment"):
        rows("web:\n  # The value of a.\n  a: 1\n  b: 2\n")


def test_every_key_of_the_schema_has_a_default_and_so_a_row() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    # Empty maps whose single comment covers all their keys.
    free = {"settings", "config", "webhooks", "dockerd.affinity", "knative.sink", "podman.mirrors"}

    def keys(schema: dict[str, Any], given: Any, path: str) -> list[str]:
        if "$ref" in schema:
            schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
        if path in free or path.endswith(".resources"):
            return []
        missing = [f"{path}.{key}" for key in schema.get("properties", {}) if key not in given]
        for key, below in schema.get("properties", {}).items():
            missing += keys(below, given.get(key), f"{path}.{key}".lstrip("."))
        return missing

    assert keys(SCHEMA, values, "") == []
