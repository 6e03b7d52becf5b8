"""The daemon of the chart, as its pod would start it: same image, command, files and configuration, in Docker.

What it is started with is read from the rendered chart. Only the limit of the cache is another, so that it is reached.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts.kiln import until

pytestmark = pytest.mark.slow

RENDERED = Path(__file__).parents[2] / "cluster" / "chart" / "golden" / "daemon.yaml"
LOCK = "/run/kiln/builds.lock"
LIMIT, MIB = 50, 2**20


def rendered() -> tuple[dict[str, Any], dict[str, str]]:
    """The DaemonSet's pod, and its files."""
    objects = [one for one in yaml.safe_load_all(RENDERED.read_text()) if one]
    [daemons] = [one for one in objects if one["kind"] == "DaemonSet"]
    [files] = [one["data"] for one in objects if one["kind"] == "ConfigMap" and "daemon.json" in one.get("data", {})]
    pod = daemons["spec"]["template"]["spec"]
    before = files["daemon.json"]
    assert '"30GB"' in before
    files["daemon.json"] = before.replace('"30GB"', f'"{LIMIT}MB"')
    for container in pod["containers"]:
        held = [part.replace(digest(before), digest(files["daemon.json"])) for part in container["command"]]
        assert held != container["command"], "it holds its files against digests"
        container["command"] = held
    return pod, files


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


POD, FILES = rendered()


def docker(*arguments: str, given: bytes | None = None) -> str:
    done = subprocess.run(["docker", *arguments], input=given, check=False, capture_output=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr.decode()}"
    return done.stdout.decode()


def environment(container: dict[str, Any]) -> list[str]:
    return [f"--env={one['name']}={one['value']}" for one in container["env"]]


class Daemon:
    """A container like the daemon's, with 400 MiB of memory, in a network with small packets."""

    def __init__(self, name: str) -> None:
        self.name = name
        container = POD["containers"][0]
        self.image: str = container["image"]
        self.command: list[str] = [*container["command"], *container["args"]]
        self.paths = [it["mountPath"] for it in container["volumeMounts"] if it["mountPath"] != "/etc/kiln/dockerd"]

    def start(self) -> None:
        docker("network", "create", "--opt=com.docker.network.driver.mtu=1400", self.name)
        for path in [*self.paths, "/etc/kiln/dockerd"]:
            docker("volume", "create", self.volume(path))
        # As after a crash, and after a client that came before there was a socket.
        stale = "mkdir /run/kiln/docker.sock; mkdir -p /run/docker; echo 1 >/run/docker/docker.pid"
        options = ["--interactive", f"--volume={self.volume('/etc/kiln/dockerd')}:/etc/kiln/dockerd"]
        docker("run", "--rm", *options, *self.mounts(), "--entrypoint=sh", self.image, "-c",
               f"{stale}; tar -x -C /etc/kiln/dockerd", given=archive(FILES))  # fmt: skip
        self.run()

    def run(self) -> None:
        options = [
            "--privileged",
            "--memory=400m",
            f"--network={self.name}",
            *environment(POD["containers"][0]),
            *self.mounts(),
        ]
        options.append(f"--volume={self.volume('/etc/kiln/dockerd')}:/etc/kiln/dockerd:ro")
        program, *arguments = self.command
        docker("run", "--detach", f"--name={self.name}", *options, f"--entrypoint={program}", self.image, *arguments)
        until(self.ready, 60)

    def volume(self, path: str) -> str:
        return f"{self.name}{path.replace('/', '-')}"

    def mounts(self) -> list[str]:
        return [f"--volume={self.volume(path)}:{path}" for path in self.paths]

    def ready(self) -> bool:
        """What the readiness probe asks."""
        command = POD["containers"][0]["readinessProbe"]["exec"]["command"]
        done = subprocess.run(["docker", "exec", self.name, *command], check=False, capture_output=True)
        return done.returncode == 0

    def sh(self, script: str, *options: str, given: bytes | None = None) -> str:
        return docker("exec", "--interactive", *options, self.name, "sh", "-euc", script, given=given)

    def build(self, dockerfile: str, *options: str) -> str:
        """As builders do: by BuildKit, as uid 1000."""
        script = f"docker build --progress=plain {' '.join(options)} - 2>&1"
        return self.sh(script, "--user=1000:1000", "--env=HOME=/tmp", given=dockerfile.encode())

    def cache(self) -> int:
        """Bytes of BuildKit's cache."""
        sizes = self.sh("docker system df --format '{{.Type}} {{.Size}}'").splitlines()
        [size] = [line.split()[-1] for line in sizes if line.startswith("Build Cache")]
        for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("B", 1)):
            if size.endswith(unit):
                return int(float(size.removesuffix(unit)) * factor)
        raise AssertionError(size)

    def images(self) -> set[str]:
        return {*self.sh("docker image ls --format '{{.Repository}}'").split()}

    def close(self) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", self.name], check=False, capture_output=True)
        volumes = [self.volume(path) for path in [*self.paths, "/etc/kiln/dockerd"]]
        subprocess.run(["docker", "volume", "rm", "--force", *volumes], check=False, capture_output=True)
        subprocess.run(["docker", "network", "rm", self.name], check=False, capture_output=True)


def archive(files: dict[str, str]) -> bytes:
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


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon(f"kiln-test-{uuid.uuid4().hex[:8]}")
    have(daemon.image)
    have("busybox:latest")
    try:
        daemon.start()
        daemon.sh("docker load", given=busybox())
        yield daemon
    finally:
        daemon.close()


def test_it_starts_over_what_a_crash_left_and_lets_builders_in(daemon: Daemon) -> None:
    assert daemon.sh("stat -c '%a %u:%g %F' /run/kiln/docker.sock").strip() == "660 0:1000 socket"
    assert daemon.sh("docker info --format '{{.ServerVersion}}'", "--user=1000:1000").strip()
    assert daemon.sh(f"stat -c %a {LOCK}").strip() == "444"


def test_it_listens_nowhere_but_on_the_socket(daemon: Daemon) -> None:
    listening = daemon.sh("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == \"0A\" { print $2 }'").split()
    ours = [one for one in listening if not one.startswith("0B00007F:")]  # Docker's own resolver, of this test
    assert ours == []


def test_packets_of_a_step_fit_through_the_pod_s_interface(daemon: Daemon) -> None:
    shown = daemon.build(
        "FROM busybox:latest\nRUN cat /sys/class/net/eth0/mtu\n", "--no-cache", "--output=type=cacheonly"
    )
    assert " 1400\n" in shown


def test_a_step_s_memory_is_the_pod_s_and_the_daemon_outlives_it(daemon: Daemon) -> None:
    before = daemon.sh("pidof dockerd")
    greedy = "FROM busybox:latest\nRUN head -c 700m /dev/zero | tail >/dev/null || true; echo went on\n"
    shown = daemon.build(greedy, "--no-cache", "--output=type=cacheonly")
    assert "Killed" in shown
    assert daemon.ready()
    assert daemon.sh("pidof dockerd") == before


@pytest.mark.timeout(300)
def test_a_cache_over_its_limit_shrinks(daemon: Daemon) -> None:
    for number in range(4):
        fill = f"FROM busybox:latest\nRUN head -c {40 * MIB} /dev/urandom >/{number}\n"
        daemon.build(fill, "--output=type=cacheonly")
    assert daemon.cache() > 2 * LIMIT * MIB
    # BuildKit looks a minute after a build, but not after one that ends while it looks: the next one sees to that.
    with contextlib.suppress(AssertionError):
        until(lambda: daemon.cache() <= LIMIT * MIB, 90)
    daemon.build("FROM busybox:latest\nRUN true\n", "--output=type=cacheonly")
    until(lambda: daemon.cache() <= LIMIT * MIB, 120)


@contextmanager
def building(daemon: Daemon) -> Iterator[None]:
    """A builder of this node, as far as the daemon can see."""
    held = "echo $$ >/tmp/builder; exec sleep 300"
    docker("exec", "--detach", "--user=1000:1000", daemon.name, "flock", "-s", LOCK, "sh", "-c", held)
    until(lambda: not quiet(daemon), 20)
    try:
        yield
    finally:
        daemon.sh("kill $(cat /tmp/builder)")


def quiet(daemon: Daemon) -> bool:
    command = ["docker", "exec", daemon.name, "flock", "-n", "-x", LOCK, "true"]
    return subprocess.run(command, check=False).returncode == 0


@contextmanager
def pruning(daemon: Daemon, high: int) -> Iterator[str]:
    """The pod's second container, with a short interval; everything counts as old. Gives the container's name."""
    container, name = POD["containers"][1], f"{daemon.name}-prune"
    security = container["securityContext"]
    user = f"--user={security['runAsUser']}:{security['runAsGroup']}"
    options = [user, "--read-only", "--cap-drop=ALL", *environment(container), f"--name={name}"]
    for mount in container["volumeMounts"]:
        path = mount["mountPath"]
        options.append(f"--volume={daemon.volume(path)}:{path}:ro" if mount.get("readOnly") else f"--tmpfs={path}")
    program, *script = container["command"]
    command = [f"--entrypoint={program}", daemon.image, *script, "1", "0s", str(high)]
    docker("run", "--detach", *options, *command)
    try:
        yield name
        docker("stop", "--time=20", name)
        assert docker("inspect", "--format={{.State.ExitCode}}", name).strip() == "0"
    finally:
        docker("rm", "--force", name)


def test_images_go_once_no_build_runs(daemon: Daemon) -> None:
    daemon.sh("docker load", given=busybox())
    daemon.build("FROM busybox:latest\nRUN echo made >/made\n", "--tag=built")
    # The cleaner looks every second: what it left alone for this long it leaves alone.
    with building(daemon), pruning(daemon, high=100), pytest.raises(AssertionError):
        until(lambda: "built" not in daemon.images(), 5)
    with pruning(daemon, high=100):
        until(lambda: "built" not in daemon.images(), 20)
    assert daemon.cache() > 0


def test_a_full_disk_takes_images_and_cache_whatever_runs(daemon: Daemon) -> None:
    daemon.sh("docker load", given=busybox())
    daemon.build("FROM busybox:latest\nRUN head -c 1m /dev/urandom >/made\n", "--tag=built")
    assert daemon.cache() > 0
    with building(daemon), pruning(daemon, high=1):
        until(lambda: "built" not in daemon.images() and daemon.cache() == 0, 30)


def test_it_waits_for_builds_and_ends_and_starts_again_with_what_it_had(daemon: Daemon) -> None:
    daemon.build("FROM scratch\nLABEL a=b\n", "--tag=kept")
    hook = POD["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    with building(daemon):
        stopping = subprocess.Popen(["docker", "exec", daemon.name, *hook])
        with pytest.raises(subprocess.TimeoutExpired):
            stopping.wait(2)
    assert stopping.wait(20) == 0
    docker("stop", "--time=40", daemon.name)
    assert docker("inspect", "--format={{.State.ExitCode}}", daemon.name).strip() == "0"
    docker("rm", daemon.name)
    daemon.run()
    assert "kept" in daemon.images()


def test_two_of_them_do_not_share_a_folder_of_data(daemon: Daemon) -> None:
    """A pod that was deleted by force may run on: the next one waits for its end."""
    options = [*daemon.mounts(), f"--volume={daemon.volume('/etc/kiln/dockerd')}:/etc/kiln/dockerd:ro"]
    program, *arguments = daemon.command
    second = docker("run", "--detach", "--privileged", *options, f"--entrypoint={program}", daemon.image, *arguments)
    try:
        logs = ["docker", "logs", second.strip()]
        until(lambda: b"waiting for its end" in subprocess.run(logs, check=True, capture_output=True).stderr, 20)
        assert daemon.ready()
    finally:
        docker("rm", "--force", second.strip())
