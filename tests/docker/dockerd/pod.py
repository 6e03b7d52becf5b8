"""A daemon of the chart, as its pod would start it: same images, commands, files and configuration, in Docker.

The rendered chart supplies its command, files and configuration.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from tests.parts.kiln import until

GOLDEN = Path(__file__).parents[2] / "cluster" / "chart" / "golden"
LOCK = "/run/kiln/builds.lock"
MIB = 2**20


@dataclass(frozen=True)
class Pod:
    """The DaemonSet's pod, and its files."""

    spec: Mapping[str, Any]
    files: Mapping[str, str]

    @classmethod
    def rendered(cls, example: str, change: Callable[[dict[str, str]], object] = lambda _: None) -> Self:
        """That of an example of the chart's values; `change` may put other content into its files."""
        objects = [one for one in yaml.safe_load_all((GOLDEN / f"{example}.yaml").read_text()) if one]
        [daemons] = [one for one in objects if one["kind"] == "DaemonSet"]
        spec = daemons["spec"]["template"]["spec"]
        [mounted] = [volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume]
        [files] = [one["data"] for one in objects if one["metadata"]["name"] == mounted]
        before = dict(files)
        change(files)
        for container in spec["containers"]:
            for name in files:
                held = [part.replace(digest(before[name]), digest(files[name])) for part in container["command"]]
                assert "".join(container["command"]).count(digest(before[name])) == 1, (
                    "it holds its files against digests"
                )
                container["command"] = held
        return cls(spec, files)

    @property
    def daemon(self) -> Mapping[str, Any]:
        return self._containers[0]

    @property
    def prune(self) -> Mapping[str, Any]:
        return self._containers[1]

    @property
    def prepull(self) -> Mapping[str, Any]:
        return self._containers[2]

    @property
    def _containers(self) -> list[Mapping[str, Any]]:
        containers: list[Mapping[str, Any]] = self.spec["containers"]
        return containers


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def docker(*arguments: str, given: bytes | None = None) -> str:
    done = subprocess.run(["docker", *arguments], input=given, check=False, capture_output=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr.decode()}"
    return done.stdout.decode()


def environment(container: Mapping[str, Any]) -> list[str]:
    return [f"--env={one['name']}={one['value']}" for one in container.get("env", [])]


class Daemon:
    """A container like the daemon's, with 400 MiB of memory, in a network with small packets.

    `size` is that of its folder of data in MiB, which is in memory then.
    """

    def __init__(self, pod: Pod, image: str, size: int | None = None) -> None:
        self.pod, self.image = pod, image
        self.name = f"kiln-test-{uuid.uuid4().hex[:8]}"
        self._size = size

    def start(self, stale: str) -> None:
        """`stale` is a script that leaves what a daemon may find at its start."""
        docker("network", "create", "--opt=com.docker.network.driver.mtu=1400", self.name)
        memory = ["--driver=local", "--opt=type=tmpfs", "--opt=device=tmpfs", f"--opt=o=size={self._size}m"]
        for volume in self.pod.spec["volumes"]:
            options = memory if self._size and volume["name"] == "data" else []
            docker("volume", "create", *options, self._volume(volume["name"]))
        fill = [f"--volume={self._volume('files')}:/etc/kiln/daemon", *self._mounts(self.pod.daemon, "files")]
        docker("run", "--rm", "--interactive", *fill, "--entrypoint=sh", self.image, "-c",
               f"{stale}; tar -x -C /etc/kiln/daemon", given=archive(self.pod.files))  # fmt: skip
        self.run()

    def run(self) -> None:
        self.launch(f"--name={self.name}", "--memory=400m", f"--network={self.name}")
        until(self.ready, 60)

    def launch(self, *options: str) -> str:
        """Starts a container with the daemon's command, and returns its id."""
        container = self.pod.daemon
        command: list[str] = [*container["command"], *container.get("args", [])]
        program, *arguments = command
        around = ["--privileged", *environment(container), *self._mounts(container), f"--entrypoint={program}"]
        return docker("run", "--detach", *options, *around, self.image, *arguments).strip()

    def _volume(self, name: str) -> str:
        return f"{self.name}-{name}"

    def _mounts(self, container: Mapping[str, Any], *without: str) -> Iterator[str]:
        paths = {one["name"]: one.get("hostPath", {}).get("path") for one in self.pod.spec["volumes"]}
        for mount in container["volumeMounts"]:
            name, mode = mount["name"], ":ro" if mount.get("readOnly") else ""
            if name in without:
                continue
            if paths[name] and paths[name].startswith(f"{paths['data']}/"):
                inside = paths[name].removeprefix(paths["data"])
                yield f"--volume={self._folder(self._volume('data'))}{inside}:{mount['mountPath']}{mode}"
            elif container is self.pod.daemon or paths[name] or name == "files":
                yield f"--volume={self._volume(name)}:{mount['mountPath']}{mode}"
            else:
                yield f"--tmpfs={mount['mountPath']}"

    def _folder(self, volume: str) -> str:
        return docker("volume", "inspect", "--format={{.Mountpoint}}", volume).strip()

    def ready(self) -> bool:
        """Runs the command of the readiness probe."""
        command = self.pod.daemon["readinessProbe"]["exec"]["command"]
        done = subprocess.run(["docker", "exec", self.name, *command], check=False, capture_output=True)
        return done.returncode == 0

    def sh(self, script: str, *options: str, given: bytes | None = None) -> str:
        return docker("exec", "--interactive", *options, self.name, "sh", "-euc", script, given=given)

    def quiet(self) -> bool:
        command = ["docker", "exec", self.name, "flock", "-n", "-x", LOCK, "true"]
        return subprocess.run(command, check=False).returncode == 0

    @contextmanager
    def building(self) -> Iterator[None]:
        """A builder of this node, as far as the daemon can see."""
        held = "echo $$ >/tmp/builder; exec sleep 300"
        docker("exec", "--detach", "--user=1000:1000", self.name, "flock", "-s", LOCK, "sh", "-c", held)
        until(lambda: not self.quiet(), 20)
        try:
            yield
        finally:
            self.sh("kill $(cat /tmp/builder)")

    def pruning(self, *arguments: str) -> AbstractContextManager[str]:
        """The pod's second container, with other arguments. Gives the container's name."""
        return self.beside(self.pod.prune, *arguments)

    @contextmanager
    def beside(self, container: Mapping[str, Any], *arguments: str) -> Iterator[str]:
        """Another container of the pod, with other arguments. Gives the container's name."""
        name = f"{self.name}-{container['name']}"
        security = container["securityContext"]
        user = f"--user={security['runAsUser']}:{security['runAsGroup']}"
        options = [user, "--read-only", "--cap-drop=ALL", *environment(container), f"--name={name}"]
        program, *script = container["command"]
        command = [f"--entrypoint={program}", self.image, *script, *arguments]
        docker("run", "--detach", *options, *self._mounts(container), *command)
        try:
            yield name
            docker("stop", "--time=20", name)
            assert docker("inspect", "--format={{.State.ExitCode}}", name).strip() == "0"
        finally:
            docker("rm", "--force", name)

    def stop(self) -> None:
        """Stops it as the kubelet does, after the hook."""
        docker("stop", "--time=40", self.name)
        assert docker("inspect", "--format={{.State.ExitCode}}", self.name).strip() == "0"
        docker("rm", self.name)

    def restart_during_a_build(self) -> None:
        """Stops it as the kubelet does, and sees that it waits for the build; then starts it again."""
        hook = self.pod.daemon["lifecycle"]["preStop"]["exec"]["command"]
        with self.building():
            stopping = subprocess.Popen(["docker", "exec", self.name, *hook])
            with pytest.raises(subprocess.TimeoutExpired):
                stopping.wait(2)
        assert stopping.wait(20) == 0
        self.stop()
        self.run()

    def meet_another(self) -> None:
        """Starts another one on the same data: a pod that was deleted by force may run on. It waits for the end of this
        one, which serves on."""
        second = self.launch()
        try:
            logs = ["docker", "logs", second]
            until(lambda: b"waiting for its end" in subprocess.run(logs, check=True, capture_output=True).stderr, 20)
            assert self.ready()
        finally:
            docker("rm", "--force", second)

    def close(self) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", self.name], check=False, capture_output=True)
        volumes = [self._volume(volume["name"]) for volume in self.pod.spec["volumes"]]
        subprocess.run(["docker", "volume", "rm", "--force", *volumes], check=False, capture_output=True)
        subprocess.run(["docker", "network", "rm", self.name], check=False, capture_output=True)


def archive(files: Mapping[str, str]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return held.getvalue()


def have(image: str) -> None:
    """The image, from this machine or from its registry; otherwise the test is skipped."""
    for command in (["image", "inspect", image], ["pull", image]):
        done = subprocess.run(["docker", *command], check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
    pytest.skip(f"{image} is not here and cannot be pulled: {done.stderr.strip()}")


def busybox() -> bytes:
    return subprocess.run(["docker", "save", "busybox:latest"], check=True, capture_output=True).stdout
