"""Fetches of the builder through the guard, and the traces of it that a build's steps and docker see."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path

from tests.docker.builder.conftest import asked
from tests.parts.building import Builder, put_busybox
from tests.parts.githost import GitHost, commit
from tests.parts.registry import Registry

DOCKERFILE = """\
FROM scratch
COPY part/busybox /bin/sh
COPY data.bin /
RUN read line < /data.bin; echo "holds $line"; set
"""


def test_what_has_moved_is_built_with_its_lfs_objects(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    """The log and the message say where it went. Steps see no proxy, and docker sees that of Kiln's environment."""
    unique = secrets.token_hex(8)  # otherwise the daemon would reuse the cached step
    part, content = tmp_path / "part", tmp_path / "content"
    part.mkdir()
    put_busybox(part)
    target = host.create(f"{path}-part", part)
    host.redirects |= {f"/{path}-short/": host.url(f"{path}-part") + "/", f"/{path}.git": host.url(f"{path}-new")}
    content.mkdir()
    (content / "Dockerfile").write_text(DOCKERFILE)
    (content / ".gitmodules").write_text(f'[submodule "part"]\n\tpath = part\n\turl = {host.base}/{path}-short\n')
    (content / ".gitattributes").write_text("*.bin filter=lfs\n")
    (content / "data.bin").write_text(pointer(host, f"{unique}\n".encode()))
    host.create(f"{path}-new")
    head = commit(host.bare(f"{path}-new"), content, links={"part": target})

    elsewhere = {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "*", "no_proxy": "*", **recording(tmp_path)}
    attempt = builder.run(asked(host, path, head, registry), environment=elsewhere)

    assert attempt.status == 0, attempt.text
    assert f"holds {unique}" in attempt.text
    for before, after in ((f"{path}.git", f"{path}-new"), (f"{path}-short", f"{path}-part")):
        sentence = f"{host.base}/{before} redirects to {host.url(after)}."
        assert sentence in attempt.text
        assert sentence in (attempt.result.message or "")
    assert "_proxy=" not in attempt.text.lower()
    seen = (tmp_path / "environments").read_text()
    assert "buildx build" in seen
    for call in seen.split("called: ")[1:]:
        names = dict(line.split("=", 1) for line in call.splitlines() if "=" in line)
        assert {name: names.get(name) for name in ("HTTPS_PROXY", "NO_PROXY", "HOME")} == {
            "HTTPS_PROXY": "http://127.0.0.1:1",
            "NO_PROXY": "*",
            "HOME": os.environ["HOME"],
        }, call
        assert "http_proxy" not in names


def pointer(host: GitHost, content: bytes) -> str:
    """The pointer that the repository holds for an object of the host's LFS server."""
    oid = hashlib.sha256(content).hexdigest()
    host.objects[oid] = content
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"


def recording(folder: Path) -> dict[str, str]:
    """A PATH on which docker first writes its command and environment to `environments`."""
    bin_ = folder / "bin"
    bin_.mkdir()
    record = f'{{ echo "called: $*"; env; }} >> {folder}/environments'
    script = f'#!/bin/sh\n{record}\nexec {shutil.which("docker")} "$@"\n'
    (bin_ / "docker").write_text(script)
    (bin_ / "docker").chmod(0o755)
    return {"PATH": f"{bin_}:{os.environ['PATH']}"}
