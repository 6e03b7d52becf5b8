"""`kiln doctor` reports every problem of a machine with its remedy, and one problem hides no other.

`tests/docker/test_online.py` tests its checks of registries, Git hosts and sinks.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kiln import wiring
from kiln.doctor import Finding, FindingState, Probe, clock, cluster, examine, machine, outside, server, setup, webhooks
from kiln.target import Target
from tests.builds.engine_factories import new_submission
from tests.parts.authority import make_authority
from tests.parts.kiln import Kiln

CANARY = "canary-5e11"
MIN = 60.0


def found(probe: Probe) -> Finding:
    (finding,) = examine([probe])
    return finding


def run(look: Callable[[], str]) -> Finding:
    return found(Probe("it", look))


def failed(finding: Finding, cause: str, cure: str, state: FindingState = FindingState.FAILED) -> None:
    assert finding.state is state, finding
    assert cause in finding.found, finding
    assert cure in str(finding.cure), finding


# The examination -----------------------------------------------------------------------------------------------------


def test_a_probe_that_hangs_or_breaks_keeps_none_from_its_finding() -> None:
    def breaks() -> str:
        raise ValueError(CANARY)

    probes = [
        Probe("hangs", lambda: str(threading.Event().wait())),
        Probe("breaks", breaks),
        Probe("works", lambda: "x"),
    ]
    hangs, broken, works = examine(probes, limit=0.5)
    failed(hangs, "did not end within 0.5 s", "firewall")
    failed(broken, "ValueError", "Report this")
    assert CANARY not in str(broken)
    assert (works.state, works.found) == (FindingState.OK, "x")


def test_what_others_say_steers_no_terminal() -> None:
    assert run(lambda: "a\x1b[31mb\nc\x07") == Finding(probe="it", state=FindingState.OK, found="ab c")


# Programs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that creates a program with fixed output. PATH holds only these programs and `sh`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to(str(shutil.which("sh")))
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, said: str, status: int = 0) -> None:
        (folder / name).write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
        (folder / name).chmod(0o755)

    return make


def test_git(programs: Callable[..., None]) -> None:
    failed(run(machine.git), "`git --version` cannot be run", "Install git 2.38 or newer")
    programs("git", "git version 2.37.9 (Apple Git-154)")
    failed(run(machine.git), "git version 2.37.9", "Upgrade git to 2.38 or newer")
    programs("git", "git version 2.38.0")
    assert run(machine.git).state is FindingState.OK


def test_buildx(programs: Callable[..., None]) -> None:
    failed(run(machine.buildx), "`docker buildx version` cannot be run", "Install Docker Engine")
    programs("docker", "docker: unknown command: docker buildx", 1)
    failed(run(machine.buildx), "unknown command", "buildx plugin (the package")
    programs("docker", "github.com/docker/buildx v0.12.1 30feaa1")
    failed(run(machine.buildx), "v0.12.1", "Upgrade Docker's buildx plugin to 0.13 or newer")
    programs("docker", "github.com/docker/buildx v0.21.2 1360a9e")
    assert run(machine.buildx).state is FindingState.OK


# The daemon ----------------------------------------------------------------------------------------------------------


class _Ping(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nOK")


@contextmanager
def daemon(path: Path) -> Iterator[str]:
    """A daemon on a Unix socket that answers only the ping."""
    with socketserver.ThreadingUnixStreamServer(str(path), _Ping) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"unix://{path}"
        server.shutdown()


def test_no_daemon(programs: Callable[..., None], tmp_path: Path) -> None:
    look = partial(machine.daemon, "docker", f"unix://{tmp_path}/docker.sock")
    failed(run(look), "does not answer: No such file", "Install Docker Engine")
    programs("docker", "Docker version 28")
    failed(run(look), "does not answer: No such file", "Start the Docker daemon")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/docker.sock")
    failed(run(look), "does not answer: Connection refused", "Start the Docker daemon")
    failed(run(partial(machine.daemon, "podman", "unix:///nonexistent.sock")), "Podman service", "podman")


def test_a_socket_that_this_user_may_not_use(tmp_path: Path) -> None:
    with daemon(tmp_path / "docker.sock") as address:
        (tmp_path / "docker.sock").chmod(0o000)
        let_in(tmp_path)
        with nobody():
            finding = run(partial(machine.daemon, "docker", address))
    failed(finding, "does not answer: Permission denied", "usermod -aG docker USER")


def let_in(folder: Path) -> None:
    """Make the folder accessible to every user, as far as this user may change the modes."""
    for one in (folder, *folder.parents):
        if not one.stat().st_mode & 0o001:
            one.chmod(one.stat().st_mode | 0o011)


@contextmanager
def nobody() -> Iterator[None]:
    """Run the context as an unprivileged user if this process is root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


# Disks ---------------------------------------------------------------------------------------------------------------


def on_a_disk(options: str, folder: Path, command: list[str], **environment: str) -> dict[str, Finding]:
    """Return the command's findings by probe while `folder` is a file system of its own.

    The file system disappears with the process.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    folder.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o {options} tmpfs {folder} && exec "$@"'
    with Kiln(folder.parent) as kiln:
        kiln.settings |= environment
        done = kiln_run(["unshare", *user, "--mount", "sh", "-c", script, "sh", *command], kiln.environment)
    return {one.probe: one for one in done}


def kiln_run(command: list[str], environment: Mapping[str, str]) -> list[Finding]:
    done = subprocess.run(command, env=environment, capture_output=True, timeout=100, check=False)
    assert done.returncode == 1, done
    assert CANARY.encode() not in done.stdout + done.stderr
    return msgspec.convert(json.loads(done.stdout)["findings"], list[Finding])


DOCTOR = [sys.executable, "-m", "kiln", "doctor", "--json"]


def test_full_disks(tmp_path: Path, programs: Callable[..., None]) -> None:
    """The disks of the daemon and of the records are both reported, and the other probes still run."""
    disk = tmp_path / "disk"
    programs("docker", f"28.2.2 {disk}")
    programs("git", "git version 2.37.9")
    os.environ["PATH"] += f":{os.defpath}"
    with daemon(tmp_path / "docker.sock") as address:
        settings = {
            "KILN_DOCKER_HOST": address,
            "KILN_STATE_DIR": str(disk),
            "KILN_IMAGE_PREFIX": f"127.0.0.1:1/{CANARY[:6]}/",
        }
        said = on_a_disk("size=1m", disk, DOCTOR, **settings)
    failed(said["docker daemon"], f"The disk of {disk} is full", "docker system prune")
    failed(said["state folder"], f"The disk of {disk} is full", "KILN_STATE_DIR")
    failed(said["git"], "2.37.9", "Upgrade git")
    failed(said["registry 127.0.0.1:1/canary/"], "Connection refused", "Start the registry")
    assert said["configuration"].state is FindingState.OK


def test_a_disk_without_inodes(tmp_path: Path) -> None:
    """An invalid setting is one more finding, and the other probes still run."""
    disk = tmp_path / "disk"
    said = on_a_disk(
        "size=200m,nr_inodes=20", disk, DOCTOR, KILN_STATE_DIR=f"{disk}/state", KILN_BUILDS_PER_NODE="many"
    )
    failed(said["configuration"], "KILN_BUILDS_PER_NODE", "kiln check")
    failed(said["state folder"], "no free inodes", "Delete files")
    assert {"git", "docker buildx"} <= {*said}


def test_a_state_folder_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with nobody():
        finding = run(partial(setup.state_folder, tmp_path / "state"))
    tmp_path.chmod(0o755)
    assert finding.state is FindingState.FAILED
    assert "KILN_STATE_DIR" in str(finding.cure)


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(CANARY)
    (tmp_path / "token").chmod(0o644)
    finding = run(partial(setup.state_folder, tmp_path))
    failed(finding, "only its owner can read", "Remove the file")
    assert CANARY not in str(finding)


# An installation -----------------------------------------------------------------------------------------------------


def loaded(folder: Path, **settings: str) -> wiring.Kiln:
    state = {"KILN_IMAGE_PREFIX": "registry.invalid/org/", "KILN_STATE_DIR": str(folder / "state")}
    return wiring.load(state | settings)


def test_secrets_that_others_can_read(tmp_path: Path) -> None:
    secret = tmp_path / "secrets/webhooks/github/one"
    secret.parent.mkdir(parents=True)
    secret.write_text(CANARY)
    (tmp_path / "secrets").chmod(0o755)
    let_in(tmp_path)
    look = next(one for one in setup.probes(loaded(tmp_path, KILN_SECRETS_DIR=str(tmp_path / "secrets"))))
    failed(found(look), str(secret), f"chmod -R o= {tmp_path / 'secrets'}", FindingState.WARNING)
    (tmp_path / "secrets").chmod(0o700)
    assert found(look).found == "webhooks of github; API tokens: 0"


def test_the_last_webhook_of_each_host(tmp_path: Path) -> None:
    for word in ("github", "gitlab"):
        (tmp_path / "secrets/webhooks" / word).mkdir(parents=True)
        (tmp_path / "secrets/webhooks" / word / "one").write_text(f"{CANARY}-{word}")
    kiln = loaded(tmp_path, KILN_SECRETS_DIR=str(tmp_path / "secrets"), KILN_PUBLIC_URL="http://127.0.0.1:8000")
    for finding in examine([*webhooks.probes(kiln)]):
        failed(
            finding,
            "No build has been asked for by a webhook",
            "http://127.0.0.1:8000/webhooks/git",
            FindingState.WARNING,
        )
    assert not (tmp_path / "state").exists(), "looking makes no records"
    wiring.records(kiln).accept([new_submission(by="webhook:github"), new_submission("c", "2", by="token:a")])
    github, gitlab = examine([*webhooks.probes(kiln)])
    assert (github.state, gitlab.state) == (FindingState.OK, FindingState.WARNING)
    assert "2026-03-01 12:00 UTC" in github.found
    assert "/test" in github.found


# Other hosts ---------------------------------------------------------------------------------------------------------


class Dated(BaseHTTPRequestHandler):
    """A host whose clock is `ahead` seconds fast; it answers every request with a 401."""

    ahead = 0.0

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 (as the library calls it)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate((timestamp or time.time()) + self.ahead, usegmt=True)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def host(ahead: float = 0.0, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Its port."""
    handler = type("Handler", (Dated,), {"ahead": ahead})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("ahead", "state", "words"),
    [
        (0, FindingState.OK, "within 2 s"),
        (10 * MIN, FindingState.FAILED, "10 min behind"),
        (-10 * MIN, FindingState.FAILED, "10 min ahead of"),
        (2 * MIN, FindingState.WARNING, " s behind"),
    ],
)
def test_the_clock(tmp_path: Path, ahead: float, state: FindingState, words: str) -> None:
    with host(ahead) as port:
        kiln = loaded(tmp_path, KILN_IMAGE_PREFIX=f"127.0.0.1:{port}/org/")
        (look,) = clock.probes(kiln)
        finding = found(look)
    assert finding.state is state, finding
    assert words in finding.found
    assert state is FindingState.OK or "NTP" in str(finding.cure)


def test_the_clock_s_request_is_alone_and_has_no_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It verifies no certificate, so other hosts could read it. The host that a redirect names has another clock."""
    (tmp_path / "netrc").write_text(f"default login ada password {CANARY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    heads: list[tuple[str, str | None]] = []

    class Redirecting(Dated):
        def do_HEAD(self) -> None:
            heads.append((self.path, self.headers["Authorization"]))
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        assert found(clock.probe([f"http://127.0.0.1:{server.server_port}"])).state is FindingState.OK
        server.shutdown()
    assert heads == [("/", None)]


def test_the_clock_of_one_host_among_others() -> None:
    with host() as right, host(10 * MIN) as wrong:
        finding = found(clock.probe([f"http://127.0.0.1:{right}", f"http://127.0.0.1:{wrong}", "http://127.0.0.1:1"]))
    failed(finding, f"127.0.0.1:{wrong}", "Have the clock of the named host set", FindingState.WARNING)


def test_a_registry_that_speaks_plain_http(tmp_path: Path) -> None:
    """Loopback may use plain HTTP; this is another address of this machine."""
    with host() as port:
        kiln = loaded(tmp_path, KILN_IMAGE_PREFIX=f"0.0.0.0:{port}/org/")
        (look,) = (probe for probe in outside.probes(kiln) if probe.name.startswith("registry"))
        failed(found(look), "could not be reached", f"add '0.0.0.0:{port}' to insecure_registries")


def test_a_registry_whose_authority_this_machine_does_not_trust(tmp_path: Path) -> None:
    make_authority(tmp_path, "IP:0.0.0.0")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "host.pem", tmp_path / "host.key")
    with host(tls=context) as port:
        kiln = loaded(tmp_path, KILN_IMAGE_PREFIX=f"0.0.0.0:{port}/org/")
        (look,) = (probe for probe in outside.probes(kiln) if probe.name.startswith("registry"))
        failed(found(look), "certificate", "Add the registry's certificate authority")
        assert found(*clock.probes(kiln)).state is FindingState.OK, (
            "an unknown certificate does not keep the time from being read"
        )


# A server ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiln]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "secrets/api-tokens").mkdir(parents=True)
    (folder / "secrets/api-tokens/ada").write_text(CANARY)
    with Kiln(
        folder, KILN_AUTH="token", KILN_SECRETS_DIR=str(folder / "secrets"), KILN_IMAGE_PREFIX="127.0.0.1:1/a/"
    ) as kiln:
        kiln.start("web")
        yield kiln


def seen(url: object, token: str | None = None) -> dict[str, Finding]:
    findings = {one.probe: one for one in server.findings(Target(server=str(url), token=token))}
    assert CANARY not in str(findings)
    return findings


def test_a_server(web: Kiln) -> None:
    url = web.processes[0].url
    good = seen(url, CANARY)
    assert [good[name].state for name in ("server", "token", "version", "clock")] == [FindingState.OK] * 4, good
    failed(good["readiness"], "Docker registry", "on the server's machine")
    failed(seen(url, "other")["token"], "token", "Ask the server's operator")
    failed(seen(url)["token"], "token", "Give an API token")
    failed(seen("http://127.0.0.1:1/")["server"], "does not answer", "Correct KILN_SERVER")
    with host() as port:
        failed(seen(f"http://127.0.0.1:{port}/")["server"], "401", "base path")


def test_a_table_for_people(web: Kiln) -> None:
    done = web.run("doctor", KILN_SERVER=str(web.processes[0].url), KILN_TOKEN=CANARY)
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["STATE", "PROBE", "FOUND", "WHAT", "TO", "DO"]
    assert [line.split()[:2] for line in lines] == [
        ["ok", "server"],
        ["ok", "token"],
        ["ok", "version"],
        ["failed", "readiness"],
        ["ok", "clock"],
    ]


# The chart -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["web", "controller"])
def test_the_permissions_that_are_looked_for_are_those_of_the_chart(process: Any) -> None:
    text = (Path(__file__).parents[2] / "chart/templates/roles.yaml").read_text().partition("{{- range")[0]
    lines = [line for line in text.splitlines() if "{{-" not in line and "metadata:" not in line]
    roles = [
        one for one in yaml.safe_load_all("\n".join(lines).replace("{{ $lease }}", "own")) if one and "rules" in one
    ]
    role = roles[["web", "controller"].index(process)]
    given = {
        (group, resource, *sorted(rule["verbs"]), "resourceNames" in rule)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert {(need.group, need.resource, *sorted(need.verbs), need.own) for need in cluster.NEEDS[process]} == given
