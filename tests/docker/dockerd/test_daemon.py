"""The Docker daemon of the chart. Only the limit of its cache is another, so that it is reached."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.docker.dockerd import pod
from tests.docker.dockerd.pod import LOCK, MIB, Pod, busybox, docker, have
from tests.parts.kiln import until

pytestmark = pytest.mark.slow

LIMIT = 50


def small_cache(files: dict[str, str]) -> None:
    assert '"30GB"' in files["daemon.json"]
    files["daemon.json"] = files["daemon.json"].replace('"30GB"', f'"{LIMIT}MB"')


class Daemon(pod.Daemon):
    def build(self, dockerfile: str, *options: str) -> str:
        """Builds as builders do: by BuildKit, as uid 1000."""
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


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    rendered = Pod.rendered("daemon", small_cache)
    daemon = Daemon(rendered, rendered.daemon["image"])
    have(daemon.image)
    have("busybox:latest")
    try:
        # As after a crash, and after a client that came before there was a socket.
        daemon.start("mkdir /run/kiln/docker.sock; mkdir -p /run/docker; echo 1 >/run/docker/docker.pid")
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
        until(lambda: daemon.cache() <= LIMIT * MIB, 90, slowest=3)
    daemon.build("FROM busybox:latest\nRUN true\n", "--output=type=cacheonly")
    until(lambda: daemon.cache() <= LIMIT * MIB, 120, slowest=3)


def test_images_go_once_no_build_runs(daemon: Daemon) -> None:
    daemon.sh("docker load", given=busybox())
    daemon.build("FROM busybox:latest\nRUN echo made >/made\n", "--tag=built")
    # The cleaner looks every second: what it left alone for this long it leaves alone.
    with daemon.building(), daemon.pruning("1", "0s", "100"), pytest.raises(AssertionError):
        until(lambda: "built" not in daemon.images(), 5)
    with daemon.pruning("1", "0s", "100"):
        until(lambda: "built" not in daemon.images(), 20)
    assert daemon.cache() > 0


def test_a_full_disk_takes_images_and_cache_whatever_runs(daemon: Daemon) -> None:
    daemon.sh("docker load", given=busybox())
    daemon.build("FROM busybox:latest\nRUN head -c 1m /dev/urandom >/made\n", "--tag=built")
    assert daemon.cache() > 0
    with daemon.building(), daemon.pruning("1", "0s", "1"):
        until(lambda: "built" not in daemon.images() and daemon.cache() == 0, 30)


def test_it_waits_for_builds_and_ends_and_starts_again_with_what_it_had(daemon: Daemon) -> None:
    daemon.build("FROM scratch\nLABEL a=b\n", "--tag=kept")
    daemon.restart_during_a_build()
    assert "kept" in daemon.images()


def test_two_of_them_do_not_share_a_folder_of_data(daemon: Daemon) -> None:
    daemon.meet_another()


@contextmanager
def registry_of(daemon: Daemon) -> Iterator[str]:
    """A registry that the daemon has on its loopback, with a busybox as `localhost:5000/base:1`. Gives its name."""
    name = f"{daemon.name}-registry"
    have("registry:2")
    docker("run", "--detach", f"--name={name}", f"--network=container:{daemon.name}", "registry:2")
    try:
        daemon.sh("docker load && docker tag busybox:latest localhost:5000/base:1", given=busybox())
        push = ["docker", "exec", daemon.name, "docker", "push", "localhost:5000/base:1"]
        until(lambda: subprocess.run(push, check=False, capture_output=True).returncode == 0, 30)
        daemon.sh("docker image rm localhost:5000/base:1 && docker builder prune --all --force")
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def test_layers_of_base_images_are_there_before_a_build_needs_them(daemon: Daemon) -> None:
    """An image that cannot be pulled is reported, and delays no other image."""
    build = "FROM localhost:5000/base:1\nRUN echo $$\n"
    images = ["localhost:5000/gone:1", "localhost:5000/base:1"]
    with registry_of(daemon) as registry, daemon.beside(daemon.pod.prepull, "3600", "1", *images) as name:
        logs = ["docker", "logs", name]

        def said() -> str:
            done = subprocess.run(logs, check=True, capture_output=True)
            return (done.stdout + done.stderr).decode()

        until(lambda: "The layers of localhost:5000/base:1 are here" in said(), 60)
        assert "localhost:5000/gone:1 could not be got: retrying in 1 s" in said()
        assert "localhost:5000/base" not in daemon.images(), "each build asks the registry what the name stands for"
        docker("exec", registry, "sh", "-c", "find /var/lib/registry -name data -size +100k -delete")
        daemon.build(build, "--output=type=cacheonly")
