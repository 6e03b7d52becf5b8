"""`make cluster`: a Kubernetes cluster on this machine with Kiln and the services around it. It keeps running.

    python -m tools.demo.cluster up      # the next time: upgrades Kiln and the chart from the working copy
    python -m tools.demo.cluster down

It has the configuration of the tests' cluster (tests/cluster/kind.yaml) and another name, so both can run. The
registry, the Git host and a sink are containers on its network: this machine and the pods reach them by the same
addresses.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import requests
import yaml

from tests.parts import cluster as parts
from tests.parts import image, machine
from tests.parts.cluster import CHART, Cluster, run
from tests.parts.githost import GitHost
from tests.parts.kiln import get, until
from tests.parts.registry import IMAGE as REGISTRY_IMAGE
from tools.demo.around import GIT_PORT, SINK_PORT

NAME = "kiln"
"""The name of the cluster, the namespace, the release and the Service."""
NODE_PORT = 30080
AROUND, REGISTRY = f"{NAME}-around", f"{NAME}-registry"
REPOSITORY = "demo/sample"
PRIVILEGED = {"pod-security.kubernetes.io/enforce": "privileged"}


def up() -> None:
    with machine.daemon(), Cluster(NAME, keep=True, kiln_image="kiln:dev") as cluster:
        print("The cluster runs", flush=True)
        url = f"http://{cluster.address(cluster.control_plane)}:{NODE_PORT}/"
        registry = f"{_beside(cluster, REGISTRY, REGISTRY_IMAGE)}:5000"
        git = f"http://{_around(cluster, url)}:{GIT_PORT}"
        values = cluster.folder / "values.yaml"
        values.write_text(yaml.safe_dump(_values(cluster, registry, git)))
        metadata = {"name": NAME, "labels": PRIVILEGED}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        install = ["upgrade", "--install", NAME, str(CHART), f"--namespace={NAME}", f"--values={values}"]
        cluster.helm(*install, "--wait", f"--timeout={parts.READY_SECONDS}s")
        until(lambda: get(f"{url}api/v1/builds")[0] == requests.codes.ok)
        print(_hints(cluster, url, registry, git, values), flush=True)


def down() -> None:
    for name in (AROUND, REGISTRY):
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=False, capture_output=True)
    Cluster(NAME).delete()
    print("Cluster, registry and Git host are gone.")


def _beside(cluster: Cluster, name: str, image: str, *options: str, command: tuple[str, ...] = ()) -> str:
    """Starts a container on the cluster's network, unless it runs. Returns its address."""
    running = ["docker", "ps", "--quiet", f"--filter=name=^{name}$", "--filter=status=running"]
    if not run(*running).strip():
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=False, capture_output=True)
        run("docker", "run", "--detach", f"--name={name}", "--network=kind", *options, image, *command)
    return cluster.address(name)


def _around(cluster: Cluster, url: str) -> str:
    """Starts the Git host and the sink, with a repository whose pushes are sent to Kiln. Returns their address."""
    folder = cluster.folder / "git"
    with GitHost(folder) as host:
        bare = host.bare(REPOSITORY)
        if not bare.exists():
            with tempfile.TemporaryDirectory() as work:
                content = Path(work) / "sample"
                shutil.copytree(machine.ROOT / "tools/demo/sample", content)
                shutil.copy(machine.program("busybox", "busybox-static"), content / "busybox")
                host.create(REPOSITORY, content)
    secret = folder / "secret"
    if not secret.exists():
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_urlsafe(32))
    options = [f"--volume={machine.ROOT}:/source:ro", f"--volume={folder}:/git", "--workdir=/source"]
    user = f"--user={os.getuid()}:{os.getgid()}"
    program = ("python", "-m", "tools.demo.around", "/git")
    address = _beside(cluster, AROUND, cluster.kiln_image, *options, user, command=program)
    arguments = [f"{url}webhooks/github", "/git/secret", f"http://{address}:{GIT_PORT}/{REPOSITORY}.git"]
    hook = bare / "hooks/post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nPYTHONPATH=/source exec python -m tools.demo.github {shlex.join(arguments)}\n")
    hook.chmod(0o755)
    return address


def _values(cluster: Cluster, registry: str, git: str) -> dict[str, object]:
    repository, _, tag = cluster.kiln_image.partition(":")
    # The tag stays the same when the image is built again: the annotation replaces the pods.
    annotations = {"podAnnotations": {"kiln.dev/image": str(image.inspect(cluster.kiln_image)["Id"])}}
    around = git.removeprefix("http://").partition(":")[0]
    secret = (cluster.folder / "git/secret").read_text()
    addresses = [{"ipBlock": {"cidr": f"{host.partition(':')[0]}/32"}} for host in (around, registry)]
    return {
        "image": {"repository": repository, "tag": tag},
        "settings": {
            "image_prefix": f"{registry}/",
            "auth": "none",
            "allowed_repositories": f"{git}/**,https://**",
        },
        "config": {
            "hosts": {git.removeprefix("http://"): {"kind": "github"}},
            "sinks": [{"name": "shown", "url": f"http://{around}:{SINK_PORT}/events"}],
            "insecure_registries": [registry],
        },
        "webhooks": {"github": {"values": {"main": secret}}},
        "service": {"type": "NodePort", "nodePort": NODE_PORT},
        "web": annotations,
        "controller": annotations,
        "dockerd": {"image": parts.image_values(parts.DAEMON), "drainSeconds": 60},
        "networkPolicy": {"egress": {"allow": [{"to": addresses}]}},
        "tests": {"repository": f"{git}/{REPOSITORY}.git"},
    }


def _hints(cluster: Cluster, url: str, registry: str, git: str, values: Path) -> str:
    return textwrap.dedent(f"""
        Kiln: {url}

        Look into it:
            export KUBECONFIG={cluster.kubeconfig}
            kubectl --namespace {NAME} get pods,jobs --output wide
            kubectl --namespace {NAME} logs --selector app.kubernetes.io/component=controller --follow
            kubectl --namespace {NAME} get configmaps --selector app.kubernetes.io/component=build

        Push, and see what becomes of it:
            git clone {git}/{REPOSITORY}.git && cd sample
            git commit --allow-empty --message again && git push
            docker logs --follow {AROUND}                     # the events
            curl --silent http://{registry}/v2/_catalog     # the images

        Ask for a build:
            .venv/bin/kiln build --server {url} {git}/{REPOSITORY}.git

        After a change of Kiln or of the chart: make cluster. Or by hand:
            helm upgrade {NAME} chart --namespace {NAME} --values {values}

        To end it all: make cluster-down
        """)


def main(what: str) -> int:
    reason = parts.problem()
    if reason and reason != machine.NO_DAEMON:
        print(f"cluster: {reason}", file=sys.stderr)
        return 1
    try:
        {"up": up, "down": down}[what]()
    except (AssertionError, machine.MachineError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
