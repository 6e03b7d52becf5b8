"""Images of private repositories: pushed with a credential that no build's steps have, and taken by no other build."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builds.build import State
from builds.builder.spec import LABEL_BUILD, Surroundings
from builds.clients.registry import Registry as Client
from tests.docker.builder.conftest import asked
from tests.parts import dockerd
from tests.parts.building import Attempt, Builder, put_busybox
from tests.parts.dockerd import Dockerd
from tests.parts.githost import GitHost
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(300)


@dataclass
class Private:
    """A private repository's image, in a registry that requires the credential."""

    builder: Builder
    host: GitHost
    registry: Registry
    around: dict[str, Any]
    canaries: tuple[str, ...]
    secret: str
    image: str = ""
    tag: str = ""
    digest: str = ""

    def build(self, path: str, content: Path) -> Attempt:
        request = asked(self.host, path, self.host.create(path, content), self.registry)
        return self.builder.run(request, name=f"build-{secrets.token_hex(10)}", **self.around)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, host: GitHost) -> Iterator[Private]:
    """The image, built and pushed."""
    folder, password = tmp_path_factory.mktemp("private"), secrets.token_urlsafe(24)
    with Registry(folder / "registry", {"private": password}) as registry:
        yield built(folder, host, registry, password)


def built(folder: Path, host: GitHost, registry: Registry, password: str) -> Private:
    auth = base64.b64encode(f"private:{password}".encode()).decode()
    (folder / "private.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    (folder / "public.json").write_text("{}")
    around = {
        "registry_config": str(folder / "public.json"),
        "private_image_prefix": f"{registry.host}/",
        "private_registry_config": str(folder / "private.json"),
    }
    builder = Builder(folder, Surroundings(allowed_repositories=(f"{host.base}/**",)))
    private = Private(builder, host, registry, around, (password, auth), secrets.token_hex(16))
    attempt = private.build(
        "tests/private", content(folder / "content", "FROM scratch\nCOPY page /page\n", private.secret)
    )
    assert attempt.result.state is State.SUCCEEDED, attempt.text
    assert attempt.result.image
    assert not any(canary in attempt.everything for canary in private.canaries)
    private.image, private.tag = attempt.result.image.repository, attempt.result.image.tag
    private.digest = attempt.result.image.digest
    manifest = Client(around["private_registry_config"]).manifest(private.image, private.tag)
    assert manifest
    assert manifest.digest == private.digest
    return private


def content(folder: Path, dockerfile: str, page: str) -> Path:
    folder.mkdir()
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "page").write_text(page)
    put_busybox(folder)
    return folder


WAYS = {
    "FROM": "FROM {it}\nCOPY page /mine\n",
    "ARG": "ARG it={it}\nFROM $it AS theirs\nFROM scratch\nCOPY --from=theirs /page /mine\n",
    "COPY": "FROM scratch\nCOPY --from={it} /page /mine\n",
    "mount": 'FROM scratch\nCOPY busybox /busybox\nRUN --mount=from={it},target=/m ["/busybox", "cat", "/m/page"]\n',
}
AT_ONCE = 3
"""Builds that run at a time, as on a node."""
REFERENCES = ("{image}:{tag}", "{image}@{digest}", "{image}", "{image}:{tag}@{digest}")


def strangers(
    private: Private, path: str, folder: Path, registry: Registry, references: Sequence[str], **around: Any
) -> list[Attempt]:
    """Builds of other repositories that ask for the image: in each way by the first reference, and by each other one
    in the first way. BuildKit resolves a name alike wherever a Dockerfile has it. None obtains any part of it."""
    known = {"image": private.image, "tag": private.tag, "digest": private.digest}
    first, *others = references
    asking = [*((way, first) for way in WAYS), *(("FROM", reference) for reference in others)]

    def build(numbered: tuple[int, tuple[str, str]]) -> Attempt:
        number, (way, reference) = numbered
        theirs = content(folder / f"{number}", WAYS[way].format(it=reference.format(**known)), "a stranger's")
        commit = private.host.create(f"{path}-{number}", theirs)
        request = asked(private.host, f"{path}-{number}", commit, registry)
        public = {**private.around, "private_image_prefix": None, **around}
        attempt = private.builder.run(request, name=f"build-{secrets.token_hex(10)}", **public)
        assert attempt.result.state is State.FAILED, attempt.text
        assert private.secret not in attempt.everything
        assert Client().manifest(request.image, commit) is None
        return attempt

    with ThreadPoolExecutor(AT_ONCE) as several:
        return list(several.map(build, enumerate(asking)))


@pytest.mark.slow
def test_no_other_build_takes_one_on_the_same_daemon(
    private: Private, path: str, tmp_path: Path, registry: Registry
) -> None:
    assert len(strangers(private, path, tmp_path, registry, REFERENCES)) == len(WAYS) + len(REFERENCES) - 1


@pytest.mark.slow
def test_no_other_build_takes_one_on_another_daemon(
    private: Private, path: str, tmp_path: Path, registry: Registry
) -> None:
    """The other daemon asks the registry, and has no credential for it."""
    if reason := dockerd.problem():
        pytest.skip(reason)
    with closing(Dockerd(tmp_path / "dockerd", size=100)) as daemon:
        daemon.start()
        for attempt in strangers(private, path, tmp_path, registry, REFERENCES[:2], docker_host=daemon.host):
            assert private.image in attempt.text


def test_the_daemon_keeps_no_name_of_it(private: Private) -> None:
    command = ["docker", "image", "ls", "--all", "--digests", "--no-trunc"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert private.image not in listed
    assert private.digest not in listed
    labels = Client(private.around["private_registry_config"]).labels(private.image, private.tag)
    assert labels
    own = [f"--filter=label={LABEL_BUILD}={labels[LABEL_BUILD]}"]
    assert not subprocess.run([*command[:3], *own], check=True, capture_output=True, text=True).stdout.splitlines()[1:]


def test_a_private_build_s_own_steps_do_not_have_the_credential(private: Private, path: str, tmp_path: Path) -> None:
    """It would read every private image, not only this repository's."""
    mine = content(tmp_path / "again", f"FROM {private.image}:{private.tag}\nCOPY page /mine\n", "again")
    attempt = private.build(f"{path}-again", mine)
    assert attempt.result.state is State.FAILED, attempt.text
    assert not any(canary in attempt.everything for canary in private.canaries)
