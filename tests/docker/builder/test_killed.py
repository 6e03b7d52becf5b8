"""Each program that a build starts is killed once, at each place: never the repository's fault, and never unseen.

The programs are found through a folder that stands first in `PATH`. They are the real ones: a program either kills
itself in place of its start, or is killed from outside once it runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from builds.build import Reason, Request
from tests.docker.builder.conftest import asked
from tests.parts.building import Attempt, Builder, put_busybox
from tests.parts.githost import GitHost, commit
from tests.parts.kiln import until
from tests.parts.ociregistry import OciProxy, Stuck
from tests.parts.registry import Registry

pytestmark = pytest.mark.timeout(600)

AT_ONCE = 3
"""Attempts that run at a time where there are many, as a node has several."""
SHIM = """\
#!/bin/sh
path=$PATH
PATH=/usr/bin:/bin
exec 9>>"$SHIM_LOG.lock"
flock 9
printf '%s\\n' "{name} $*" | tr '\\n' ' ' >> "$SHIM_LOG"
echo >> "$SHIM_LOG"
number=$(wc -l < "$SHIM_LOG")
flock -u 9
exec 9>&-
[ "$number" != "$SHIM_KILL" ] || kill -9 $$
PATH=$path
exec {program} "$@"
"""
HELPER = """\
#!/bin/sh
read -r host
echo '{{"Username": "ada", "Secret": "{password}"}}'
"""
NEEDED_BY_NOBODY = re.compile(
    r"docker (image (rm|inspect)|events|version) |git (rev-parse HEAD|.*negotiationAlgorithm=noop fetch|.*--get remote)"
    r"|sed -e s/-/ /"
)
"""Commands that are retried immediately, clean up, only watch, or fetch early: the image is the same without them. The
same holds for questions whose answer repo2docker (or the usage of git-submodule) does not need."""


@dataclass
class Setting:
    """A private repository with an LFS file, and a registry whose password a helper has."""

    builder: Builder
    registry: Registry
    request: Request
    around: dict[str, Any]
    folder: Path

    def start(self, kill: int = 0, image: str | None = None, **more: Any) -> Attempt:
        """Starts another build of the same commit. `kill` is the number of the program to kill, in the order of their
        starts."""
        own = secrets.token_hex(4)
        log = self.folder / f"shims-{own}"
        environment = {
            "PATH": f"{self.folder / 'shims'}:{os.environ['PATH']}",
            "SHIM_LOG": str(log),
            "SHIM_KILL": str(kill),
        }
        options = {**self.around, **more, "name": f"build-{own}-0", "environment": environment}
        request = replace(self.request, image=image or self.request.image)
        attempt = self.builder.start(request, **options)
        attempt.shims = log  # type: ignore[attr-defined]
        return attempt


def started(attempt: Attempt) -> list[str]:
    """The programs that were started, with their arguments, in their order."""
    log: Path = attempt.shims  # type: ignore[attr-defined]
    return log.read_text().splitlines()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[tuple[Registry, str]]:
    password = secrets.token_urlsafe(24)
    with Registry(tmp_path / "closed", {"ada": password}) as registry:
        yield registry, password


@pytest.fixture
def setting(path: str, builder: Builder, host: GitHost, closed: tuple[Registry, str], tmp_path: Path) -> Setting:
    registry, password = closed
    shims, helpers = tmp_path / "shims", tmp_path / "helpers"
    shims.mkdir()
    helpers.mkdir()
    programs = {name: shutil.which(name) for name in ("git", "docker", "sh", "cat", "mktemp", "sed", "wc")}
    programs["docker-credential-canary"] = str(helpers / "canary")
    (helpers / "canary").write_text(HELPER.format(password=password))
    for name, program in programs.items():
        (shims / name).write_text(SHIM.format(name=name, program=program))
    for file in (*shims.iterdir(), *helpers.iterdir()):
        file.chmod(0o755)
    (tmp_path / "helped.json").write_text(json.dumps({"credHelpers": {registry.host: "canary"}}))
    around = {
        "registry_config": str(tmp_path / "helped.json"),
        "private_image_prefix": f"{registry.host}/",
        "private_registry_config": str(tmp_path / "helped.json"),
    }
    head = with_lfs(host, path, tmp_path / "content")
    return Setting(builder, registry, asked(host, path, head, registry), around, tmp_path)


def with_lfs(host: GitHost, path: str, content: Path) -> str:
    """A repository whose image is built only if its LFS file holds the object's content."""
    content.mkdir()
    put_busybox(content)
    data = f"content {secrets.token_hex(8)}\n".encode()
    oid = hashlib.sha256(data).hexdigest()
    host.objects[oid] = data
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n"
    (content / "data.bin").write_text(pointer)
    (content / ".gitattributes").write_text("*.bin filter=lfs -text\n")
    (content / ".lfsconfig").write_text(f"[lfs]\n\turl = {host.base}/lfs-of-{path}/info/lfs\n")
    steps = f"COPY data.bin /\nRUN read line < /data.bin; [ \"$line\" = '{data.decode().strip()}' ]\n"
    (content / "Dockerfile").write_text(f"FROM scratch\nCOPY busybox /bin/sh\n{steps}")
    host.create(path)
    return commit(host.bare(path), content)


def nothing_is_left(attempt: Attempt) -> None:
    assert attempt.members() == []
    assert attempt.left_behind() == []


def kind_of(command: str) -> str:
    """The command of a started program, without the parts that differ from run to run."""
    return re.sub(r"/\S+|[0-9a-f]{32,}|127\.0\.0\.1:\d+|sha256:\S+", "_", command)


@pytest.mark.slow
def test_each_program_that_is_started(setting: Setting) -> None:
    whole = setting.start()
    assert whole.wait().reason is None, whole.text
    assert whole.status == 0, whole.text
    first = {kind_of(line): number for number, line in reversed(list(enumerate(started(whole), 1)))}
    names = " ".join(first)
    assert all(
        word in names for word in ("git clone", "docker push", "docker tag", "buildx build", "canary get", "sed ")
    )

    def killed(number: int) -> str | None:
        """The difference between its end and the expected one; `None` where it ended as expected."""
        attempt = setting.start(kill=number)
        attempt.wait()
        nothing_is_left(attempt)
        program = started(attempt)[number - 1]
        if attempt.status == 69 or (attempt.status == 0 and NEEDED_BY_NOBODY.match(program)):
            return None
        return f"{kind_of(program)}: {attempt.status} {attempt.result.message}"

    with ThreadPoolExecutor(AT_ONCE) as several:
        assert [wrong for wrong in several.map(killed, sorted(first.values())) if wrong] == []


def pids(attempt: Attempt, pattern: str) -> list[int]:
    """Those of its processes whose command line matches the pattern."""
    found = []
    for pid in attempt.members():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if re.search(pattern, line):
            found.append(pid)
    return found


def kill(attempt: Attempt, pattern: str) -> None:
    until(lambda: pids(attempt, pattern))
    for pid in pids(attempt, pattern):
        os.kill(pid, signal.SIGKILL)


def is_ours(attempt: Attempt, seconds: float = 20) -> None:
    """Checks that it ended as infrastructure's fault, soon, and with nothing left."""
    result = attempt.wait(seconds)
    assert attempt.status == 69, attempt.text
    assert result.reason is Reason.INFRASTRUCTURE
    nothing_is_left(attempt)


@pytest.mark.parametrize("program", [r"^(\S*/)?git .*fetch ", r"git-remote-http "])
def test_git_is_killed_while_its_host_says_nothing(
    program: str, path: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    host.hanging.add(f"/{path}.git")
    attempt = builder.start(asked(host, path, "1" * 40, registry))
    until(lambda: any(path in target for target in host.requests))
    kill(attempt, program)
    is_ours(attempt)


@pytest.mark.parametrize("private", [True, False])
def test_docker_is_killed_while_it_pushes(private: bool, setting: Setting) -> None:
    with Registry(setting.folder / "open") as registry, OciProxy(registry, Stuck()) as oci_proxy:
        prefix = f"{oci_proxy.host}/" if private else None
        attempt = setting.start(image=f"{oci_proxy.host}/stuck", private_image_prefix=prefix)
        attempt.until("The push refers to repository" if private else r"^#\d+ pushing ")
        kill(attempt, r"docker push " if private else r"docker-buildx .*build ")
        is_ours(attempt)


def test_the_helper_is_killed_while_it_answers(setting: Setting) -> None:
    (setting.folder / "helpers/canary").write_text("#!/bin/sh\nexec sleep 600.25\n")
    attempt = setting.start()
    kill(attempt, r"^sleep 600.25")
    is_ours(attempt)
