"""Layers that come back from the registry, on a daemon that has none.

The plan decides which images a build may reuse (`tests/builds/test_warmth.py`); these tests cover the reuse itself.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from builds.build import Request
from builds.builder.spec import LABEL_BUILD, Surroundings
from builds.clients.registry import Registry as Client
from builds.image import tag_for
from tests.docker.builder.conftest import asked
from tests.parts import dockerd
from tests.parts.building import Attempt, Builder, put_busybox
from tests.parts.dockerd import Dockerd
from tests.parts.githost import GitHost, commit
from tests.parts.registry import Registry

METADATA = "moby.buildkit.cache.v0"
NOTHING = "sha256:" + "0" * 64
STEP = re.compile(r"^#(\d+) \[\S*\s*\d+/\d+\] (?:RUN|COPY) ", re.MULTILINE)


@dataclass
class Repository:
    """Built once on the machine's daemon, and pushed to a registry with a password. Beside it is a daemon that has
    nothing. Each commit has another notebook."""

    builder: Builder
    host: GitHost
    registry: Registry
    folder: Path
    cold: Dockerd
    around: dict[str, Any]
    canaries: tuple[str, ...]
    first: Request
    digest: str = ""

    def next(self) -> Request:
        """Its next commit, when the daemon has forgotten all."""
        for what in ("image", "builder"):
            command = ["docker", "--host", self.cold.host, what, "prune", "--all", "--force"]
            subprocess.run(command, check=True, capture_output=True)
        (self.folder / "notebook").write_text(secrets.token_hex(8))
        head = commit(self.host.bare(PATH), self.folder, message="Next")
        return asked(self.host, PATH, head, self.registry)

    def build(self, request: Request, *images: str, **more: Any) -> Attempt:
        """On the daemon that has nothing, reusing these images."""
        around = {**self.around, "docker_host": self.cold.host, **more}
        attempt = self.builder.run(request, cache_from=images, **around)
        assert attempt.status == 0, attempt.text
        assert not any(canary in attempt.everything for canary in self.canaries)
        return attempt

    @property
    def client(self) -> Client:
        return Client(self.around["registry_config"], pushes=True)

    def layers(self, request: Request) -> list[str]:
        found = self.client.configuration(request.image, tag_for(request.commit))
        assert found
        return found.rootfs.diff_ids

    def configuration(self, request: Request) -> dict[str, Any]:
        """As it is stored."""
        contents = self.contents(tag_for(request.commit))
        found: dict[str, Any] = json.loads(self.blob(contents["config"]["digest"]).read_bytes())
        return found

    def contents(self, reference: str) -> dict[str, Any]:
        """Of a manifest."""
        manifest = self.client.manifest(self.first.image, reference, body=True)
        assert manifest
        contents: dict[str, Any] = json.loads(manifest.body or b"")
        return contents

    def blob(self, digest: str) -> Path:
        hexadecimal = digest.removeprefix("sha256:")
        return self.registry.folder / "data/docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"


PATH = "tests/cache"
DOCKERFILE = """\
FROM scratch
COPY busybox /bin/busybox
ENV RUN={unique}
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox head -c 99999 /dev/urandom >/made"]
COPY notebook /notebook
"""
"""The step makes another layer each time that it runs."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, host: GitHost) -> Iterator[Repository]:
    if reason := dockerd.problem():
        pytest.skip(reason)
    folder, password = tmp_path_factory.mktemp("cache"), secrets.token_urlsafe(24)
    auth = base64.b64encode(f"ada:{password}".encode()).decode()
    builder = Builder(folder, Surroundings(allowed_repositories=(f"{host.base}/**",)))
    (folder / "content").mkdir()
    (folder / "content/Dockerfile").write_text(DOCKERFILE.format(unique=secrets.token_hex(8)))
    (folder / "content/notebook").write_text("first")
    put_busybox(folder / "content")
    with Registry(folder / "registry", {"ada": password}) as registry, closing(Dockerd(folder, downloads=1)) as cold:
        (folder / "login.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
        around = {"registry_config": str(folder / "login.json")}
        first = asked(host, PATH, host.create(PATH, folder / "content"), registry)
        cold.start()
        made = Repository(builder, host, registry, folder / "content", cold, around, (password, auth), first)
        attempt = builder.run(first, **around)
        assert attempt.result.image, attempt.text
        made.digest = attempt.result.image.digest
        yield made


def steps(attempt: Attempt) -> list[bool]:
    """For each step that makes a layer: whether it was cached."""
    found = STEP.findall(attempt.text)
    return [re.search(rf"^#{number} CACHED$", attempt.text, re.MULTILINE) is not None for number in found]


def test_a_daemon_that_has_nothing_reuses_what_another_has_built(repository: Repository) -> None:
    request = repository.next()
    attempt = repository.build(request, f"{request.image}@{NOTHING}", f"{request.image}@{repository.digest}")
    assert steps(attempt) == [True, True, False], attempt.text
    assert repository.layers(request)[:2] == repository.layers(repository.first)[:2]
    assert METADATA in repository.configuration(request), "so that the next one finds its layers, too"


PRIVATE = {"private_image_prefix": "127.0.0.1", "private_registry_config": "the same"}


@pytest.mark.parametrize("around", [{"build_cache": False}, PRIVATE], ids=["off", "private"])
def test_no_image_is_read_where_none_may_be(around: dict[str, Any], repository: Repository) -> None:
    """Where the setting says so; and of private repositories, as steps of the build would have their credential."""
    request = repository.next()
    same = {name: repository.around["registry_config"] for name, value in around.items() if value == "the same"}
    attempt = repository.build(request, f"{request.image}@{repository.digest}", **{**around, **same})
    assert "importing cache" not in attempt.text
    assert not any(steps(attempt))
    assert METADATA not in repository.configuration(request)


Spoil = Callable[[Repository], str]
"""Makes an image that is no use, and returns its reference."""


def _gone(it: Repository) -> str:
    return f"{it.first.image}@{NOTHING}"


def _no_registry(it: Repository) -> str:
    return f"127.0.0.1:1/{PATH}@{it.digest}"


def _layer_gone(it: Repository) -> str:
    _second_layer(it).unlink()
    return f"{it.first.image}@{it.digest}"


def _layer_damaged(it: Repository) -> str:
    _second_layer(it).write_bytes(gzip.compress(b"not what was pushed"))
    return f"{it.first.image}@{it.digest}"


def _second_layer(it: Repository) -> Path:
    return it.blob(it.contents(it.digest)["layers"][1]["digest"])


def _other_architecture(it: Repository) -> str:
    return _rewritten(it, architecture="s390x")


def _nonsense(it: Repository) -> str:
    return _rewritten(it, **{METADATA: base64.b64encode(b'{"layers": [{"layer": 99}], "records": 7}').decode()})


def _dangling(it: Repository) -> str:
    """An image whose metadata name a layer that it lacks."""
    there = json.loads(base64.b64decode(it.configuration(it.first)[METADATA]))
    beyond = [{**one, "layers": [{**layer, "layer": 77} for layer in one.get("layers", [])]} for one in there]
    return _rewritten(it, **{METADATA: base64.b64encode(json.dumps(beyond).encode()).decode()})


def _no_metadata(it: Repository) -> str:
    return _rewritten(it, **{METADATA: None})


def _rewritten(it: Repository, **changes: Any) -> str:
    """The same image with another configuration."""
    changed = {name: value for name, value in {**it.configuration(it.first), **changes}.items() if value is not None}
    config, contents = json.dumps(changed).encode(), it.contents(it.digest)
    it.client.upload(it.first.image, config)
    described = {**contents["config"], "digest": f"sha256:{sha256(config).hexdigest()}", "size": len(config)}
    body = json.dumps({**contents, "config": described}).encode()
    it.client.put(it.first.image, "rewritten", contents["mediaType"], body)
    return f"{it.first.image}@sha256:{sha256(body).hexdigest()}"


SPOILED: dict[str, tuple[Spoil, bool]] = {
    "gone": (_gone, False),
    "no registry": (_no_registry, False),
    "a layer is gone": (_layer_gone, False),
    "a layer is damaged": (_layer_damaged, False),
    "nonsense in it": (_nonsense, False),
    "a layer that it has not": (_dangling, False),
    "no metadata": (_no_metadata, False),
    "another architecture": (_other_architecture, True),
}
"""And whether its layers may be used nevertheless: what BuildKit compares is the content and the commands."""


@pytest.mark.timeout(240)  # a daemon tries to get a layer again and again
@pytest.mark.parametrize("kind", sorted(SPOILED))
def test_an_image_that_is_no_use_leaves_the_build_as_it_is_without(kind: str, repository: Repository) -> None:
    spoil, usable = SPOILED[kind]
    request, layer = repository.next(), _second_layer(repository)
    whole = layer.read_bytes()
    try:
        attempt = repository.build(request, spoil(repository))
    finally:
        layer.write_bytes(whole)
    assert steps(attempt)[-2:] == [usable, False] or usable, attempt.text
    made = repository.configuration(request)
    assert (made["architecture"], len(made["rootfs"]["diff_ids"])) == (
        repository.configuration(repository.first)["architecture"],
        3,
    )
    assert made["config"]["Labels"][LABEL_BUILD] == "build-x-0"


def test_an_image_that_may_not_be_read_leaves_the_build_as_it_is_without(
    repository: Repository, tmp_path: Path
) -> None:
    password = secrets.token_urlsafe(24)
    with Registry(tmp_path / "locked", {"ada": password}) as locked:
        request = repository.next()
        attempt = repository.build(request, f"{locked.host}/{PATH}@{repository.digest}")
    assert not any(steps(attempt))
