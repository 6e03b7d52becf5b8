"""Whether an attempt without a result has pushed its image: the image's label in the registry names its attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from builds.build import Build, Cause, Kind
from builds.clients.git import RefResolver
from builds.clients.registry import Registry as Client
from builds.clients.registry import RegistryError
from builds.confirm import RegistryConfirmer
from builds.repository import Policy
from tests.builds.plan_factories import NOW, attempt
from tests.docker.builder.conftest import asked
from tests.parts.building import Builder
from tests.parts.githost import GitHost
from tests.parts.registry import Registry


def wants(id_: str, tag: str, ref: str | None) -> Cause:
    return Cause(source="/test", id=id_, type="t", by=None, at=NOW, kind=Kind.PERSON, ref=ref, tags=(tag,))


def test_the_image_is_that_of_the_attempt_whose_label_it_has(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    head = host.create(path, tmp_path / "content")
    request = asked(host, path, head, registry)
    causes = (
        wants("1", "course-main", "refs/heads/main"),
        wants("2", "always", None),
        wants("3", "gone", "refs/heads/x"),
    )
    build = Build(name="build-x-0", uid="uid", request=request, causes=causes, created_at=NOW)
    confirmer = RegistryConfirmer(store=lambda _: Client(), resolver=RefResolver(Policy(allowed=(f"{host.base}/**",))))
    assert confirmer.inspect(build, attempt(1)) is None, "nothing is there"

    pushed = builder.run(request).result.image
    assert pushed
    image = confirmer.inspect(build, attempt(1))
    assert image
    assert (image.reference, image.tags) == (pushed.reference, ("course-main", "always"))
    for tag in image.tags:
        manifest = Client().manifest(request.image, tag)
        assert manifest
        assert manifest.digest == pushed.digest
    assert confirmer.inspect(build, attempt(2)) is None, "it is another attempt's"

    registry.stop()
    try:
        with pytest.raises(RegistryError):
            confirmer.inspect(build, attempt(1))
    finally:
        registry.start()
