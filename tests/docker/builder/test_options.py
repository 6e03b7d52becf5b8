"""Options of repo2docker: the tool itself does what they promise."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from builds.builder import tool
from builds.builder.daemons.docker import Docker
from builds.builder.spec import Surroundings
from builds.clients.registry import Registry as Client
from builds.options import Options
from tests.docker.builder.conftest import asked
from tests.parts.building import Builder, put_busybox
from tests.parts.githost import GitHost
from tests.parts.registry import Registry

ALL = Options(
    base_image="registry.example/base:1",
    buildpacks=("python",),
    appendix="RUN echo \"${HOME}\" \\\n  '{{ x }}'\nENV LAST=1\n",
    build_args={"A": "installation", "B": "installation"},
    target_repo_dir="/srv/repo",
    pull=True,
)


@pytest.fixture
def head(host: GitHost, path: str, tmp_path: Path) -> str:
    """The commit of a repository that declares its needs both in a Dockerfile and in requirements.txt."""
    (tmp_path / "content").mkdir()
    (tmp_path / "content/requirements.txt").write_text("numpy\n")
    (tmp_path / "content/Dockerfile").write_text(
        "FROM scratch\nARG A\nARG B\nARG REPO_DIR\nLABEL got=$A-$B-$REPO_DIR\nCOPY busybox /\n"
    )
    put_busybox(tmp_path / "content")
    return host.create(path, tmp_path / "content")


def test_what_repo2docker_makes_of_them(
    path: str, head: str, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    request = asked(host, path, head, registry, build_args={"B": "request"})
    (tmp_path / "tool").mkdir()
    engine = Docker(Surroundings(), None, tmp_path / "credentials").engine
    command = tool.command(request, "x:1", {}, tmp_path / "tool", {}, engine=engine, options=ALL, push=False)
    command.insert(1, "--no-build")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path / "tool", env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert "FROM registry.example/base:1\n" in done.stdout
    assert "FROM scratch" not in done.stdout
    assert done.stdout.rstrip().endswith("RUN echo \"${HOME}\" \\\n  '{{ x }}'\nENV LAST=1")


def test_the_base_image_is_asked_for(path: str, head: str, builder: Builder, host: GitHost, registry: Registry) -> None:
    options = Options(base_image=f"{registry.host}/absent:1", buildpacks=("conda",))
    attempt = builder.run(asked(host, path, head, registry), options=options)
    assert attempt.status == 64
    assert f"{registry.host}/absent:1" in (attempt.result.message or "")


def test_an_image_of_other_options_is_not_there_yet(
    path: str, head: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    request = asked(host, path, head, registry, build_args={"B": "request"})
    first = Options(build_args={"A": "one"})
    other = Options(build_args={"A": "two", "B": "two"}, target_repo_dir="/srv/repo")
    digests = {}
    for name, options in {"one": first, "again": first, "other": other}.items():
        attempt = builder.run(request, options=options)
        assert attempt.status == 0, attempt.text
        assert ("nothing to build" in attempt.text) == (name == "again")
        assert attempt.result.image is not None
        digests[name] = attempt.result.image.digest
    assert digests["one"] == digests["again"] != digests["other"]
    labels = Client().labels(request.image, digests["other"])
    assert labels is not None
    assert labels["got"] == "two-request-/srv/repo"


def test_a_base_image_is_looked_for_anew(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    content = tmp_path / "content"
    content.mkdir()
    base = f"{registry.host}/{path}-base:1"
    (content / "Dockerfile").write_text(f"FROM {base}\nCOPY Dockerfile /\n")
    head = host.create(path, content)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/Dockerfile").write_text("FROM scratch\nLABEL a=1\nCOPY Dockerfile /base\n")
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", base, str(tmp_path / "base")], check=True, capture_output=True
    )
    try:  # the daemon has the base, the registry lacks it
        request = asked(host, path, head, registry)
        assert builder.run(request).status == 0
        assert builder.run(request, force=True, options=Options(pull=True)).status == 64
    finally:
        subprocess.run(["docker", "image", "rm", "--force", base], check=True, capture_output=True)
