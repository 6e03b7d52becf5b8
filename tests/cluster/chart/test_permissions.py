"""The parts' permissions at the API server, on the node and over the network, and the secrets that they can read."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import yaml

from builds.repository import GLOBAL_UNICAST, NOT_PUBLIC_4, NOT_PUBLIC_6, is_public
from tests.cluster.chart.helm import LEAST, VALUES, Object, Release, environment, merged, mounts, render

each_example = pytest.mark.parametrize("example", VALUES)

NAMESPACED = {
    "ConfigMap", "DaemonSet", "Deployment", "HTTPRoute", "Ingress", "Lease", "NetworkPolicy", "Pod",
    "PodDisruptionBudget", "PrometheusRule", "Role", "RoleBinding", "Secret", "Service", "ServiceAccount",
    "ServiceMonitor", "SinkBinding", "Trigger",
}  # fmt: skip


# The API server. -----------------------------------------------------------------------------------------------------


@each_example
def test_nothing_is_of_the_whole_cluster(example: str) -> None:
    assert {one["kind"] for one in render(VALUES[example]).objects} <= NAMESPACED


def granted(role: Object) -> set[tuple[str, str, str, str]]:
    """Return (group, resource, verb, name or `*`) for all that a role allows."""
    return {
        (group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }


def verbs(group: str, resource: str, words: str, name: str = "*") -> set[tuple[str, str, str, str]]:
    return {(group, resource, verb, name) for verb in words.split()}


READS = verbs("", "pods", "get list") | verbs("", "pods/log", "get list") | verbs("", "events", "get list")
ALL = "create delete get list patch update watch"
MAY = {
    "web": READS
    | verbs("", "configmaps", "create get list patch")
    | verbs("coordination.k8s.io", "leases", "get", "kiln"),
    "controller": READS
    | verbs("", "pods", "watch patch")
    | verbs("", "configmaps", ALL)
    | verbs("batch", "jobs", ALL)
    | verbs("coordination.k8s.io", "leases", "get update patch", "kiln"),
}


@each_example
def test_the_roles_are_these_and_no_others(example: str) -> None:
    release = render(VALUES[example])
    assert {role["metadata"]["name"]: granted(role) for role in release.of("Role")} == {
        f"kiln-{component}": what for component, what in MAY.items()
    }
    bound = {
        one["roleRef"]["name"]: [subject["name"] for subject in one["subjects"]] for one in release.of("RoleBinding")
    }
    assert bound == {"kiln-web": ["kiln-web"], "kiln-controller": ["kiln-controller"]}


@each_example
def test_only_web_and_controller_have_a_token(example: str) -> None:
    """Each pod declares this itself, except a pod of Serving, which must not."""
    release = render(VALUES[example])
    for component, pod in release.pods():
        name = pod.get("serviceAccountName")
        account = release.the("ServiceAccount", name)["automountServiceAccountToken"] if name else False
        assert account is ("automountServiceAccountToken" not in pod)
        assert pod.get("automountServiceAccountToken", account) is (component in MAY)
        assert pod["enableServiceLinks"] is False
        if component != "test":
            assert pod["serviceAccountName"] == f"kiln-{component}"
            assert release.the("ServiceAccount", pod["serviceAccountName"])


def test_the_anchor_and_the_lease_are_there_and_named_to_both() -> None:
    release = render()
    assert release.the("ConfigMap", "kiln")
    assert "spec" not in release.the("Lease", "kiln")
    for deployment in release.of("Deployment"):
        env = environment(deployment["spec"]["template"]["spec"]["containers"][0])
        assert (env["KILN_ANCHOR"], env["KILN_NAMESPACE"], env["KILN_INSTANCE"]) == ("kiln", "kiln", "kiln/kiln")


# The node. -----------------------------------------------------------------------------------------------------------


def restricted(pod: Object, *, volumes: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Return the violations of the Pod Security profile `restricted`. `volumes` adds allowed kinds of volumes."""
    whole = pod.get("securityContext", {})
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found = [f"volume {volume}" for volume in pod.get("volumes", []) if not ({*volume} - {"name"}) <= allowed | volumes]
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        both = {**whole, **own}
        checks = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser") != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,  # Kiln's own rule, not the profile's
            "hostPort": not any("hostPort" in port for port in container.get("ports", [])),
        }
        found += [f"{container['name']}: {name}" for name, good in checks.items() if not good]
    return found


@each_example
@pytest.mark.parametrize("component", ["web", "controller", "test"])
def test_what_is_not_a_build_is_restricted(example: str, component: str) -> None:
    [pod] = [pod for name, pod in render(VALUES[example]).pods() if name == component]
    assert restricted(pod) == []


@each_example
def test_a_build_is_restricted_but_for_the_folder_of_the_socket(example: str) -> None:
    pod = render(VALUES[example]).build_pod["spec"]
    assert restricted(pod, volumes={"hostPath"}) == []
    [host] = [volume["hostPath"] for volume in pod["volumes"] if "hostPath" in volume]
    assert host == {"path": "/var/run/kiln/kiln_kiln", "type": "Directory"}
    [mount] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == "/run/kiln"]
    assert mount["readOnly"] is True


@each_example
def test_only_the_daemon_s_own_container_is_privileged(example: str) -> None:
    release = render(VALUES[example])
    privileged = [
        container["name"]
        for _, pod in release.pods()
        for container in pod["containers"]
        if container["securityContext"].get("privileged")
    ]
    assert privileged == ["podman" if example == "podman" else "dockerd"]
    [pod] = [pod for name, pod in release.pods() if name == "dockerd"]
    assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))


def test_builds_may_be_where_daemons_may_and_are_given_up_with_their_node() -> None:
    release = render(VALUES["everything"])
    [daemons] = release.of("DaemonSet")
    daemon, build = daemons["spec"]["template"]["spec"], release.build_pod["spec"]
    assert build["nodeSelector"] == daemon["nodeSelector"] == {"example.org/pool": "builds"}
    assert build["affinity"] == daemon["affinity"]
    gone = {one["key"]: one["tolerationSeconds"] for one in build["tolerations"] if one.get("effect") == "NoExecute"}
    assert gone == {"node.kubernetes.io/not-ready": 60, "node.kubernetes.io/unreachable": 60}
    assert [one["key"] for one in build["tolerations"][2:]] == ["dockerd", "builds"]
    assert build["priorityClassName"] == "builds"


def test_the_daemon_waits_for_the_builds_of_its_node_and_is_given_the_time() -> None:
    [daemons] = render(merged(LEAST, {"dockerd": {"drainSeconds": 100}})).of("DaemonSet")
    spec = daemons["spec"]["template"]["spec"]
    assert daemons["spec"]["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
    command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["timeout", "100", "flock", "-x", "/run/kiln/builds.lock", "true"]
    assert spec["terminationGracePeriodSeconds"] == 160


def test_each_kind_of_daemon_is_found_in_the_same_way_and_they_share_no_folder_of_data() -> None:
    docker, podman = (render(VALUES[example]) for example in ("minimal", "podman"))
    folders = []
    for release in (docker, podman):
        [daemons] = release.of("DaemonSet", component="dockerd")
        template = daemons["spec"]["template"]
        assert daemons["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert daemons["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "dockerd"
        folders.append({v["name"]: v["hostPath"]["path"] for v in template["spec"]["volumes"] if "hostPath" in v})
    assert folders[0]["sockets"] == folders[1]["sockets"]
    assert folders[0]["data"] != folders[1]["data"]
    assert policies(docker).keys() == policies(podman).keys()


@pytest.mark.parametrize(("example", "socket"), [("minimal", "docker"), ("podman", "podman")])
def test_builds_are_told_which_daemon_and_where(example: str, socket: str) -> None:
    for deployment in render(VALUES[example]).of("Deployment"):
        env = environment(deployment["spec"]["template"]["spec"]["containers"][0])
        assert (env["KILN_DAEMON"], env["KILN_DOCKER_HOST"]) == (socket, f"unix:///run/kiln/{socket}.sock")


def test_the_one_list_of_insecure_registries_is_the_daemon_s_too() -> None:
    release = render(merged(LEAST, {"config": {"insecure_registries": ["registry:5000", "other:80"]}}))
    [daemons] = release.of("DaemonSet")
    args = daemons["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [one for one in args if "insecure" in one] == [
        "--insecure-registry=registry:5000",
        "--insecure-registry=other:80",
    ]


# The network. --------------------------------------------------------------------------------------------------------


def policies(release: Release) -> dict[str, Object]:
    name = "app.kubernetes.io/component"
    return {one["spec"]["podSelector"]["matchLabels"][name]: one["spec"] for one in release.of("NetworkPolicy")}


def reaches(policy: Object, address: str, port: int) -> bool:
    """Report whether a policy admits traffic to an address outside of the cluster's pods."""
    ip = ipaddress.ip_address(address)

    def within(cidr: str) -> bool:
        return ip in ipaddress.ip_network(cidr)

    def peer(block: dict[str, Any]) -> bool:
        return within(block["cidr"]) and not any(within(cidr) for cidr in block.get("except", []))

    return any(
        any(peer(to["ipBlock"]) for to in rule["to"] if "ipBlock" in to)
        and port in [it["port"] for it in rule.get("ports", [{"port": port}])]
        for rule in policy["egress"]
    )


@pytest.mark.parametrize("component", ["build", "dockerd"])
@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "10.255.255.255",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "127.0.0.1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "::1",
        "64:ff9b::a00:1",
        "64:ff9b:1::a00:1",
        "2002:a00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "168.63.129.16",
        "192.0.0.1",
    ],
)
def test_builds_reach_no_private_address(component: str, address: str) -> None:
    assert not reaches(policies(render())[component], address, 443)


@pytest.mark.parametrize("component", ["build", "dockerd"])
@pytest.mark.parametrize("address", ["140.82.112.3", "172.15.0.1", "172.32.0.1", "11.0.0.1", "2606:50c0:8000::153"])
def test_builds_reach_the_internet(component: str, address: str) -> None:
    assert reaches(policies(render())[component], address, 443)


def edges(networks: Iterable[str]) -> Iterator[str]:
    """Yield the first and the last address of each network and their outer neighbours."""
    for network in map(ipaddress.ip_network, networks):
        first, last = int(network.network_address), int(network.broadcast_address)
        most = 2**network.max_prefixlen - 1
        kind = type(network.network_address)
        yield from {str(kind(at)) for at in (first - 1, first, last, last + 1) if 0 <= at <= most}


def test_what_a_policy_lets_out_is_what_the_builder_counts_as_public() -> None:
    """The network policy and `is_public` must agree, so that neither refuses an address alone."""
    policy = policies(render())["build"]
    blocks = [to["ipBlock"] for to in policy["egress"][1]["to"]]
    ranges = [cidr for block in blocks for cidr in [block["cidr"], *block["except"]]]
    ours = [*NOT_PUBLIC_4, *NOT_PUBLIC_6, GLOBAL_UNICAST]
    addresses = {*edges(ranges), *edges(map(str, ours)), "64:ff9b::1", "::1", "fe80::1", "fd00::1"}
    assert len(addresses) > 60
    for address in addresses:
        assert reaches(policy, address, 443) == is_public(ipaddress.ip_address(address)), address


@pytest.mark.parametrize("component", ["build", "dockerd"])
def test_builds_reach_dns_and_what_is_allowed_and_nobody_reaches_them(component: str) -> None:
    policy = policies(render(VALUES["everything"]))[component]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    dns, internet, allowed = policy["egress"]
    assert {(one["protocol"], one["port"]) for one in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert reaches(policy, "169.254.20.10", 53)  # NodeLocal DNSCache
    assert len(internet["to"]) == 2
    assert allowed["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "registry"}}}]


def test_the_controller_is_reached_for_its_metrics_only() -> None:
    assert policies(render())["controller"]["ingress"] == [{"ports": [{"port": "ops"}]}]


def test_who_may_post_is_named_and_the_test_s_pod_with_them() -> None:
    [ops, http] = policies(render(VALUES["secrets"]))["web"]["ingress"]
    assert ops == {"ports": [{"port": "ops"}]}
    assert http["ports"] == [{"port": "http"}]
    events, test = http["from"]
    assert events == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "events"}}}
    assert test["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"


def test_policies_can_be_left_to_somebody_else() -> None:
    assert render(merged(LEAST, {"networkPolicy": {"enabled": False}})).of("NetworkPolicy") == []


# Secrets. ------------------------------------------------------------------------------------------------------------

FOLDERS = {
    "web": ["/etc/kiln/secrets/api-tokens", "/etc/kiln/secrets/git-credentials", "/etc/kiln/secrets/webhooks/github"],
    "controller": [f"/etc/kiln/secrets/{folder}" for folder in ("git-credentials", "headers", "statuses")],
    "build": ["/etc/kiln/git-credentials"],
}
"""Each part reads what it needs and no more. Web resolves refs of private repositories for their authorized users."""


@pytest.mark.parametrize(
    ("example", "names"),
    [
        (
            "everything",
            [f"kiln-{name}" for name in ("api-tokens", "webhooks-github", "git-credentials", "headers", "statuses")],
        ),
        ("secrets", ["tokens", "github-webhook", "git", "headers", "statuses"]),
    ],
)
def test_each_part_sees_its_secrets_and_may_wait_for_them(example: str, names: list[str]) -> None:
    by_folder = {
        "/etc/kiln/secrets/api-tokens": names[0],
        "/etc/kiln/secrets/webhooks/github": names[1],
        "/etc/kiln/secrets/git-credentials": names[2],
        "/etc/kiln/git-credentials": names[2],
        "/etc/kiln/secrets/headers": names[3],
        "/etc/kiln/secrets/statuses": names[4],
    }
    release = render(VALUES[example])
    for component, pod in release.pods():
        found = {path: volume["secret"] for path, volume in mounts(pod).items() if "secret" in volume}
        registry = found.pop("/etc/kiln/registry", None)
        found.pop("/etc/kiln/private-registry", None)
        found.pop("/etc/kiln/signing", None)
        found = {path: secret for path, secret in found.items() if not path.endswith("/gitlab")}
        if component in FOLDERS:
            assert registry, component
            assert {path: secret["secretName"] for path, secret in found.items()} == {
                path: by_folder[path] for path in FOLDERS[component]
            }
            assert all(secret["optional"] for secret in found.values())


def test_a_secret_that_is_there_already_is_not_made() -> None:
    assert render(VALUES["secrets"]).of("Secret") == []


@pytest.mark.parametrize(
    ("example", "name", "key"),
    [("secrets", "push", "config.json"), ("everything", "kiln-registry", ".dockerconfigjson")],
)
def test_the_registry_s_credentials_are_one_file_for_all_who_need_them(example: str, name: str, key: str) -> None:
    release = render(VALUES[example])
    for component, pod in release.pods():
        if component in ("web", "controller", "build"):
            secret = mounts(pod)["/etc/kiln/registry"]["secret"]
            assert secret["secretName"] == name
            assert secret["items"] == [{"key": key, "path": "config.json"}]
            assert not secret.get("optional")  # without the Secret no push succeeds, so the pod waits and reports it


def test_web_can_have_credentials_that_only_pull() -> None:
    own: dict[str, Any] = {"registry": {"existingSecret": "pull"}}
    own["privateRegistry"] = {"existingSecret": "pull-private", "existingSecretKey": "config.json"}
    found = {
        component: {path: mounts(pod)[f"/etc/kiln/{path}"]["secret"] for path in ("registry", "private-registry")}
        for component, pod in render(merged(yaml.safe_load(VALUES["everything"].read_text()), {"web": own})).pods()
        if component in ("web", "controller", "build")
    }
    web = found.pop("web")
    assert [secret["secretName"] for secret in web.values()] == ["pull", "pull-private"]
    assert [secret["items"][0]["key"] for secret in web.values()] == [".dockerconfigjson", "config.json"]
    for secrets in found.values():
        assert [one["secretName"] for one in secrets.values()] == ["kiln-registry", "kiln-private-registry"]


@pytest.mark.parametrize("example", ["everything", "minimal"])
def test_private_images_have_a_credential_of_their_own_or_none(example: str) -> None:
    """The controller decides which builds have this credential, so the volume is in the pod template."""
    release = render(VALUES[example])
    there = example == "everything"
    for component, pod in release.pods():
        volume = mounts(pod).get("/etc/kiln/private-registry")
        assert (volume is not None) == (there and component in ("web", "controller", "build"))
        if volume:
            assert volume["secret"]["secretName"] == "kiln-private-registry"
            assert not volume["secret"].get("optional")
    for deployment in release.of("Deployment"):
        env = environment(deployment["spec"]["template"]["spec"]["containers"][0])
        assert ("KILN_PRIVATE_REGISTRY_CONFIG" in env) == there


@pytest.mark.parametrize("example", ["secrets", "everything"])
def test_builds_alone_have_the_key_that_signs(example: str) -> None:
    for component, pod in render(VALUES[example]).pods():
        volume = mounts(pod).get("/etc/kiln/signing")
        assert (volume is not None) == (component == "build" and example == "secrets")
        if volume:
            assert volume["secret"]["secretName"] == "signing"
            assert volume["secret"]["items"] == [{"key": "key.pem", "path": "cosign.key"}]
            assert not volume["secret"].get("optional"), "nothing would be signed: the pod waits and says so"


def test_secrets_from_values_hold_what_was_given() -> None:
    made = {one["metadata"]["name"]: one["stringData"] for one in render(VALUES["everything"]).of("Secret")}
    registry = made.pop("kiln-registry")
    private = made.pop("kiln-private-registry")
    assert json.loads(private[".dockerconfigjson"]) == {
        "auths": {"registry.example": {"auth": base64.b64encode(b"private:private-password").decode()}}
    }
    assert registry == {".dockerconfigjson": '{"auths":{"registry.example":{"auth":"a2lsbjpwdXNoLXBhc3N3b3Jk"}}}'}
    assert made == {
        "kiln-api-tokens": {"alice": "token-of-alice"},
        "kiln-git-credentials": {"git.example.edu": "https://kiln:token@git.example.edu/courses"},
        "kiln-headers": {"hub": "Authorization: Bearer token-of-hub"},
        "kiln-statuses": {"git.example.edu": "token-of-statuses"},
        "kiln-webhooks-github": {"main": "first", "next": "second"},
    }


def test_behind_a_hub_its_secret_is_named_to_web_alone() -> None:
    release = render(VALUES["secrets"])
    pods = dict(release.pods())
    web, controller = pods["web"]["containers"][0], pods["controller"]["containers"][0]
    assert environment(web)["KILN_BASE_PATH"] == environment(controller)["KILN_BASE_PATH"] == "/services/binder/"
    assert environment(web)["JUPYTERHUB_SERVICE_PREFIX"] == "/services/binder/"
    assert environment(web)["JUPYTERHUB_API_URL"] == "http://hub:8081/hub/api"
    [token] = [one["valueFrom"]["secretKeyRef"] for one in web["env"] if one["name"] == "JUPYTERHUB_API_TOKEN"]
    assert token == {"name": "hub", "key": "hub.services.binder.apiToken"}
    assert "JUPYTERHUB" not in str(controller)
    [deployment] = release.of("Deployment", component="web")
    assert deployment["spec"]["template"]["metadata"]["labels"]["hub.jupyter.org/network-access-hub"] == "true"
