"""An attempt's Job: the operator's template with the mandatory fields on top."""

from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from kubernetes_validate import validate
from msgspec.structs import replace

from builds.builder.spec import Surroundings, spec_for
from builds.engines.kubernetes.jobs import (
    DOCKER_HOST,
    GIT_CREDENTIALS,
    PRIVATE_REGISTRY,
    SIGNING,
    SIGNING_KEY,
    SPEC,
    TemplateError,
    checked,
    job,
    mounted,
    pinned,
)
from eventing.tracing import Trace
from tests.builds.kubernetes_objects import RELEASE, TEMPLATE, attempt, build

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
    assert TEMPLATE["metadata"] == {"labels": {"team": "a"}, "annotations": {"note": "b"}}  # the template is unchanged


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


# ---- Secrets of a build's pod -------------------------------------------------------------------------------------

LENT = {"git-credentials": GIT_CREDENTIALS, "private-registry": PRIVATE_REGISTRY}


def with_secrets() -> dict[str, Any]:
    template = copy.deepcopy(TEMPLATE)
    container = next(one for one in template["spec"]["containers"] if one["name"] == "builder")
    for name, path in LENT.items():
        template["spec"].setdefault("volumes", []).append(
            {"name": name, "secret": {"secretName": name, "optional": True}}
        )
        container.setdefault("volumeMounts", []).append({"name": name, "mountPath": path, "readOnly": True})
    return template


def secrets_of(
    git_keys: tuple[str, ...] = (), *, private: bool = False, lent: bool = True, refused: str | None = None
) -> Any:
    """Return the Secret volumes of the Job's pod, by name. Exactly these volumes must be mounted."""
    one, asked = attempt(), build()
    prefix = asked.request.image if private else "elsewhere.example/"
    around = Surroundings(git_credentials=GIT_CREDENTIALS, private_image_prefix=prefix)
    spec = spec_for(asked, one, around, refused)
    if lent and not refused:
        spec = msgspec.structs.replace(spec, surroundings=around)
    pod = job(asked, one, spec, template=with_secrets(), image="i", release=RELEASE, owner=OWNER, git_keys=git_keys)[
        "spec"
    ]["template"]["spec"]
    volumes = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts & {*LENT} == {*volumes} & {*LENT}
    return {name: volumes[name] for name in LENT if name in volumes}


def test_a_pod_has_the_keys_that_its_build_may_use() -> None:
    items = [{"key": "a", "path": "a"}, {"key": "b.example", "path": "b.example"}]
    assert secrets_of(("a", "b.example")) == {
        "git-credentials": {"secretName": "git-credentials", "optional": True, "items": items}
    }


def test_a_pod_without_a_credential_mounts_none() -> None:
    assert secrets_of() == {}
    assert secrets_of(("a",), lent=False) == {}


def test_only_a_private_image_has_its_registry_s_credential() -> None:
    assert {*secrets_of(private=True)} == {"private-registry"}


def test_what_is_refused_has_nothing() -> None:
    assert secrets_of(("a",), private=True, refused="Its content has changed.") == {}


@pytest.mark.parametrize(
    ("around", "refused", "there"),
    [({}, None, True), ({"provenance": False}, None, False), ({}, "Its content has changed.", False)],
)
def test_a_pod_has_the_key_that_signs_where_there_will_be_something_to_sign(
    around: dict[str, Any], refused: str | None, there: bool
) -> None:
    template = copy.deepcopy(TEMPLATE)
    container = next(one for one in template["spec"]["containers"] if one["name"] == "builder")
    container.setdefault("volumeMounts", []).append({"name": "key", "mountPath": SIGNING, "readOnly": True})
    template["spec"].setdefault("volumes", []).append({"name": "key", "secret": {"secretName": "signing"}})
    surroundings = mounted(Surroundings(signing_key="/elsewhere", **around), template, docker_host=None)
    assert surroundings.signing_key == SIGNING_KEY
    assert mounted(surroundings, TEMPLATE, docker_host=None).signing_key is None
    spec = spec_for(build(), attempt(), surroundings, refused)
    made = job(build(), attempt(), spec, template=template, image="i", release=RELEASE, owner=OWNER)
    pod = made["spec"]["template"]["spec"]
    assert ("key" in [volume["name"] for volume in pod["volumes"]]) is there
    assert ("key" in [mount["name"] for mount in pod["containers"][0]["volumeMounts"]]) is there


def test_a_build_that_is_part_of_a_trace_says_so() -> None:
    trace = Trace(traceparent=f"00-{'a' * 32}-{'b' * 16}-01", tracestate="a=b")
    plain, one = build(), attempt()
    of_trace = replace(plain, status=replace(plain.status, trace=trace))
    spec = spec_for(of_trace, one, Surroundings())
    found = job(of_trace, one, spec, template=TEMPLATE, image="kiln:1", release=RELEASE, owner=OWNER)
    validate(found, "1.34", strict=True)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert (environment["TRACEPARENT"], environment["TRACESTATE"]) == (trace.traceparent, "a=b")
    assert found["metadata"]["annotations"] == {"kiln.dev/traceparent": trace.traceparent}
    assert "annotations" not in made()["metadata"]
