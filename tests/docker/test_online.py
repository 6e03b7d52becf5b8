"""`kiln check --online` runs the probes of `kiln doctor`: their findings about each real part, whole and broken."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kiln import check
from kiln.doctor import findings
from tests.parts import machine
from tests.parts.authority import make_authority
from tests.parts.githost import GitHost
from tests.parts.hubapi import HubApi
from tests.parts.kiln import Kiln
from tests.parts.ociregistry import Answer, Asked, Behaviour, OciProxy
from tests.parts.registry import Registry, free_port
from tests.parts.sink import EventSink

USER, PASSWORD = "ada", "canary-7dd1"
WRONG = "canary-0000"


class Site:
    """An installation with one of everything, `check`ed in this process. `config` and `settings` may be changed."""

    def __init__(self, folder: Path, registry: str, host: GitHost, sink: EventSink, hub: HubApi) -> None:
        self.folder, self.host, self.sink, self.hub = folder, host, sink, hub
        self.secrets = folder / "secrets"
        for name in ("headers", "git-credentials"):
            (self.secrets / name).mkdir(parents=True)
        (self.secrets / "headers/hub").write_text(f"Authorization: Bearer {PASSWORD}\n")
        self.let_in(registry, PASSWORD)
        self.config: dict[str, Any] = {
            "repositories": [{"url": host.url("team/course")}],
            "sinks": [{"name": "hub", "url": sink.url}],
        }
        self.settings = {
            "KILN_IMAGE_PREFIX": f"{registry}/org/",
            "KILN_ALLOWED_REPOSITORIES": f"{host.base}/**",
            "KILN_STATE_DIR": str(folder / "state"),
            "KILN_CONFIG": str(folder / "kiln.yaml"),
            "KILN_SECRETS_DIR": str(self.secrets),
            "KILN_REGISTRY_CONFIG": str(folder / "config.json"),
            "KILN_AUTH": "hub",
            "JUPYTERHUB_API_URL": hub.url,
            "JUPYTERHUB_API_TOKEN": hub.add(PASSWORD, "binder", kind="service"),
            "JUPYTERHUB_SERVICE_NAME": "binder",
        }
        self.let_git_in(PASSWORD)

    def let_in(self, registry: str, password: str) -> None:
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        (self.folder / "config.json").write_text(json.dumps({"auths": {registry: {"auth": auth}}}))

    def let_git_in(self, password: str, path: str = "team") -> None:
        credential = f"http://{USER}:{password}@{self.host.address}:{self.host.port}/{path}\n"
        (self.secrets / "git-credentials/one").write_text(credential)

    def check(self, **settings: str) -> tuple[int, list[str]]:
        (self.folder / "kiln.yaml").write_text(yaml.safe_dump(self.config))
        report = check.check({**self.settings, **settings}, online=True)
        said = [*report.lines()]
        assert "canary" not in " ".join(said) + report.as_json()
        return int(not report.valid), said


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with machine.daemon(), Registry(tmp_path_factory.mktemp("closed"), {USER: PASSWORD}) as registry:
        yield registry


@pytest.fixture
def site(tmp_path: Path, closed: Registry, host: GitHost) -> Iterator[Site]:
    if not host.bare("team/course").exists():
        content = tmp_path / "content"
        content.mkdir()
        (content / "README.md").touch()
        host.create("team/course", content)
    host.passwords["/team"] = (USER, PASSWORD)
    with EventSink() as sink, HubApi() as hub:
        yield Site(tmp_path, closed.host, host, sink, hub)
    del host.passwords["/team"]


def failed(found: tuple[int, list[str]], name: str, words: str) -> None:
    """Checks that only this probe failed, for that reason."""
    status, said = found
    assert status == 1, said
    (line,) = [line for line in said if line.startswith("failed: ")]
    assert line.startswith(f"failed: {name}"), line
    assert words in line, line
    assert "Configuration is valid" not in said


def test_all_is_in_order(site: Site) -> None:
    with Kiln(site.folder, **site.settings) as kiln:
        (site.folder / "kiln.yaml").write_text(yaml.safe_dump(site.config))
        done = kiln.run("check", "--online")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("Configuration is valid\n")
    lines = [line for line in done.stdout.splitlines() if line.startswith("ok: ")]
    expected = ["git", "docker daemon", "docker buildx", "repo2docker", "secrets", "state folder"]
    expected += ["registry ", "repository ", "sink hub", "JupyterHub", "clock"]
    assert [line for line, name in zip(lines, expected, strict=True) if name not in line] == []
    assert "was pushed and pulled, and removed again" in done.stdout
    assert f"repository {site.host.base}/team/course: HEAD is refs/heads/main" in done.stdout
    assert "canary" not in done.stdout
    (received,) = site.sink.received
    assert (received.events, received.body) == ((), b"")
    assert received.headers["webhook-request-origin"] == "kiln"
    assert received.headers["authorization"] == f"Bearer {PASSWORD}"


def test_nothing_is_asked_of_others_without_it(site: Site) -> None:
    (site.folder / "kiln.yaml").write_text(yaml.safe_dump(site.config))
    assert check.check(site.settings).valid
    assert (site.sink.received, site.hub.asked) == ([], [])


def test_what_is_wrong_in_a_file_is_told_first(site: Site) -> None:
    site.config["sink"] = []
    status, said = site.check()
    assert status == 1
    assert [line for line in said if not line.startswith("error: ")] == []


def test_the_daemon(site: Site) -> None:
    failed(site.check(KILN_DOCKER_HOST="unix:///nonexistent.sock"), "docker daemon", "does not answer")


def test_programs(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/docker"
    program.write_text("#!/bin/sh\necho \"docker: 'buildx' is not a docker command.\" >&2; exit 1\n")
    program.chmod(0o755)
    path = f"{tmp_path / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    failed(site.check(), "docker buildx", "'buildx' is not a docker command")
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    status, said = site.check()
    assert status == 1
    assert any(line.startswith("failed: docker buildx: `docker buildx version` cannot be run") for line in said)


def test_a_registry_with_another_password(site: Site, closed: Registry) -> None:
    site.let_in(closed.host, WRONG)
    failed(site.check(), f"registry {closed.host}/org/", "does not accept the credential")
    failed(
        site.check(),
        f"registry {closed.host}/org/",
        f"Log in again with the right user and password or token: `docker login {closed.host}`",
    )


def test_a_registry_that_is_not_there(site: Site) -> None:
    away = f"127.0.0.1:{free_port()}"
    failed(
        site.check(KILN_IMAGE_PREFIX=f"{away}/org/"),
        f"registry {away}/org/",
        "Start the registry, or correct KILN_IMAGE_PREFIX",
    )


def test_the_private_registry_has_a_look_of_its_own(site: Site, closed: Registry) -> None:
    site.config["private_image_prefix"] = f"{closed.host}/private/"
    site.config["private"] = [{"match": f"{site.host.base}/team/**"}]
    failed(site.check(), f"registry {closed.host}/private/", "Log in as a user who may push")
    (site.folder / "private.json").write_text((site.folder / "config.json").read_text())
    assert site.check(KILN_PRIVATE_REGISTRY_CONFIG=str(site.folder / "private.json"))[0] == 0


class Refusing(Behaviour):
    """Answers requests of some methods itself."""

    def __init__(self, statuses: Mapping[str, int]) -> None:
        self.statuses = statuses

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:  # noqa: ARG002
        status = self.statuses.get(asked.method)
        return Answer(status) if status else None


@pytest.mark.parametrize(
    ("statuses", "wrong"),
    [
        ({"DELETE": 405}, None),
        ({"DELETE": 403}, None),
        ({"POST": 403}, "Let this account push to"),
        ({"PUT": 500}, "500"),
    ],
)
def test_a_registry_that_forbids_something(
    site: Site, registry: Registry, statuses: dict[str, int], wrong: str | None
) -> None:
    with OciProxy(registry, Refusing(statuses)) as oci_proxy:
        found = site.check(KILN_IMAGE_PREFIX=f"{oci_proxy.host}/org/")
    if wrong:
        failed(found, f"registry {oci_proxy.host}/org/", wrong)
    else:
        assert found[0] == 0, found[1]
        assert any("and left there, as it may not be removed" in line for line in found[1])


def test_a_repository_without_its_credential(site: Site) -> None:
    site.let_git_in(WRONG)
    failed(
        site.check(),
        f"repository {site.host.base}/team/course",
        "give a credential that may read it in git-credentials",
    )


@pytest.mark.parametrize(("password", "path", "works"), [(PASSWORD, "team", True), (WRONG, "team", False)])
def test_a_credential_without_a_repository(site: Site, password: str, path: str, works: bool) -> None:
    del site.config["repositories"]
    site.let_git_in(password, path)
    found = site.check()
    if works:
        assert found[0] == 0, found[1]
        assert f"ok: credential for {site.host.base}/team: the host accepts it" in found[1]
    else:
        failed(found, f"credential for {site.host.base}/team", "denies access")


def test_a_credential_for_what_may_not_be_built(site: Site) -> None:
    (site.secrets / "git-credentials/two").write_text(f"https://{USER}:{PASSWORD}@git.example\n")
    failed(site.check(), "credential for https://git.example", "KILN_ALLOWED_REPOSITORIES")


def test_a_git_host_that_is_not_there(site: Site) -> None:
    away = f"127.0.0.1:{free_port()}"
    site.config["hosts"] = {away: {"kind": "gitlab"}}
    allowed = f"{site.host.base}/**,http://{away}/**"
    assert site.check(KILN_ALLOWED_REPOSITORIES=allowed)[0] == 0, "no https repository of it may be built"
    site.config["repositories"].append({"url": f"http://{away}/a/b"})
    failed(site.check(KILN_ALLOWED_REPOSITORIES=allowed), f"repository http://{away}/a/b", "could not be reached")


@pytest.mark.parametrize(
    ("status", "wrong"),
    [(200, None), (405, None), (404, None), (501, None), (401, "headers/hub"), (503, "503"), (301, "redirects")],
)
def test_a_sink_that_answers(site: Site, status: int, wrong: str | None) -> None:
    site.sink.answer(then=status)
    found = site.check()
    if wrong:
        failed(found, "sink hub", wrong)
    else:
        assert found[0] == 0, found[1]
        assert any(str(status) in line and "no event was sent" in line for line in found[1])


def test_a_sink_that_is_not_there(site: Site) -> None:
    site.sink.refuse()
    failed(site.check(), "sink hub", "cannot be reached")


def test_a_sink_whose_authority_nobody_knows(site: Site, tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "host.pem", tmp_path / "host.key")
    with EventSink(tls=context) as sink:
        site.config["sinks"] = [{"name": "hub", "url": sink.url}]
        failed(site.check(), "sink hub", "certificate is not trusted")
        site.config["sinks"][0]["ca"] = authority
        assert site.check()[0] == 0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda hub: hub.tokens.clear(), "Set JUPYTERHUB_API_TOKEN to the token that the Hub has"),
        (lambda hub: setattr(hub, "says", (500, b"")), "does not answer"),
    ],
)
def test_a_hub(site: Site, spoil: Callable[[HubApi], None], words: str) -> None:
    spoil(site.hub)
    failed(site.check(), "JupyterHub", words)


def test_what_never_answers_keeps_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "LIMIT", 15.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        found = site.check(KILN_IMAGE_PREFIX=f"{where}/org/")
    failed(found, f"registry {where}/org/", "did not end within 15 s")
