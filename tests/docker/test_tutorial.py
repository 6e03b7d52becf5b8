"""docs/tutorial.md, word for word but for ports and names, which other tests may have.

This machine's images stand in for those of the public internet under the same names: the images of the registry, of
Gitea and of repo2docker's base.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import gitea
from tests.parts.kiln import ROOT
from tests.parts.registry import free_pair, free_port

PAGE = ROOT / "docs" / "tutorial.md"
IMAGES = ("registry:2", gitea.IMAGE, "buildpack-deps:24.04")
BY_HAND = f"--entrypoint=/bin/sh {gitea.IMAGE} -c '{gitea.START}'\n"
"""How an image of Gitea that was built from read-only files is started; the public one needs no such thing."""


def blocks() -> list[str]:
    """The shell's blocks without the first: the environment exists already."""
    return re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1:]


@pytest.fixture
def script(tmp_path: Path) -> Iterator[str]:
    """All blocks as one script. Everything that they start is removed, wherever the script has stopped."""
    mark = secrets.token_hex(4)
    web, ops = free_port(), free_pair()
    changed = {
        "127.0.0.1:5000": f"127.0.0.1:{free_port()}",
        "tutorial-gitea": f"kiln-gitea-{mark}",
        "tutorial-registry": f"kiln-registry-{mark}",
        "3000": str(free_port()),
        "8000": str(web),
        "9090": str(ops),
        "$PWD/.cache/tutorial": str(tmp_path / "tutorial"),
        ".cache/tutorial": str(tmp_path / "tutorial"),
        f"{gitea.IMAGE}\n": BY_HAND,
    }
    text = "\n".join(blocks())
    for old, new in changed.items():
        assert old in text, f"docs/tutorial.md has no {old} any more"
        text = text.replace(old, new)
    yield f"set -euxo pipefail\nexport PORT={web} KILN_OPS_PORT={ops}\n{text}"
    left = [f"kiln-gitea-{mark}", f"kiln-registry-{mark}"]
    subprocess.run(["docker", "rm", "--force", "--volumes", *left], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(900)  # repo2docker sets up Python and Jupyter
def test_every_block_of_the_tutorial_works(script: str, tmp_path: Path) -> None:
    for image in IMAGES:
        if subprocess.run(["docker", "image", "inspect", image], check=False, capture_output=True).returncode:
            pytest.skip(f"the image {image} is not here")
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KILN_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with log.open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            status = shell.wait()
        finally:
            subprocess.run(["kill", "--", f"-{shell.pid}"], check=False, capture_output=True)
    told = log.read_text()
    assert status == 0, told[-4000:]
    assert re.search(r"^1\.0 GB$", told, re.MULTILINE)
    assert re.search(r"^\+ image=\S+@sha256:[0-9a-f]{64}$", told, re.MULTILINE)
