"""Kiln as a part of Knative: the objects that the chart renders, and none unless Knative is enabled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.chart.helm import CHART, LEAST, VALUES, Object, Release, environment, is_of_knative, merged, render
from tests.parts.published_data import published_data

SERVING: dict[str, Any] = {"enabled": True, "serving": {"enabled": True}}
TRIGGER = {"name": "courses", "broker": "default"}
TAKEN_BY_SERVING = {8008, 8012, 8013, 8022, 8112, 9090, 9091}
"""Ports that Serving's queue-proxy container uses in the same pod."""
RESERVED = {"PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"}


def with_knative(knative: dict[str, Any], **more: Any) -> Release:
    return render(merged(LEAST, {"knative": {"enabled": True, **knative}}, more))


def of_knative(release: Release) -> list[Object]:
    return [one for one in release.objects if ".knative.dev/" in one["apiVersion"]]


def trigger(release: Release) -> Object:
    [found] = release.of("Trigger")
    spec: Object = found["spec"]
    return spec


def service(release: Release) -> Object:
    [found] = [one for one in release.objects if is_of_knative(one, "Service")]
    return found


def test_nothing_of_it_is_there_until_it_is_enabled() -> None:
    knative = {"triggers": [TRIGGER], "sink": {"uri": "http://sink"}, "serving": {"enabled": True}}
    assert render(merged(LEAST, {"knative": knative})).objects == render().objects
    assert of_knative(with_knative({})) == []
    assert render(merged(LEAST, {"enabled": False, "knative": {"enabled": True, **knative}})).objects == ()


# Triggers. -----------------------------------------------------------------------------------------------------------


def test_a_trigger_posts_to_web_and_repeats_what_may_get_better() -> None:
    found = trigger(with_knative({"triggers": [TRIGGER]}))
    assert found["broker"] == "default"
    assert found["subscriber"] == {
        "ref": {"apiVersion": "v1", "kind": "Service", "name": "kiln", "namespace": "kiln"},
        "uri": "/events",
    }
    assert found["delivery"] == {
        "retry": 5,
        "backoffPolicy": "exponential",
        "backoffDelay": "PT1S",
        "timeout": "PT15S",
    }


@pytest.mark.parametrize("filters", [{}, {"filters": []}])
def test_without_filters_it_is_all_but_what_kiln_itself_tells(filters: dict[str, Any]) -> None:
    [found] = trigger(with_knative({"triggers": [{**TRIGGER, **filters}]}))["filters"]
    assert found == {
        "any": [{"exact": {"type": "dev.kiln.build.requested.v1"}}, {"not": {"prefix": {"type": "dev.kiln."}}}]
    }


@pytest.mark.parametrize(
    "filters",
    [
        {"filter": {"attributes": {"type": "org.example.course", "subject": "x"}}},
        {"filters": [{"all": [{"exact": {"type": "a"}}, {"not": {"suffix": {"source": "/b"}}}]}, {"cesql": "a = 'b'"}]},
    ],
)
def test_both_dialects_are_handed_on(filters: dict[str, Any]) -> None:
    found = trigger(with_knative({"triggers": [{**TRIGGER, **filters}]}))
    assert {name: found[name] for name in ("filter", "filters") if name in found} == filters


def test_what_is_said_of_delivery_counts_zero_too() -> None:
    said = {"retry": 0, "timeout": "PT1M", "deadLetterSink": {"uri": "http://dead.example"}}
    found = trigger(with_knative({"triggers": [{**TRIGGER, "delivery": said}]}))["delivery"]
    assert found == {"backoffPolicy": "exponential", "backoffDelay": "PT1S", **said}


def test_an_audience_and_annotations_are_the_trigger_s() -> None:
    [found] = with_knative({"triggers": [{**TRIGGER, "audience": "kiln", "annotations": {"a/b": "c"}}]}).of("Trigger")
    assert found["spec"]["subscriber"]["audience"] == "kiln"
    assert found["metadata"]["annotations"] == {"a/b": "c"}


def test_a_trigger_may_be_in_its_broker_s_namespace() -> None:
    triggers = [TRIGGER, {**TRIGGER, "namespace": "events"}]
    release = with_knative({"triggers": triggers})
    assert [(one["metadata"]["namespace"], one["metadata"]["name"]) for one in release.of("Trigger")] == [
        ("kiln", "kiln-courses"),
        ("events", "kiln-kiln-courses"),
    ]
    assert {one["spec"]["subscriber"]["ref"]["namespace"] for one in release.of("Trigger")} == {"kiln"}


def test_two_triggers_of_one_name_are_refused() -> None:
    with pytest.raises(Exception, match=r"knative\.triggers: two are called courses"):
        with_knative({"triggers": [TRIGGER, {**TRIGGER, "broker": "other", "namespace": "kiln"}]})


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"settings": {"base_path": "/kiln/"}}, "/kiln/events"),
        ({"jupyterhub": {"service": "binder"}, "settings": {"auth": "hub"}}, "/services/binder/events"),
    ],
)
def test_a_trigger_knows_the_base_path(values: dict[str, Any], path: str) -> None:
    assert trigger(with_knative({"triggers": [TRIGGER]}, **values))["subscriber"]["uri"] == path


def test_a_port_that_a_reference_cannot_say_is_in_the_address() -> None:
    release = with_knative({"triggers": [TRIGGER]}, service={"port": 8080})
    assert trigger(release)["subscriber"] == {"uri": "http://kiln.kiln.svc:8080/events"}


# Callers. ------------------------------------------------------------------------------------------------------------


def peers(release: Release, port: object) -> list[str]:
    """Return the namespaces (or `test`, the chart's own pod) that may reach web's port. An empty list means all."""
    rules = release.the("NetworkPolicy", "kiln-web")["spec"]["ingress"]
    [rule] = [rule for rule in rules if {"port": port} in rule["ports"]]
    labels = [next(iter(one.values()))["matchLabels"] for one in rule.get("from", [])]
    return [one.get("kubernetes.io/metadata.name") or one["app.kubernetes.io/component"] for one in labels]


ELSEWHERE = {"ingress": {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "nginx"}}}]}}


def test_brokers_are_let_in_beside_others_where_there_are_triggers() -> None:
    both = with_knative({"triggers": [TRIGGER]}, networkPolicy=ELSEWHERE)
    assert peers(both, "http") == ["nginx", "knative-eventing", "test"]
    assert peers(with_knative({"triggers": [TRIGGER]}), "http") == []
    assert peers(with_knative({"sink": {"uri": "http://sink"}}, networkPolicy=ELSEWHERE), "http") == ["nginx", "test"]


def test_by_network_only_brokers_post_unless_others_are_named() -> None:
    network = {"settings": {"events_auth": "network"}}
    assert peers(with_knative({"triggers": [TRIGGER]}, **network), "http") == ["knative-eventing", "test"]
    own = {"dispatchers": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "rabbit"}}}]}
    assert peers(with_knative({"triggers": [TRIGGER], **own}, **network), "http") == ["rabbit", "test"]


# By tokens. ----------------------------------------------------------------------------------------------------------

OIDC = {"audience": "kiln", "allowedSubjects": ["system:serviceaccount:kiln:*", "system:serviceaccount:a:b"]}
CLUSTER = "https://kubernetes.default.svc.cluster.local"


def oidc_of(release: Release) -> dict[str, str]:
    [web] = release.of("Deployment", component="web")
    env = environment(web["spec"]["template"]["spec"]["containers"][0])
    return {
        name.removeprefix("KILN_"): value for name, value in env.items() if "OIDC" in name or name.endswith("_AUTH")
    }


def test_by_tokens_web_and_triggers_mean_the_same_audience() -> None:
    triggers = [TRIGGER, {**TRIGGER, "name": "other", "audience": "another"}]
    release = with_knative({"triggers": triggers, "oidc": OIDC})
    assert [one["spec"]["subscriber"]["audience"] for one in release.of("Trigger")] == ["kiln", "another"]
    assert oidc_of(release) == {
        "AUTH": "token",
        "EVENTS_AUTH": "oidc",
        "OIDC_ISSUER": CLUSTER,
        "OIDC_AUDIENCE": "kiln",
        "OIDC_SUBJECTS": "system:serviceaccount:kiln:*,system:serviceaccount:a:b",
    }


def test_people_may_have_another_issuer() -> None:
    settings = {
        "auth": "oidc",
        "oidc_issuer": "https://idp.example/",
        "oidc_audience": "people",
        "events_auth": "oidc,token",
    }
    assert oidc_of(with_knative({"oidc": OIDC}, settings=settings)) == {
        "AUTH": "oidc",
        "EVENTS_AUTH": "oidc,token",
        "OIDC_ISSUER": "https://idp.example/",
        "OIDC_AUDIENCE": "people",
        "OIDC_EVENTS_ISSUER": CLUSTER,
        "OIDC_EVENTS_AUDIENCE": "kiln",
        "OIDC_SUBJECTS": "system:serviceaccount:kiln:*,system:serviceaccount:a:b",
    }


def test_without_an_audience_nobody_speaks_of_tokens() -> None:
    assert oidc_of(with_knative({"triggers": [TRIGGER]})) == {"AUTH": "token"}
    assert oidc_of(render(merged(LEAST, {"knative": {"oidc": OIDC}}))) == {"AUTH": "token"}


# The sink. -----------------------------------------------------------------------------------------------------------


def test_a_sink_is_bound_to_the_controller() -> None:
    sink = {"ref": {"kind": "Broker", "name": "default"}, "audience": "broker", "CACerts": "pem"}
    overrides = {"extensions": {"team": "stats"}}
    release = with_knative({"sink": {**sink, "ceOverrides": overrides}})
    [found] = release.of("SinkBinding")
    subject = found["spec"]["subject"]
    [controller] = release.of("Deployment", component="controller")
    assert subject == {
        "apiVersion": controller["apiVersion"],
        "kind": "Deployment",
        "name": controller["metadata"]["name"],
        "namespace": controller["metadata"]["namespace"],
    }
    assert found["spec"]["sink"] == sink
    assert found["spec"]["ceOverrides"] == overrides


# Serving. ------------------------------------------------------------------------------------------------------------


def test_web_is_a_service_of_serving_in_place_of_its_deployment() -> None:
    release = with_knative(SERVING)
    assert [one["metadata"]["name"] for one in release.of("Deployment")] == ["kiln-controller"]
    assert [one["metadata"]["name"] for one in release.of("Service")] == ["kiln-metrics", "kiln-web"]
    found = service(release)
    assert found["metadata"]["labels"]["networking.knative.dev/visibility"] == "cluster-local"
    scale = {
        name.removeprefix("autoscaling.knative.dev/"): value
        for name, value in found["spec"]["template"]["metadata"]["annotations"].items()
    }
    assert scale == {"metric": "concurrency", "target": "8", "min-scale": "0", "max-scale": "5"}
    spec = found["spec"]["template"]["spec"]
    assert (spec["containerConcurrency"], spec["timeoutSeconds"]) == (0, 600)


def test_it_is_reached_from_outside_where_that_is_said() -> None:
    labels = service(with_knative(merged(SERVING, {"serving": {"visibility": "external"}})))["metadata"]["labels"]
    assert not [name for name in labels if "knative" in name]


def test_it_has_what_serving_takes_and_nothing_else() -> None:
    """Serving rejects fields outside `PodSpecMask` and `ContainerMask`, without feature flags.

    Source: knative/serving, pkg/apis/serving/fieldmask.go.
    """
    spec = service(with_knative(SERVING))["spec"]["template"]["spec"]
    assert {*spec} <= {
        "serviceAccountName", "containers", "volumes", "imagePullSecrets", "enableServiceLinks", "containerConcurrency",
        "timeoutSeconds",
    }  # fmt: skip
    [container] = spec["containers"]
    assert {*container} <= {
        "name", "args", "env", "image", "imagePullPolicy", "livenessProbe", "readinessProbe", "ports", "resources",
        "securityContext", "volumeMounts",
    }  # fmt: skip
    assert {*container["securityContext"]} == {
        "runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile", "allowPrivilegeEscalation",
        "readOnlyRootFilesystem", "capabilities",
    }  # fmt: skip
    [port] = container["ports"]
    assert port["name"] == "http1"
    ours = int(environment(container)["KILN_OPS_PORT"])
    assert not {port["containerPort"], ours} & TAKEN_BY_SERVING
    assert not {one["name"] for one in container["env"]} & RESERVED
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"secret", "configMap", "emptyDir"}


def test_it_can_read_its_secrets_without_a_group_of_its_own() -> None:
    spec = service(render(VALUES["serving"]))["spec"]["template"]["spec"]
    modes = {volume["secret"]["defaultMode"] for volume in spec["volumes"] if "secret" in volume}
    assert modes == {0o444}
    [controller] = render(VALUES["serving"]).of("Deployment", component="controller")
    volumes = controller["spec"]["template"]["spec"]["volumes"]
    assert {volume["secret"]["defaultMode"] for volume in volumes if "secret" in volume} == {0o440}


def test_it_is_asked_on_the_port_that_it_serves_whether_it_is_well() -> None:
    values = {"settings": {"base_path": "/kiln/"}}
    [container] = service(with_knative(SERVING, **values))["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"] == {"httpGet": {"path": "/kiln/versions"}}
    assert container["livenessProbe"]["httpGet"] == {"path": "/kiln/versions"}


def test_its_pods_have_the_same_settings_mounts_and_labels_as_the_deployment_s() -> None:
    def web(release: Release) -> tuple[Object, Object, dict[str, str]]:
        deployments = release.of("Deployment", component="web")
        [found] = deployments or [service(release)]
        template = found["spec"]["template"]
        [container] = template["spec"]["containers"]
        return container, template["metadata"]["labels"], environment(container)

    by_serving, labels, env = web(with_knative(SERVING))
    plain, own_labels, own_env = web(render())
    assert labels == own_labels
    assert env == {**own_env, "KILN_OPS_PORT": "9092"}
    assert by_serving["volumeMounts"] == plain["volumeMounts"]


def test_metrics_are_found_where_no_port_has_a_name() -> None:
    release = with_knative(SERVING)
    [port] = release.the("Service", "kiln-metrics")["spec"]["ports"]
    assert port == {"name": "ops", "port": 9090, "targetPort": 9092}
    [controller] = release.of("Deployment", component="controller")
    [container] = controller["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "ops", "containerPort": 9092}]
    assert environment(container)["KILN_OPS_PORT"] == "9092"
    assert peers(release, 9092) == []


def test_its_pods_are_reached_through_serving_only() -> None:
    release = with_knative(SERVING, networkPolicy=ELSEWHERE)
    serving = ["knative-serving", "kourier-system"]
    assert peers(release, 8012) == peers(release, 8112) == ["nginx", *serving]
    assert peers(release, 9090) == serving
    rules = release.the("NetworkPolicy", "kiln-web")["spec"]["ingress"]
    assert not [rule for rule in rules if {"port": 8000} in rule["ports"]]
    assert peers(with_knative(SERVING), 8012) == []


def test_triggers_and_the_test_know_where_it_is() -> None:
    release = with_knative({**SERVING, "triggers": [TRIGGER]}, settings={"base_path": "/kiln/"})
    assert trigger(release)["subscriber"] == {
        "ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "kiln-web", "namespace": "kiln"},
        "uri": "/kiln/events",
    }
    [pod] = release.of("Pod", component="test")
    assert "--server=http://kiln-web.kiln.svc/kiln/" in pod["spec"]["containers"][0]["args"]


def test_a_long_name_stays_within_what_serving_takes() -> None:
    found = service(render(merged(LEAST, {"knative": SERVING}), release="r" * 53))
    assert len(found["metadata"]["name"]) <= 63


# Knative's own definitions. ------------------------------------------------------------------------------------------

BESIDE = {"spec.delivery.timeout", "spec.delivery.retryAfterMax"}
"""Fields of a Trigger that its definition omits: https://knative.dev/docs/eventing/event-delivery/."""


def definitions() -> Iterator[tuple[str, Object]]:
    """Yield the kind and the schema of each published definition."""
    for path in sorted(published_data("knative").iterdir()):
        definition = yaml.safe_load(path.read_text())["spec"]
        [version] = [one for one in definition["versions"] if one["name"] == "v1"] or definition["versions"][:1]
        yield (
            f"{definition['group']}/{version['name']} {definition['names']['kind']}",
            version["schema"]["openAPIV3Schema"],
        )


def unknown(value: Any, schema: Object, place: str) -> Iterator[str]:
    """Yield the fields that a schema does not have. A schema without properties accepts every field."""
    if isinstance(value, list):
        for each in value:
            yield from unknown(each, schema.get("items", {}), place)
    elif isinstance(value, dict) and "properties" in schema:
        for name, below in value.items():
            where = f"{place}.{name}"
            if name in schema["properties"]:
                yield from unknown(below, schema["properties"][name], where)
            elif where not in BESIDE:
                yield where


@pytest.mark.parametrize("example", ["knative", "serving"])
def test_no_object_has_a_field_that_its_definition_has_not(example: str) -> None:
    """The API server would silently accept an unknown field of a Trigger, so only this test finds a misspelt one."""
    schemas = dict(definitions())
    for one in of_knative(render(VALUES[example])):
        schema = schemas[f"{one['apiVersion']} {one['kind']}"]["properties"]["spec"]
        assert [*unknown(one["spec"], schema, "spec")] == []
        assert [*unknown(merged(one["spec"], {"nobodyKnows": 1}), schema, "spec")] == ["spec.nobodyKnows"]


def test_it_works_as_a_part_of_another_chart(parent: Path) -> None:
    values = {"kiln": merged(LEAST, {"knative": {**SERVING, "triggers": [TRIGGER], "sink": {"uri": "http://sink"}}})}
    found = of_knative(render(values, release="hub", namespace="courses", chart=parent))
    assert {(one["kind"], one["metadata"]["name"]) for one in found} == {
        ("Service", "hub-kiln-web"),
        ("SinkBinding", "hub-kiln-controller"),
        ("Trigger", "hub-kiln-courses"),
    }
    off = {"kiln": {"enabled": False, "knative": {**SERVING, "triggers": [TRIGGER]}}}
    assert render(off, chart=parent).objects == ()


# A cluster without Knative. ------------------------------------------------------------------------------------------

KINDS = ["eventing.knative.dev/v1/Trigger", "sources.knative.dev/v1/SinkBinding", "serving.knative.dev/v1/Service"]


@pytest.mark.parametrize("there", [[], KINDS[:1], KINDS[1:], KINDS])
def test_what_a_cluster_has_not_is_named(there: list[str]) -> None:
    kinds = [option for kind in ["apps/v1/Deployment", *there] for option in ("--api-versions", kind)]
    command = ["helm", "template", "kiln", str(CHART), "--values", str(VALUES["serving"]), *kinds]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    missing = [kind for kind in KINDS if kind not in there]
    assert (done.returncode == 0) == (not missing)
    assert [kind for kind in KINDS if f"no {kind}" in done.stderr] == missing
