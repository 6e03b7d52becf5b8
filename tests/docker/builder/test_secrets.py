"""Every credential is a canary, and is looked for where it does not belong: logs, results, environments, arguments."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec

from builds.builder.spec import Spec, Surroundings
from tests.docker.builder.conftest import asked
from tests.parts.building import Attempt, Builder, put_busybox
from tests.parts.githost import GitHost, commit
from tests.parts.kiln import is_locked, until
from tests.parts.registry import Registry


def spellings(user: str, secret: str) -> Iterator[str]:
    yield from (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode().rstrip("="))
    yield base64.b64encode(f"{user}:{secret}".encode()).decode().rstrip("=")


def visible(attempt: Attempt) -> str:
    """The attempt's environments and command lines, as other processes of this user can see them."""
    paths = (Path(f"/proc/{pid}/{name}") for pid in attempt.members() for name in ("environ", "cmdline"))
    return "".join(path.read_text(errors="replace") for path in paths)


def content(folder: Path, *steps: str) -> Path:
    """Content of a repository with these steps."""
    folder.mkdir()
    put_busybox(folder)
    lines = [
        "FROM scratch",
        "COPY busybox /bin/sh",
        f"ENV RUN={secrets.token_hex(8)}",
        "ARG CANARY",
        "ARG SHORT",
        *(f"RUN {step}" for step in steps),
    ]
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
    return folder


def test_credentials_go_where_they_belong_and_nowhere_else(
    path: str, builder: Builder, host: GitHost, tmp_path: Path
) -> None:
    canary, other = f"git {secrets.token_hex(12)}/", f"push-{secrets.token_hex(12)}"
    part = host.create(f"{path}-part", content(tmp_path / "part"))
    folder = content(tmp_path / "content", "echo begun; sleep 2")
    (folder / ".gitmodules").write_text(f'[submodule "part"]\n\tpath = part\n\turl = {host.url(path)[:-4]}-part.git\n')
    host.create(path)
    head = commit(host.bare(path), folder, links={"part": part})
    host.passwords[f"/{path}.git"] = ("ada", canary)
    (tmp_path / "git-credentials").mkdir()
    address = host.base.replace("://", f"://ada:{quote(canary, safe='')}@")
    (tmp_path / "git-credentials/host").write_text(f"{address}/{path}\n")
    before = len(host.credentials)
    with Registry(tmp_path / "registry", {"ada": other}) as registry:
        auth = base64.b64encode(f"ada:{other}".encode()).decode()
        (tmp_path / "docker.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
        attempt = builder.start(
            asked(host, path, head, registry),
            git_credentials=str(tmp_path / "git-credentials"),
            registry_config=str(tmp_path / "docker.json"),
        )
        attempt.until_step_says("begun")
        seen = visible(attempt)
        attempt.wait()
    assert attempt.status == 0, attempt.text
    used = host.credentials[before:]
    assert used
    assert all(target.startswith(f"/{path}.git/") for target in used), used
    for user, secret in (("ada", canary), ("ada", other)):
        for spelling in spellings(user, secret):
            assert spelling not in seen
            assert spelling not in attempt.everything
    assert attempt.left_behind() == []


def test_build_arguments_are_not_told(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    canary = f"argument {secrets.token_hex(12)}"
    step = "echo it is $CANARY or $(echo -n $CANARY | base64) and $SHORT; exit 1"
    head = host.create(path, content(tmp_path / "content", step))
    attempt = builder.run(asked(host, path, head, registry, build_args={"CANARY": canary, "SHORT": "1"}))
    assert attempt.status == 64
    assert "it said: it is *** or ***" in (attempt.result.message or "")
    assert "and 1" in attempt.text, "what is not worth hiding is not hidden"
    for spelling in spellings("", canary):
        assert spelling not in attempt.everything


def test_the_attempts_lock_is_held_by_all_that_it_starts(
    path: str, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    """As the local engine starts it: the lock outlives the builder while a child lives; the builder's own does not."""
    head = host.create(path, content(tmp_path / "content", f"echo begun; sleep 30.{secrets.randbelow(10**9)}"))
    folder = tmp_path / "attempt"
    folder.mkdir()
    around = Surroundings(allowed_repositories=(f"{host.base}/**",))
    spec = Spec(
        name="build-x", attempt=1, attempt_label="uid.1", request=asked(host, path, head, registry), surroundings=around
    )
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    with (folder / "lock").open("wb") as lock, (folder / "log").open("wb") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "-m", "builds.builder", str(folder / "spec.json"), str(folder / "result.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            env={**os.environ, "KILN_ATTEMPT_DIR": str(folder)},
            pass_fds=(lock.fileno(),),
            start_new_session=True,
        )
    attempt = Attempt(process, folder)
    attempt.until_step_says("begun")
    assert int((folder / "group").read_text()) == process.pid
    assert is_locked(folder / "builder.lock")
    process.kill()
    process.wait()
    assert not is_locked(folder / "builder.lock")
    assert is_locked(folder / "lock")
    children = attempt.members()
    assert children
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not is_locked(folder / "lock"))
