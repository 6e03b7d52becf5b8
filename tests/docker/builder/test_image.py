"""Images that the registry has already, further tags, and the repositories that may have a digest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from builds.builder.spec import Tags
from builds.clients.registry import Registry as Client
from builds.image import tag_for
from tests.docker.builder.conftest import asked
from tests.parts.building import Builder
from tests.parts.githost import GitHost, commit, git
from tests.parts.registry import Registry

MAIN = Tags(ref="refs/heads/main", names=("course-main",))


@pytest.fixture
def head(host: GitHost, path: str, tmp_path: Path) -> str:
    """The commit of a repository that needs next to nothing to be built; `sub` holds another one."""
    for folder in (tmp_path / "content", tmp_path / "content/sub"):
        folder.mkdir()
        (folder / "Dockerfile").write_text(f"FROM scratch\nCOPY Dockerfile /{folder.name}\n")
    return host.create(path, tmp_path / "content")


def test_an_image_of_this_build_is_found_and_only_the_tags_are_set(
    head: str, path: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    request = asked(host, path, head, registry)
    first = builder.run(request).result
    again = builder.run(request, tags=(MAIN, Tags(ref=None, names=("always",))))
    assert again.status == 0
    assert "nothing to build" in again.text
    assert "buildx" not in again.text
    assert again.result.image
    assert first.image
    assert again.result.image.reference == first.image.reference
    assert again.result.image.tags == ("course-main", "always")
    for tag in again.result.image.tags:
        manifest = Client().manifest(request.image, tag)
        assert manifest
        assert manifest.digest == first.image.digest
    assert again.result.timings.build is None


def test_force_builds_again(head: str, path: str, builder: Builder, host: GitHost, registry: Registry) -> None:
    request = asked(host, path, head, registry)
    builder.run(request)
    assert "exporting to image" in builder.run(request, force=True).text


@pytest.mark.parametrize(
    ("subdir", "label", "found"),
    [("", "build-x-0", True), ("", None, False), ("", "build-other", False), ("sub", None, False)],
)
def test_whose_image_it_is_decides_whether_it_is_found(
    subdir: str, label: str | None, found: bool,
    head: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path,
) -> None:  # fmt: skip
    request = asked(host, path, head, registry, subdir=subdir)
    image = f"{request.image}:{tag_for(head, subdir)}"
    labels = ["--label", f"dev.kiln.build={label}"] if label else []
    subprocess.run(
        ["docker", "buildx", "build", "--push", *labels, "--tag", image, str(tmp_path / "content")],
        check=True,
        capture_output=True,
    )
    assert ("nothing to build" in builder.run(request).text) == found


def test_the_labels_say_which_build_and_attempt_it_was(
    head: str, path: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    request = asked(host, path, head, registry)
    builder.run(request, name="build-mine-1")
    labels = Client().labels(request.image, head) or {}
    assert labels["dev.kiln.build"] == "build-mine-1"
    assert labels["dev.kiln.attempt"] == "uid.1"


def test_a_tag_whose_ref_has_moved_on_is_not_set(
    head: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    git("tag", "-m", "Annotated", "v1", head, cwd=host.bare(path))
    commit(host.bare(path), tmp_path / "content", message="Moved on")
    tags = (MAIN, Tags(ref="refs/tags/v1", names=("v1",)), Tags(ref="refs/heads/gone", names=("gone",)))
    attempt = builder.run(asked(host, path, head, registry), tags=tags)
    assert attempt.result.image
    assert attempt.result.image.tags == ("v1",)
    assert "course-main is not set: refs/heads/main is no longer at this commit" in attempt.text
    assert Client().manifest(f"{registry.host}/{path}", "course-main") is None
