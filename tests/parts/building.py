"""Runs the builder as an engine does, and the folders of `tests/repositories` as repositories.

A case is `tests/repositories/<case>/`: the repository as a folder, and `expect.yaml` with the expected result. In its
files, `@REGISTRY@` stands for the test's registry, and `@UNIQUE@` for a text that no other run has: otherwise the
daemon would reuse the cached step. A static busybox is put where `expect.yaml` says, as no binaries are kept here.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from builds.build import Request, Result
from builds.builder.evidence import oom_kills
from builds.builder.spec import DAEMON_TIMEOUT, Spec, Surroundings, Tags
from tests.parts import machine
from tests.parts.kiln import until

REPOSITORIES = Path(__file__).resolve().parents[1] / "repositories"


@dataclass
class Attempt:
    """A builder that runs, or has run."""

    process: subprocess.Popen[bytes]
    folder: Path
    status: int | None = None

    def wait(self, seconds: float = 50) -> Result:
        """Returns the result when the builder has ended."""
        self.status = self.process.wait(seconds)
        return self.result

    @property
    def result(self) -> Result:
        return msgspec.json.decode((self.folder / "result.json").read_bytes(), type=Result)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        whole = (self.folder / "log").read_bytes().rpartition(b"\n")[0]
        return [msgspec.json.decode(line) for line in whole.splitlines()]

    @property
    def text(self) -> str:
        return "\n".join(line["text"] for line in self.lines)

    @property
    def written(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_file() and path.name != "spec.json"]

    @property
    def everything(self) -> str:
        """All that it has written anywhere, to search for text that must not occur."""
        return "".join(path.read_text(errors="replace") for path in self.written)

    def until(self, pattern: str, seconds: float = 40) -> None:
        """Waits for a line of the log that matches the pattern."""
        until(lambda: self._holds(pattern) or self.process.poll() is not None, seconds)
        assert self._holds(pattern), self.text

    def until_step_says(self, word: str) -> None:
        self.until(rf"^#\d+ [\d.]+ {word}$")

    def _holds(self, pattern: str) -> bool:
        return re.search(pattern, self.text, re.MULTILINE) is not None

    def members(self) -> list[int]:
        """The live processes of its session."""
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if _lives_in(self.process.pid, pid)]

    def left_behind(self) -> list[str]:
        """Files that it made and did not remove."""
        return sorted(str(path) for path in (self.folder / "tmp").rglob("*"))


@dataclass
class Builder:
    """Starts builders, each in a folder of its own below `folder`."""

    folder: Path
    surroundings: Surroundings

    def start(
        self,
        request: Request,
        *,
        name: str = "build-x-0",
        force: bool = False,
        just_pushed: bool = False,
        tags: tuple[Tags, ...] = (),
        refs: tuple[str, ...] = (),
        cache_from: tuple[str, ...] = (),
        log: Path | None = None,
        environment: Mapping[str, str] = {},
        daemon_patience: float = DAEMON_TIMEOUT.total_seconds(),
        **around: Any,
    ) -> Attempt:
        """Starts a builder and returns without waiting for it. `log` is the file for its output, `environment`
        overrides that of the tests, and `around` replaces parts of the surroundings."""
        folder = self.folder / f"attempt-{secrets.token_hex(4)}"
        (folder / "tmp").mkdir(parents=True)
        surroundings = msgspec.structs.replace(self.surroundings, **around)
        spec = Spec(
            name=name,
            attempt=1,
            attempt_label="uid.1",
            request=request,
            tags=tags,
            refs=refs,
            cache_from=cache_from,
            force=force,
            just_pushed=just_pushed,
            daemon_patience=daemon_patience,
            surroundings=surroundings,
        )
        (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
        environment = {**os.environ, **environment, "TMPDIR": str(folder / "tmp")}
        command = [sys.executable, "-m", "builds.builder", str(folder / "spec.json"), str(folder / "result.json")]
        with (log or folder / "log").open("wb") as output, (folder / "errors").open("wb") as errors:
            process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment, start_new_session=True)
        return Attempt(process, folder)

    def run(self, request: Request, **options: Any) -> Attempt:
        """Runs a builder and returns when it has ended."""
        attempt = self.start(request, **options)
        attempt.wait()
        return attempt


def repository(case: str, target: Path, registry: str) -> dict[str, Any]:
    """Copies a case's repository to `target`, which is created, and returns the expected result."""
    shutil.copytree(REPOSITORIES / case, target, ignore=shutil.ignore_patterns("expect.yaml"), symlinks=True)
    expected: dict[str, Any] = yaml.safe_load((REPOSITORIES / case / "expect.yaml").read_text())
    unique = secrets.token_hex(8)
    for path in target.rglob("*"):
        if path.is_file():
            text = path.read_bytes().replace(b"@REGISTRY@", registry.encode())
            path.write_bytes(text.replace(b"@UNIQUE@", unique.encode()))
    for folder in expected.get("busybox", []):
        put_busybox(target / folder)
    return expected


def is_outside_kill(message: str, before: int) -> bool:
    """Whether a failure's message is that of a tool that was ended from outside.

    It names the memory instead if the kernel has killed any process of this machine since it had killed `before`
    (`oom_kills`), as one test does in a cluster.
    """
    return "ended from outside" in message or ("the kernel killed a process" in message and oom_kills() > before)


def put_busybox(folder: Path) -> None:
    """A static busybox, for images that are made from nothing."""
    shutil.copy(machine.program("busybox", package="busybox-static"), folder / "busybox")


def _lives_in(session: int, pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return os.getsid(pid) == session and state not in "ZX"
    except OSError:
        return False
