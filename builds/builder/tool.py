"""Runs `jupyter-repo2docker` as a program, and interprets its reports.

It is not imported, because it changes the working directory, the logger and `sys.excepthook` permanently, and because
its children must end with it. Its exit status only tells success from failure; progress and reasons are in its own
messages and in BuildKit's reports.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from builds.build import Request, Timings
from builds.builder.daemons import Daemon, ProgressParser
from builds.builder.daemons.buildkit import BuildKit
from builds.builder.evidence import witnessed
from builds.builder.log import Log, clean, lines_of
from builds.builder.outcome import DOCKER, Account, AttemptStage, Evidence, FailedCommand, Idiom, failure
from builds.builder.pushing import Layers
from builds.clients.tools import path_of
from builds.options import Options

LONGEST_READ = 16 << 20
"""Bytes of one line that are read at a time."""

COMPLAINTS_HEARD = 200
"""Lines of the tool and of git, which repeats a host's messages."""

OTHER_FRONTEND = re.compile(
    r"""\A\ufeff? (?:
        (?:[^\S\n]*(?:(?:\#|//)[^\n]*)?\n)*?  # comments and empty lines before
        [^\S\n]*(?:\#|//)[^\S\n]*(?i:syntax)[^\S\n]*=[^\S\n]*
        (?!(?:docker\.io/)?docker/dockerfile(?:-upstream)?(?::\w[\w.-]*)?(?:@sha256:[0-9a-f]{64})?(?:[ ]|[^\S\n]*$))
        (?P<name>\S[^\n]*)
        | (?:\#![^\n]*\n)?\s*(?P<json>\{)
    )""",
    re.VERBOSE | re.MULTILINE,
)
"""Matches a Dockerfile that selects another BuildKit frontend than Docker's own.

A frontend is a program that decides what is done, including which cache mounts are used. Only Docker's own prefixes
their names with a repository's namespace. (Its versions from before 2019 prefix only `/`, which begins no namespace.)
The forms are those of BuildKit's `DetectSyntax` (`frontend/dockerfile/parser/directives.go`, v0.8 to v0.24): after `#`
or `//`, or in a JSON file. Any line of the first comments counts, so that no version finds more.
"""

CONFIG = """\
import contextlib
import functools
import io
import os
import re
import shutil
import subprocess
import traceback
from urllib.parse import urlsplit

import repo2docker.buildpacks
import repo2docker.contentproviders.git
import repo2docker.docker
from repo2docker.app import Repo2Docker
from repo2docker.contentproviders import Git
from repo2docker.utils import R2dState


class Inside(Git):
    def fetch(self, spec, output_dir, yield_output=False):
        yield from super().fetch(spec, output_dir, yield_output)
        root = os.path.realpath(output_dir)
        for folder in (os.path.join(root, SUBDIR, name) for name in ("", "binder", ".binder")):
            for path in (folder, *(os.path.join(folder, name) for name in READ)):
                if os.path.exists(path) and os.path.commonpath((root, os.path.realpath(path))) != root:
                    raise ValueError(f"{os.path.relpath(path, root)!r} is a link that leads out of the repository")
        base = os.path.join(root, SUBDIR)
        places = [os.path.join(base, name) for name in ("binder", ".binder")]
        for folder in [place for place in places if os.path.isdir(place)] or [base]:
            if os.path.isfile(os.path.join(folder, "Dockerfile")):
                check_frontend(os.path.join(folder, "Dockerfile"))
            else:
                check_scripts(folder, base)
        same_for_all(root)


def check_frontend(path):
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        found = re.search(OTHER_FRONTEND, file.read(16 << 20), FLAGS)
    if found:
        name = (found["name"] or "JSON").strip()[:100]
        raise ValueError(f"the Dockerfile asks for the BuildKit frontend {name!r}")


def check_scripts(folder, base):
    for path in (os.path.join(folder, name) for name in ("postBuild", "start")):
        name = os.path.relpath(path, base)
        if os.path.isdir(path):
            raise ValueError(f"{name} is a folder, and repo2docker would run it")
        if not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            first = file.readline(4096)
        if first.startswith(b"#!") and first.endswith(b"\\r\\n"):
            raise ValueError(f"{name} has Windows line endings (CR LF), so its first line names no program that exists")
        if name.endswith("start") and not first.startswith((b"#!", b"\\x7fELF")):
            raise ValueError(f"{name} does not begin with a line such as #!/bin/bash, and no server would start")


def commit_of(commit, folder):
    fetch = ["git", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", "origin"]
    for command in ([], *([*fetch, name] for name in (commit, *REFS))):
        done = command and subprocess.run(command, cwd=folder, stderr=subprocess.PIPE)
        there = subprocess.run(["git", "cat-file", "-e", commit + "^{commit}"], cwd=folder, stderr=subprocess.DEVNULL)
        if there.returncode == 0:
            return commit
        for ended in (done, there):
            if ended and ended.returncode < 0:
                ended.check_returncode()
    os.write(1, done.stderr)
    done.check_returncode()


def same_for_all(root):
    for folder, folders, files in os.walk(root):
        if ".git" in folders or ".git" in files:
            subprocess.run(["git", "read-tree", "HEAD"], cwd=folder, check=True)
    for folder, folders, _ in os.walk(os.path.join(root, ".git")):
        if "logs" in folders and os.path.exists(os.path.join(folder, "HEAD")):
            shutil.rmtree(os.path.join(folder, "logs"))
            folders.remove("logs")


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


class Outside(Engine):
    def inspect_image(self, image):
        with outside():
            return super().inspect_image(image)

    def build(self, **options):
        with outside():
            yield from super().build(**options)


def causes(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def killed(error):
    return isinstance(error, subprocess.CalledProcessError) and (error.returncode < 0 or error.returncode == 137)


def unreachable(error):
    import requests

    answer = getattr(error, "response", None)
    request = getattr(error, "request", None)
    down = isinstance(error, (requests.ConnectionError, requests.Timeout))
    if down or (answer is not None and (answer.status_code >= 500 or answer.status_code == 429)):
        return urlsplit((answer if answer is not None else request).url).netloc if answer or request else "A host"
    return ""


def last_read(trace):
    values = (value for frame, _ in traceback.walk_tb(trace) for value in frame.f_locals.values())
    names = [getattr(value, "name", None) for value in values if isinstance(value, io.IOBase)]
    return next((name for name in reversed(names) if isinstance(name, str) and not os.path.isabs(name)), "")


def hook(self, kind, error, trace):
    chain = list(causes(error))
    name = last_read(trace)
    self.log.error(
        f"Error during build: {error if name in str(error) else f'{name}: {error}'}",
        extra={
            "phase": R2dState.FAILED,
            "command": isinstance(error, subprocess.CalledProcessError),
            "killed": any(map(killed, chain)),
            "unreachable": next(filter(None, map(unreachable, chain)), ""),
        },
    )


repo2docker.contentproviders.git.check_ref = commit_of
repo2docker.docker.DockerEngine = Outside
Repo2Docker.get_engine = functools.cache(Repo2Docker.get_engine)
Repo2Docker.json_excepthook = hook
c.Repo2Docker.content_providers = [Inside]
if BUILD_PACKS:
    c.Repo2Docker.buildpacks = [getattr(repo2docker.buildpacks, name) for name in BUILD_PACKS]
if BASE_IMAGE:
    c.Repo2Docker.base_image = BASE_IMAGE
if APPENDIX:
    c.Repo2Docker.appendix = APPENDIX
if FOLDER:
    c.Repo2Docker.target_repo_dir = FOLDER
"""
"""repo2docker's configuration file.

Only Git repositories are accepted, because the other content providers query hosts of their own about every address
before they reject it. The tool reads its files (`READ`) and the folder to build on this machine, and follows links,
which could lead to Kiln's secrets. So links out of the repository are refused. The tool's own requests go through the
guard; docker, which it starts, has the environment that Kiln was started with.

A clone contains the commits of branches and tags. Another commit (of a pull request, or of a branch that has moved
since) is fetched by its ID. If the host refuses that, it is fetched by one of the refs that have led to it (`REFS`).

A script that repo2docker's entrypoint cannot run (`start`) is refused. Otherwise the first user to start a server would
discover the fault.

An error is reported with its class as a separate field, because the text may quote the repository. The text begins with
the name of the repository's file that was being read, which TOML parsers do not know. Git's index and logs contain
times. Without them, checkouts of a commit are equal, and the daemon reuses the layers after the copy.

`Engine` is defined before this text, by the daemon (`builds.builder.daemons`). One serves the whole run: each new one
would look for the client's plugin again.
"""

READ = (
    *(".containerignore", ".dockerignore", "DESCRIPTION", "Dockerfile", "Dockerfile.dockerignore", "JuliaProject.toml"),
    *("Pipfile", "Pipfile.lock", "Project.toml", "REQUIRE", "apt.txt", "default.nix", "environment.yaml"),
    *("environment.yml", "install.R", "postBuild", "pyproject.toml", "requirements.txt", "requirements3.txt"),
    *("runtime.txt", "setup.py", "start"),
)
"""Files that repo2docker or buildx read on this machine, in a folder, and in its `binder` or `.binder`. All other files
go to the daemon unchanged, a link as a link."""

_LAYER = re.compile(r"([0-9a-f]{12}): (\w.*)")
"""A line of `docker push` about one layer."""
_OWN_DOCKERFILE = "DockerBuildPack"
"""The build pack for repositories with a Dockerfile."""
_SCRIPT = re.compile(r"\bRUN \./")
"""A step that runs a script of the repository: `postBuild`."""


class ToolLine(msgspec.Struct, frozen=True):
    """A line of `--json-logs`; the fields after `phase` come from `hook` (`CONFIG`)."""

    message: str
    phase: str | None = None
    command: bool = False
    killed: bool = False
    unreachable: str = ""


class ToolProgress:
    """The state of a run. Times are seconds of one clock."""

    def __init__(
        self,
        stage: AttemptStage,
        began: float,
        *,
        registry: str = "the registry",
        login: str = "",
        progress_parser: ProgressParser | None = None,
        idiom: Idiom = DOCKER,
    ) -> None:
        self.stage = stage
        self.registry, self.login, self.idiom = registry, login, idiom
        self._since: dict[AttemptStage, float] = {stage: began}
        self._ended: float | None = None
        self._parser = progress_parser or BuildKit()
        self._buildpack = ""
        self._complaints: deque[str] = deque(maxlen=COMPLAINTS_HEARD)
        self._killed = False
        self._unreachable = ""

    def take(self, line: ToolLine, now: float) -> Iterator[str]:
        """Takes one message of the tool, and yields the lines for the log."""
        if line.phase == "building" and self.stage is AttemptStage.FETCH:
            self._reach(AttemptStage.BUILD, now)
            self._complaints.clear()  # the tool has recovered from them
        if line.phase != "failed" and self.stage is not AttemptStage.FETCH:
            yield from self._building(line.message, now)
            return
        self._killed = self._killed or line.killed
        self._unreachable = line.unreachable or self._unreachable
        if not line.command:  # the failed command has reported the reason itself
            whole = line.phase == "failed"  # an exception's text may have several lines
            for text in [" ".join(line.message.split())] if whole else lines_of(line.message):
                self._complaints.append(clean(text).strip())
            yield from lines_of(line.message)

    def pushing(self, now: float) -> None:
        self._reach(AttemptStage.PUSH, now)

    def end(self, now: float) -> None:
        self._ended = now

    def timings(self, now: float) -> Timings:
        """Seconds for each stage that was reached; the last one lasts until `end`, or `now`."""
        end = now if self._ended is None else self._ended
        begun = [
            (stage, self._since[stage])
            for stage in (AttemptStage.FETCH, AttemptStage.BUILD, AttemptStage.PUSH)
            if stage in self._since
        ]
        ends = [*(since for _, since in begun[1:]), end]
        spent = {stage.value: round(stop - since, 3) for (stage, since), stop in zip(begun, ends, strict=False)}
        return Timings(fetch=spent.get("fetch"), build=spent.get("build"), push=spent.get("push"))

    @property
    def unexplained(self) -> bool:
        """Whether BuildKit failed without a failed command, possibly because of reused layers."""
        account = self.account()
        return self.stage is AttemptStage.BUILD and account.began and account.step is None

    def account(self, *, killed: bool = False) -> Account:
        """The account of the failure. `killed`: a signal ended the tool itself."""
        found = self._parser.findings()
        return Account(
            stage=self.stage,
            complaints=[line for line in self._complaints if line],
            error=found.error,
            step=self._step(found.step),
            source=found.source,
            began=found.began,
            killed=killed or self._killed or found.interrupted,
            unreachable=self._unreachable,
            registry=self.registry,
            login=self.login,
            base=found.base,
            idiom=self.idiom,
        )

    def _step(self, step: FailedCommand | None) -> FailedCommand | None:
        own = self._buildpack in ("", _OWN_DOCKERFILE)
        return step and step._replace(of_tool=not own and not _SCRIPT.search(step.name))

    def _building(self, message: str, now: float) -> Iterator[str]:
        if using := re.fullmatch(r"Using (\w+) builder", message.rstrip("\r\n")):
            self._buildpack = using[1]
        yield from self._parser.take(message)
        if self._parser.pushing:
            self._reach(AttemptStage.PUSH, now)

    def _reach(self, stage: AttemptStage, now: float) -> None:
        if list(AttemptStage).index(stage) > list(AttemptStage).index(self.stage):
            self.stage = stage
            self._since[stage] = now


def build(
    daemon: Daemon, command: Sequence[str], *, folder: Path, env: Mapping[str, str], progress: ToolProgress, log: Log
) -> None:
    """Runs the tool in `folder`, which is private. Raises Failure."""
    here, temporary = folder / "empty", folder / "tmp"  # the tool executes a `repo2docker_config.py` where it starts
    here.mkdir()
    temporary.mkdir()
    with witnessed(daemon, folder) as witness:
        child = subprocess.Popen(
            command,
            cwd=here,
            env={**env, "TMPDIR": str(temporary), "DOCKER_BUILDKIT": "1", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,  # the child inherits standard input, the attempt's lock
            stderr=subprocess.STDOUT,
        )
        assert child.stdout is not None  # noqa: S101 (it is a pipe)
        while raw := child.stdout.readline(LONGEST_READ):
            for text in progress.take(tool_line(raw), time.monotonic()):
                log.phase = phase_of(progress.stage)
                log.say(text)
        status = child.wait()
        if status < 0 or status == 143:  # noqa: PLR2004 (128 + SIGTERM)
            time.sleep(0.5)  # the signal may have been for this process, too, and then arrives here
        if status:
            account = progress.account(killed=status < 0)
            raise failure(account, witness.examine(account))
        witness.over()


def push(daemon: Daemon, built: str, image: str, progress: ToolProgress, log: Log) -> None:
    """Pushes an image of the daemon under another name. Raises Failure."""
    *before, send = daemon.pushing(built, image)
    for prepare in before:
        subprocess.run(prepare, env=daemon.environment, check=True, stdout=subprocess.DEVNULL)
    progress.pushing(time.monotonic())
    log.phase = phase_of(progress.stage)
    said, layers = "", Layers()
    # Without a context manager, which would wait for the child even after a stop.
    child = subprocess.Popen(send, env=daemon.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout is not None  # noqa: S101 (it is a pipe)
    while raw := child.stdout.readline(LONGEST_READ):
        for text in lines_of(raw.decode(errors="replace")):
            said = clean(text) or said
            if (shown := _summed(text, layers)) is not None:
                log.say(shown)
    if status := child.wait():
        account = progress.account()._replace(error=said, killed=status < 0)  # the build itself has succeeded
        raise failure(account, Evidence())


def _summed(text: str, layers: Layers) -> str | None:
    """The log's form of a line of `docker push`."""
    if report := _LAYER.fullmatch(text):
        return layers.take(report[1], time.monotonic(), done=report[2] not in ("Preparing", "Waiting"))
    return text


def command(
    request: Request,
    image: str,
    labels: Mapping[str, str],
    folder: Path,
    outside: Mapping[str, str | None],
    *,
    engine: str,
    options: Options,
    refs: Sequence[str] = (),
    apart: str | None = None,
    cache_from: Sequence[str] | None = None,
    push: bool = True,
) -> list[str]:
    """The command line that builds the commit as `image` (with its tag), and pushes it.

    `outside` contains the variables whose values for docker differ from the tool's; `None` means unset. `engine` is as
    in `Daemon`. `refs` and `apart` are as in `Spec`. With `cache_from` the image gets cache metadata, and the build
    reuses the layers of these images. The request's build arguments override those of `options`.
    """
    whose = request.repository if apart is None else f"{request.repository} {apart}"  # no repository's URL has a space
    namespace = hashlib.sha256(whose.encode()).hexdigest()
    config = folder / "config.py"
    values = {
        "NAMESPACE": namespace,
        "SUBDIR": request.subdir,
        "OUTSIDE": dict(outside),
        "READ": READ,
        "REFS": (*refs,),
        "BASE_IMAGE": options.base_image,
        "BUILD_PACKS": options.classes,
        "APPENDIX": options.appendix,
        "FOLDER": options.target_repo_dir,
        "PULL": options.pull,
        "CACHED": cache_from is not None,
        "CACHE_FROM": [*(cache_from or ())],
        "OTHER_FRONTEND": OTHER_FRONTEND.pattern,
        "FLAGS": int(OTHER_FRONTEND.flags),
    }
    with open(config, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:  # a proxy's password
        file.write("".join(f"{name} = {value!a}\n" for name, value in values.items()) + engine + CONFIG)
    program = path_of("jupyter-repo2docker")
    arguments = [program, "--config", str(config), "--ref", request.commit, "--image-name", image]
    arguments += ["--user-id", "1000", "--user-name", "jovyan", "--no-run", "--json-logs"]
    arguments += ["--push"] if push else []
    for name, value in labels.items():
        arguments += ["--label", f"{name}={value}"]
    for name, value in {**options.build_args, **request.build_args}.items():
        arguments += ["--build-arg", f"{name}={value}"]
    if request.subdir:
        arguments += ["--subdir", request.subdir]
    return [*arguments, "--", request.clone_url]


def tool_line(raw: bytes) -> ToolLine:
    """A line of the tool's output. Lines that are not in its JSON form come from its children, and are text."""
    try:
        return msgspec.json.decode(raw, type=ToolLine)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ToolLine(raw.decode(errors="replace"))


def phase_of(stage: AttemptStage) -> str | None:
    """The phase in the log."""
    return None if stage is AttemptStage.READY else stage.value
