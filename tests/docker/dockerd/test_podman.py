"""Podman as the chart's daemon: its start over old remains, the rights of its steps, and the upkeep of its disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.docker.dockerd import pod
from tests.docker.dockerd.pod import LOCK, MIB, Pod, busybox, docker, have
from tests.parts import podman
from tests.parts.kiln import until

pytestmark = pytest.mark.slow

ASK = "podman --url unix:///run/kiln/podman.sock"
FROM = "FROM localhost/busybox:latest\n"
NEVER = str(10**12)
"""Bytes that no image here reaches."""


class Daemon(pod.Daemon):
    def __init__(self, size: int | None = None) -> None:
        super().__init__(Pod.rendered("podman"), podman.build(), size)

    def build(self, dockerfile: str, *options: str, otherwise: str = "false") -> str:
        """Builds as builders do: through the socket, as uid 1000. `otherwise` is the command to run after a failure."""
        build = f"{ASK} build --cgroup-parent=/kiln/1 {' '.join(options)} . 2>&1"
        script = f"cd $(mktemp -d); cat >Dockerfile; {build} || {otherwise}"
        return self.sh(script, "--user=1000:1000", "--env=HOME=/tmp", given=dockerfile.encode())

    def images(self) -> set[str]:
        """The names of images, and the ids of those without a name."""
        return {*self.sh(f"{ASK} images --all --format '{{{{.Repository}}}} {{{{.ID}}}}'").split()} - {"<none>"}

    def bytes(self) -> int:
        """The size of its storage. While Podman removes an image it cannot say: then more than any limit here."""
        return sum(map(int, self.sh(f"{ASK} system df --format '{{{{.RawSize}}}}' || echo {NEVER}").split()))

    def full(self) -> int:
        """The used part of its disk, in percent."""
        return int(self.sh("df -P /var/lib/containers | awk 'NR == 2 { print $5 + 0 }'"))

    def containers(self) -> list[str]:
        return self.sh(f"{ASK} ps --all --external --quiet").split()

    def step(self, seconds: str) -> None:
        """Begins a build, and returns when its step sleeps."""
        begin = f"cd $(mktemp -d); echo '{FROM.strip()}\nRUN sleep {seconds}' >Dockerfile; exec {ASK} build ."
        docker("exec", "--detach", self.name, "sh", "-c", begin)
        until(lambda: self.runs(seconds), 30)

    def runs(self, seconds: str) -> bool:
        shown = self.sh("for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$file || true; echo; done 2>/dev/null")
        return f"sleep {seconds}" in [line.strip() for line in shown.splitlines()]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    have("busybox:latest")
    with closing(Daemon()) as daemon:
        stale = "mkdir -p /run/kiln/podman.sock/folder; echo secret >/var/tmp/auth.json.1; echo secret >/var/tmp/.auth"
        daemon.start(stale)
        daemon.sh(f"{ASK} load --quiet", given=busybox())
        yield daemon


def test_it_starts_over_what_a_crash_left_and_lets_builders_in(daemon: Daemon) -> None:
    assert daemon.sh("stat -c '%a %u:%g %F' /run/kiln/podman.sock").strip() == "660 0:1000 socket"
    assert daemon.sh(f"{ASK} version --format '{{{{.Server.Version}}}}'", "--user=1000:1000", "--env=HOME=/tmp").strip()
    assert daemon.sh(f"stat -c %a {LOCK}").strip() == "444"
    assert daemon.sh("grep -rl secret /var/tmp || true").strip() == "", "credentials of pushes"


def test_it_listens_nowhere_but_on_the_socket(daemon: Daemon) -> None:
    listening = daemon.sh("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == \"0A\" { print $2 }'").split()
    ours = [one for one in listening if not one.startswith("0B00007F:")]  # Docker's own resolver, of this test
    assert ours == []


def test_packets_of_a_step_fit_through_the_pod_s_interface(daemon: Daemon) -> None:
    assert "\n1400\n" in daemon.build(f"{FROM}RUN cat /sys/class/net/eth0/mtu\n", "--no-cache")


def test_a_step_s_memory_is_the_pod_s_and_the_daemon_outlives_it(daemon: Daemon) -> None:
    before = daemon.sh("pidof podman")
    greedy = f"{FROM}RUN head -c 700m /dev/zero | tail >/dev/null || true; echo went on\n"
    assert "Killed" in daemon.build(greedy, "--no-cache")
    assert daemon.ready()
    assert {*before.split()} <= {*daemon.sh("pidof podman").split()}


def test_a_step_is_in_the_group_that_its_builder_named(daemon: Daemon) -> None:
    """The group identifies the step, so that it can be ended when the builder is gone."""
    lines = daemon.build(f"{FROM}RUN cat /proc/self/cgroup\n", "--no-cache").splitlines()
    assert any(line.endswith("/kiln/1") for line in lines)


def test_repositories_share_no_cache_mount(daemon: Daemon) -> None:
    with pytest.raises(AssertionError):
        daemon.build(f"{FROM}RUN --mount=type=cache,target=/cache echo poison >/cache/file\n", "--no-cache")


def filled(number: int) -> str:
    return f"{FROM}RUN head -c {20 * MIB} /dev/urandom >/{number}\n"


def test_images_over_their_limit_go_oldest_first_and_never_one_that_is_used(daemon: Daemon) -> None:
    daemon.build(filled(0), "--tag=localhost/named")
    for number in range(1, 4):
        daemon.build(filled(number))
    limit = str(50 * MIB)
    assert int(limit) < daemon.bytes() < int(NEVER)
    daemon.sh("rm -f /var/lib/containers/ballast/ballast")
    with daemon.building(), daemon.pruning("1", limit, "100"):
        until(lambda: daemon.sh("ls /var/lib/containers/ballast").split() == ["ballast", "bytes"], 60)  # has looked
        assert "localhost/named" in daemon.images(), "a build may push it"
    with daemon.pruning("1", limit, "100"):
        until(lambda: daemon.bytes() <= int(limit), 60)
    daemon.sh(f"{ASK} load --quiet", given=busybox())


def test_what_killed_builders_leave_goes_once_no_build_runs(daemon: Daemon) -> None:
    daemon.build(f"{FROM}RUN echo {MIB} >/made\n", "--tag=localhost/kiln-0123:private")
    daemon.sh(f"{ASK} create --name left localhost/busybox:latest true")
    with daemon.building(), daemon.pruning("1", NEVER, "100"), pytest.raises(AssertionError):
        until(lambda: not daemon.containers(), 5)
    with daemon.pruning("1", NEVER, "100"):
        until(lambda: not daemon.containers(), 20)
        until(lambda: "localhost/kiln-0123" not in daemon.images(), 20)
    assert "Using cache" in daemon.build(f"{FROM}RUN echo {MIB} >/made\n"), "its layers stay"


def test_it_waits_for_builds_and_ends_and_starts_again_with_what_it_had(daemon: Daemon) -> None:
    daemon.build("FROM scratch\nLABEL a=b\n", "--tag=localhost/kept")
    daemon.restart_during_a_build()
    assert "localhost/kept" in daemon.images()


def test_two_of_them_do_not_share_a_folder_of_data(daemon: Daemon) -> None:
    daemon.meet_another()


def test_after_a_crash_nothing_is_left_of_its_steps_and_its_images_are_there(daemon: Daemon) -> None:
    daemon.step("4711")
    assert daemon.containers()
    docker("rm", "--force", daemon.name)
    daemon.run()
    assert daemon.containers() == []
    assert "localhost/busybox" in daemon.images()
    assert not daemon.runs("4711")


def test_with_a_storage_that_cannot_be_read_it_begins_anew(daemon: Daemon) -> None:
    daemon.sh("echo '{' >/var/lib/containers/storage/overlay-layers/layers.json")
    docker("rm", "--force", daemon.name)
    daemon.run()
    assert daemon.images() == set()
    daemon.sh(f"{ASK} load --quiet", given=busybox())
    assert "went on" in daemon.build(f"{FROM}RUN echo went on\n")


# A disk that fills up. ------------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Iterator[Daemon]:
    with closing(Daemon(size=240)) as daemon:
        daemon.start(":")
        daemon.sh(f"{ASK} load --quiet", given=busybox())
        yield daemon


def test_from_a_disk_without_a_byte_left_it_comes_back_by_itself(small: Daemon) -> None:
    with small.pruning("1", NEVER, "80"):
        until(lambda: bool(small.sh("find /var/lib/containers/ballast -size +60M")), 20)
        with small.building():
            full = small.build(f"{FROM}RUN head -c 500m /dev/urandom >/fill\n", otherwise="true")
            assert "no space left on device" in full.lower()
        until(lambda: small.full() < 80, 30)
        small.sh(f"{ASK} load --quiet", given=busybox())
        with small.building():
            assert "went on" in small.build(f"{FROM}RUN echo went on\n")
        until(lambda: bool(small.sh("find /var/lib/containers/ballast -size +60M")), 20)
