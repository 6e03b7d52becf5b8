"""An attempt's Job: what the operator gives, and on top of it what must be so."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from kubernetes_validate import validate

from builds.builder.spec import Surroundings, spec_for
from builds.engines.kubernetes.jobs import (
    DOCKER_HOST,
    GIT_CREDENTIALS,
    SPEC,
    TemplateError,
    checked,
    job,
    mounted,
    pinned,
)
from tests.builds.things import RELEASE, TEMPLATE, attempt, build

OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "name": "b", "uid": "uid-1"}


def made(template: dict[str, Any] = TEMPLATE, node: str | None = "n1") -> dict[str, Any]:
    surroundings = Surroundings(timeout=600)
    one = attempt(node=node)
    return job(
        build(),
        one,
        spec_for(build(), one, surroundings),
        template=template,
        image="kiln:1",
        release=RELEASE,
        owner=OWNER,
    )


def test_it_is_a_valid_job() -> None:
    validate(made(), "1.34", strict=True)


def test_what_must_be_so() -> None:
    found = made()
    assert found["metadata"]["name"] == "b-1"
    assert found["metadata"]["ownerReferences"] == [OWNER]
    assert found["spec"]["backoffLimit"] == 0
    pod = found["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["activeDeadlineSeconds"] == 720
    (container,) = pod["containers"]
    assert container["image"] == "kiln:1"
    assert container["terminationMessagePath"] == container["args"][-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("restartPolicy", "Always"), ("automountServiceAccountToken", True), ("enableServiceLinks", True)],
)
def test_it_cannot_be_configured_away(field: str, value: object) -> None:
    template = copy.deepcopy(TEMPLATE)
    template["spec"][field] = value
    assert made(template)["spec"]["template"]["spec"][field] != value


def test_what_the_operator_gives_is_kept() -> None:
    pod = made()["spec"]["template"]
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["metadata"]["annotations"]["note"] == "b"
    assert pod["spec"]["nodeSelector"] == {"disk": "fast"}
    container = pod["spec"]["containers"][0]
    assert container["resources"] == {"limits": {"memory": "1Gi"}}
    assert {"name": "HOME", "value": "/tmp"} in container["env"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["socket", "kiln-spec"]


def test_the_spec_is_in_the_pod() -> None:
    spec = json.loads(made()["spec"]["template"]["metadata"]["annotations"][SPEC])
    assert (spec["name"], spec["attempt_label"]) == ("b", "uid-1.1")


def test_the_same_record_gives_the_same_job() -> None:
    assert made() == made()
    assert TEMPLATE["metadata"] == {"labels": {"team": "a"}, "annotations": {"note": "b"}}  # and nothing is left in it


def terms(affinity: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    return found


def test_it_is_pinned_to_its_node() -> None:
    here = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
    assert terms(made()["spec"]["template"]["spec"]["affinity"]) == [{"matchFields": [here]}]


def test_the_node_is_in_each_alternative_of_the_operators() -> None:
    zone = {"key": "zone", "operator": "In", "values": ["a"]}
    arch = {"key": "arch", "operator": "Exists"}
    given = {
        "podAntiAffinity": {"x": []},
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [],
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [zone]}, {"matchExpressions": [arch]}]
            },
        },
    }
    found = pinned(given, "n1")
    assert [term["matchExpressions"] for term in terms(found)] == [[zone], [arch]]
    assert all(term["matchFields"][-1]["values"] == ["n1"] for term in terms(found))
    assert found["podAntiAffinity"] == {"x": []}
    assert "preferredDuringSchedulingIgnoredDuringExecution" in found["nodeAffinity"]


def test_one_without_a_node_goes_wherever_the_operators_rules_allow() -> None:
    assert "affinity" not in made(node=None)["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "template", [None, [], {}, {"spec": []}, {"spec": {"containers": []}}, {"spec": {"containers": [{"name": "x"}]}}]
)
def test_a_template_without_a_builder_is_refused(template: object) -> None:
    with pytest.raises(TemplateError):
        checked(template)


def test_a_builder_is_told_only_of_what_is_mounted() -> None:
    outside = Surroundings(registry_config="/home/a/config.json", git_credentials="/secrets", docker_host=None)
    bare = mounted(outside, TEMPLATE, docker_host=None)
    assert (bare.registry_config, bare.git_credentials, bare.docker_host) == (None, None, DOCKER_HOST)
    template = copy.deepcopy(TEMPLATE)
    mounts = template["spec"]["containers"][0]["volumeMounts"]
    mounts += [{"mountPath": "/etc/kiln/registry"}, {"mountPath": f"{GIT_CREDENTIALS}/"}]
    full = mounted(outside, template, docker_host="tcp://d:1")
    assert full.registry_config == "/etc/kiln/registry/config.json"
    assert (full.git_credentials, full.docker_host) == (GIT_CREDENTIALS, "tcp://d:1")
