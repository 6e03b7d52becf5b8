"""Runs `jupyter-repo2docker` as a program, and follows what it says.

It is run rather than imported because it changes the working directory, the logger and `sys.excepthook` for good, and
because what it starts must be ended with it. Its exit status says only whether it worked; how far it came and why it
failed is read from the progress that BuildKit prints.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from builds.build import Request, Timings
from builds.builder.log import Log, clean, lines_of
from builds.builder.outcome import Failure, Stage, failure

LONGEST_READ = 1 << 20
"""Bytes of one line that are kept in memory."""

LINES_HEARD = 20
"""Of each step: what it said last tells why it failed."""

COMPLAINTS_HEARD = 200
"""Of the tool, and of git, which repeats whatever a host says."""

CONFIG = """\
import contextlib
import os

import repo2docker.docker
from repo2docker.contentproviders import Git
from repo2docker.docker import DockerEngine


class Inside(Git):
    def fetch(self, spec, output_dir, yield_output=False):
        yield from super().fetch(spec, output_dir, yield_output)
        root = os.path.realpath(output_dir)
        for folder in (os.path.join(root, SUBDIR, name) for name in ("", "binder", ".binder")):
            names = os.listdir(folder) if os.path.isdir(folder) else ()
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                if os.path.exists(path) and os.path.commonpath((root, os.path.realpath(path))) != root:
                    raise ValueError(f"{os.path.relpath(path, root)!r} is a link that leads out of the repository")


@contextlib.contextmanager
def outside():
    inside = dict(os.environ)
    os.environ.update((name, value) for name, value in OUTSIDE.items() if value is not None)
    for name in (name for name, value in OUTSIDE.items() if value is None):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(inside)


class Outside(DockerEngine):
    def inspect_image(self, image):
        with outside():
            return super().inspect_image(image)

    def build(self, **options):
        with outside():
            yield from super().build(**options)


repo2docker.docker.DockerEngine = Outside
c.Repo2Docker.content_providers = [Inside]
"""
"""The other providers ask hosts of their own about every address, before they say that it is not theirs. And the tool
reads its files, and takes the folder to build, on this machine and wherever a link leads: to our secrets. What the tool
itself fetches goes through the guard; docker, which it starts, has the environment that Kiln was started with."""

_STEP = re.compile(r"#(\d+) (\[(?:[^\]]* )?\d+/\d+\] .*)")
_OUTPUT = re.compile(r"#(\d+) \d+\.\d+ (.*)")
_STEP_ERROR = re.compile(r"#(\d+) ERROR: (.*)")
_COMMAND_LINE = re.compile(r"Error during build: Command '\[.*\]' (returned non-zero exit|died with)")
_BY_THE_DAEMON = re.compile(r"no space left on device|^runc run failed: .* error running hook", re.IGNORECASE)
"""What a step says although it is none of its doing."""
_PUSHING = re.compile(r"#\d+ pushing ")


class ToolLine(msgspec.Struct, frozen=True):
    """A line of `--json-logs`. There may be an `exc_info`, which is a traceback of the tool's own code."""

    message: str
    phase: str | None = None


class Progress:
    """What is known of a run from the lines so far. `clock` gives seconds."""

    def __init__(self, stage: Stage, began: float) -> None:
        self.stage = stage
        self._since: dict[Stage, float] = {stage: began}
        self._ended: float | None = None
        self._steps: dict[str, str] = {}
        self._said: dict[str, deque[str]] = {}
        self._failed_step = ""
        self._complaints: deque[str] = deque(maxlen=COMPLAINTS_HEARD)

    def take(self, line: str, phase: str | None, now: float) -> None:
        """One line of text, with the phase that the tool gave it."""
        if phase == "building" and self.stage is Stage.FETCH:
            self._reach(Stage.BUILD, now)
        if self.stage is Stage.FETCH or phase in (None, "failed"):
            self._complaints.append(line)
        elif step := _STEP.match(line):
            self._steps[step[1]] = step[2]
            if not re.match(r"\[.*\] FROM ", step[2]):
                self._reach(Stage.STEP, now)
        elif _PUSHING.match(line):
            self._reach(Stage.PUSH, now)
        elif error := _STEP_ERROR.match(line):
            self._failed_step = error[1]
            self._complaints.append(error[2])
        elif output := _OUTPUT.match(line):
            self._said.setdefault(output[1], deque(maxlen=LINES_HEARD)).append(output[2].strip())
        elif line.startswith(("ERROR: ", "error: ")):
            self._complaints.append(line.partition(": ")[2])

    def pushing(self, now: float) -> None:
        self._reach(Stage.PUSH, now)

    def end(self, now: float) -> None:
        self._ended = now

    def timings(self, now: float) -> Timings:
        """Seconds for each stage that was reached; the last one goes on until `end`, or now."""
        end = now if self._ended is None else self._ended
        begun = [
            (stage, self._since[stage]) for stage in (Stage.FETCH, Stage.BUILD, Stage.PUSH) if stage in self._since
        ]
        ends = [*(since for _, since in begun[1:]), end]
        spent = {stage.value: round(stop - since, 3) for (stage, since), stop in zip(begun, ends, strict=False)}
        return Timings(fetch=spent.get("fetch"), build=spent.get("build"), push=spent.get("push"))

    def failure(self) -> Failure:
        """Why the tool failed, in its own words."""
        said = [line for line in self._said.get(self._failed_step, ()) if line]
        complaints = [line.strip().removeprefix("failed to solve: ") for line in self._complaints if line.strip()]
        complaints[:0] = [line for line in said if _BY_THE_DAEMON.search(line)]
        return failure(self.stage, complaints, self._step(complaints, said))

    def _step(self, complaints: Sequence[str], said: Sequence[str]) -> str:
        """The step that failed, how, and what it said last; empty where no step did."""
        step = self._steps.get(self._failed_step)
        if step is None:
            return ""
        how = re.search(r"exit code: \d+$", complaints[-1])  # before it is the command, which the step's name has too
        return f"{step}: {how[0] if how else complaints[-1]}" + (f"; its last line: {said[-1]}" if said else "")

    def _reach(self, stage: Stage, now: float) -> None:
        if list(Stage).index(stage) > list(Stage).index(self.stage):
            self.stage = stage
            self._since[stage] = now
            self._complaints.clear()  # whatever it was, it went on


def build(command: Sequence[str], folder: Path, env: Mapping[str, str], progress: Progress, log: Log) -> None:
    """Runs the tool in `folder`, which is private. Raises Failure."""
    here, temporary = folder / "empty", folder / "tmp"  # the tool runs any `repo2docker_config.py` where it is started
    here.mkdir()
    temporary.mkdir()
    child = subprocess.Popen(
        command,
        cwd=here,
        env={**env, "TMPDIR": str(temporary), "DOCKER_BUILDKIT": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,  # standard input is inherited: it is the attempt's lock
        stderr=subprocess.STDOUT,
    )
    assert child.stdout is not None  # noqa: S101 (it is a pipe)
    while raw := child.stdout.readline(LONGEST_READ):
        line = tool_line(raw)
        if _COMMAND_LINE.match(line.message):  # what failed has been said, and this is only how it was called
            continue
        for text in lines_of(line.message):
            progress.take(clean(text), line.phase, time.monotonic())
            log.phase = phase_of(progress.stage)
            log.say(text)
    status = child.wait()
    if status < 0 or status == 143:  # noqa: PLR2004 (128 + SIGTERM)
        time.sleep(0.5)  # whoever ended it may have meant us as well, and then we hear of it here
    if status == -9:  # noqa: PLR2004 (SIGKILL)
        raise failure(progress.stage, ["signal: killed"])
    if status:
        raise progress.failure()


def push(built: str, image: str, env: Mapping[str, str], progress: Progress, log: Log) -> None:
    """Pushes an image of the daemon's under another name. Raises Failure."""
    name, send = ["docker", "tag", built, image], ["docker", "push", image]
    subprocess.run(name, env=env, check=True, stdout=subprocess.DEVNULL)
    progress.pushing(time.monotonic())
    log.phase = phase_of(progress.stage)
    said: deque[str] = deque(maxlen=LINES_HEARD)
    with subprocess.Popen(send, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None  # noqa: S101 (it is a pipe)
        while raw := child.stdout.readline(LONGEST_READ):
            for text in lines_of(raw.decode(errors="replace")):
                said.append(clean(text))
                log.say(text)
    if child.returncode:
        raise failure(progress.stage, list(said))


def untag(images: Sequence[str], env: Mapping[str, str]) -> None:
    """Takes names from the daemon's images, and with the last one the image; as far as they are there."""
    command = ["docker", "image", "rm", "--force", *images]
    subprocess.run(command, env=env, check=False, capture_output=True)


def command(
    request: Request,
    image: str,
    labels: Mapping[str, str],
    folder: Path,
    outside: Mapping[str, str | None],
    *,
    push: bool = True,
) -> list[str]:
    """The command line that builds the commit as `image` (with its tag), and pushes it.

    `outside` are the variables that docker has otherwise than the tool; `None` is not set.
    """
    config = folder / "config.py"
    with open(config, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:  # a proxy's password
        file.write(f"SUBDIR = {request.subdir!r}\nOUTSIDE = {dict(outside)!r}\n{CONFIG}")
    beside = Path(sys.executable).with_name("jupyter-repo2docker")
    program = str(beside) if beside.is_file() else shutil.which("jupyter-repo2docker") or "jupyter-repo2docker"
    arguments = [program, "--config", str(config), "--ref", request.commit, "--image-name", image]
    arguments += ["--user-id", "1000", "--user-name", "jovyan", "--no-run", "--json-logs"]
    arguments += ["--push"] if push else []
    for name, value in labels.items():
        arguments += ["--label", f"{name}={value}"]
    for name, value in request.build_args.items():
        arguments += ["--build-arg", f"{name}={value}"]
    if request.subdir:
        arguments += ["--subdir", request.subdir]
    return [*arguments, "--", request.clone_url]


def tool_line(raw: bytes) -> ToolLine:
    """A line of the tool's output. What is not in its JSON form comes from what it runs, and is text."""
    try:
        return msgspec.json.decode(raw, type=ToolLine)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ToolLine(raw.decode(errors="replace"))


def phase_of(stage: Stage) -> str | None:
    """As it stands in the log."""
    return {Stage.READY: None, Stage.STEP: "build"}.get(stage, stage.value)
