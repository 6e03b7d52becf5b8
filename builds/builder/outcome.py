"""Classifies a failed attempt: the reason, and a sentence that explains it.

repo2docker always ends with status 1. The verdict rests on evidence (`builds.builder.evidence`) and on the reports of
repo2docker and BuildKit themselves (`Account`), not on the output of a step, which may print anything. The output can
only make a failure doubtful, so that the builder builds once more and the second run decides. Once the daemon builds, a
failure that no row explains is the repository's fault.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from builds.build import Reason, Result, State
from builds.builder.outages import reported_outage
from builds.clients.git import diagnosis
from builds.errors import RequestError, TryAgain
from builds.explanation import LAST_OUTPUT


class AttemptStage(StrEnum):
    """The progress of an attempt. The values are the phases of logs and timings, except for `READY`."""

    READY = "ready"  # before the repository is used
    FETCH = "fetch"
    BUILD = "build"
    PUSH = "push"


class Failure(Exception):
    """The attempt failed: `reason` is `repository` or `infrastructure`, and the message is for the requester.

    A `doubtful` failure may be a service's that answers again. A failure that is not `counted` is always retried:
    the daemon was lost. `unserved`: the Git host did not serve the commit.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        out_of_memory: bool = False,
        counted: bool = True,
        unserved: bool = False,
        doubtful: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.out_of_memory = out_of_memory
        self.unserved = unserved
        self.counted = counted
        self.doubtful = doubtful


class FailedCommand(NamedTuple):
    """A failed command of a Dockerfile."""

    name: str
    exit: str
    """In BuildKit's words: `exit code: 1`, or why the command could not be started."""
    output: Sequence[str]
    """Its last lines."""
    of_tool: bool = False
    """Whether repo2docker wrote the command, so that it is neither a line of the repository's Dockerfile nor one of its
    scripts."""


class Idiom(NamedTuple):
    """The names of a kind of daemon and its client, and the forms of its final errors (regular expressions)."""

    daemon: str
    client: str
    lost: str
    """Forms of errors after the connection to the daemon was lost."""
    helper: str
    """Forms of errors of a credential helper."""
    missing: str
    """Forms of repo2docker's message if the client is missing."""
    unready: str = r"(?!)"
    """Forms of errors if the daemon's configuration is incomplete."""


DOCKER = Idiom(
    daemon="Docker daemon",
    client="docker buildx",
    lost=(
        r"^(failed to receive status|listing workers for Build|failed to list workers|error during connect"
        r"|Cannot connect to the Docker daemon)|error reading from server: EOF$|docker\.sock: connect"
    ),
    helper=r"^error getting credentials|: error getting credentials",
    missing=(
        r"^Error during build: The (docker|podman|buildx) .* must be installed|^Error during build: .*buildx plugin"
    ),
)


PODMAN = Idiom(
    daemon="Podman service",
    client="podman build",
    lost=r"^(server probably quit|Cannot connect to Podman|unable to connect to Podman)",
    helper=r"error getting credentials",
    missing=r"^Error during build: .*No such file or directory: '\S*podman",
    unready=r"^creating build container: short-name \S+ did not resolve to an alias and no unqualified-search",
)


class Account(NamedTuple):
    """The reports of repo2docker, git and the daemon's client about a failed run."""

    stage: AttemptStage
    complaints: Sequence[str] = ()
    """Lines of git and of repo2docker itself."""
    error: str = ""
    """The final error of the daemon or its client."""
    step: FailedCommand | None = None
    source: str = ""
    """The image, URL or Git repository that BuildKit failed to fetch, in BuildKit's words."""
    began: bool = False
    """Whether the daemon has begun to build."""
    killed: bool = False
    """Whether a signal ended a tool, or a tool ended before its work was done."""
    unreachable: str = ""
    """The host that repo2docker itself could not reach."""
    base: str = ""
    """The Dockerfile's base image."""
    registry: str = "the registry"
    """The image's registry."""
    login: str = ""
    """The file with the registry's credential."""
    idiom: Idiom = DOCKER


class Evidence(NamedTuple):
    """The findings of the probes after the failure."""

    daemon: str = ""
    """Why the daemon does not answer, or differs from the one at the start of the build."""
    disk_full: bool = False
    out_of_memory: bool = False
    """Whether the kernel killed a process for lack of memory during the build."""
    service: str = ""
    """The origin of a service that the failed step needed and that does not answer the daemon's containers."""
    has_package: bool = False
    """Whether an index has a page of the package of which pip found no version. For 429 and 5xx pip has the same words
    as for a package without a file for this Python and platform."""


class Row(NamedTuple):
    """A verdict and its condition; the first matching row counts. `{words}` and the like: `_fields`."""

    applies: Callable[[Account, Evidence], object]
    reason: Reason
    sentence: str
    out_of_memory: bool = False
    counted: bool = True
    doubtful: bool = False


REPOSITORY, INFRASTRUCTURE = Reason.REPOSITORY, Reason.INFRASTRUCTURE

_NO_SPACE = r"(?i)no space left on device$"
_UNREACHABLE = (
    r"(?i)dial tcp|i/o timeout|TLS handshake timeout|server misbehaving|no such host|x509:|connection re(fused|set)"
    r"|deadline exceeded|unexpected EOF|: EOF$|toomanyrequests|\b429\b|status.{0,80}\b5\d\d\b|server gave HTTP response"
)
_GITS_SCRIPT = r"^\S*/git-core/git-\w+: (line )?\d+: "
_DENIED = r"unauthorized|denied|no basic auth credentials|authentication required"

ROWS: Sequence[Row] = (
    Row(
        lambda _, evidence: evidence.daemon,
        INFRASTRUCTURE,
        "The {whose} does not answer, or the connection to it was lost. {daemon}",
        counted=False,
    ),
    Row(lambda _, evidence: evidence.disk_full, INFRASTRUCTURE, "The disk is full. {words}"),
    Row(
        lambda account, evidence: (
            evidence.out_of_memory and (account.killed or (account.step and account.step.exit == "exit code: 137"))
        ),
        INFRASTRUCTURE,
        "Not enough memory: the kernel killed a process. {words}",
        out_of_memory=True,
    ),
    Row(
        lambda account, evidence: account.step and evidence.service,
        INFRASTRUCTURE,
        "{service} does not answer, and the build needs it. {words}",
    ),
    Row(
        lambda account, evidence: account.step and (evidence.has_package or _outage(account)),
        REPOSITORY,
        "A step of the build failed. {words}",
        doubtful=True,
    ),
    Row(lambda account, _: account.step, REPOSITORY, "A step of the build failed. {words}"),
    Row(lambda account, _: account.killed, INFRASTRUCTURE, "A build tool was ended from outside. {words}"),
    Row(
        lambda account, _: re.search(account.idiom.lost, account.error),
        INFRASTRUCTURE,
        "The {whose} does not answer, or the connection to it was lost. {words}",
        counted=False,
    ),
    Row(lambda account, _: re.search(_NO_SPACE, account.error), INFRASTRUCTURE, "The disk is full. {words}"),
    Row(
        lambda account, _: account.stage is AttemptStage.PUSH and re.search(_DENIED, account.error),
        INFRASTRUCTURE,
        "The registry {registry} does not accept the credential for it in {login}, or it may not push there. {words}",
    ),
    Row(
        lambda account, _: account.stage is AttemptStage.PUSH,
        INFRASTRUCTURE,
        "The image could not be pushed to {registry}. {words}",
    ),
    Row(
        lambda account, _: re.search(account.idiom.helper, account.error),
        INFRASTRUCTURE,
        "A credential helper for the registry failed. {words}",
    ),
    Row(
        lambda account, _: re.search(account.idiom.unready, account.error),
        INFRASTRUCTURE,
        "The configuration of the {whose} is incomplete. {words}",
    ),
    Row(
        lambda account, _: account.source and re.search(_UNREACHABLE, account.error),
        INFRASTRUCTURE,
        "{host} could not be reached by the {whose}. {words}",
    ),
    Row(
        lambda account, _: account.unreachable,
        INFRASTRUCTURE,
        "{unreachable} could not be reached by repo2docker. {words}",
    ),
    Row(
        lambda account, _: (
            account.stage is AttemptStage.FETCH and any(re.search(_GITS_SCRIPT, line) for line in account.complaints)
        ),
        INFRASTRUCTURE,
        "A command of git itself failed: a file or program is missing, or it was ended from outside. {words}",
    ),
    Row(
        lambda account, _: any(re.search(account.idiom.missing, line) for line in account.complaints),
        INFRASTRUCTURE,
        "The builder has no {client}. {words}",
    ),
    Row(
        lambda account, _: account.stage is AttemptStage.BUILD and account.error and not account.began,
        INFRASTRUCTURE,
        "{client} could not begin the build. {words}",
    ),
)

_FETCH_SENTENCES: Sequence[tuple[str, str]] = (
    (
        r"Subdirectory .* does not exist|No environment specification found",
        "The repository has nothing to build in this folder.",
    ),
    (r"Could not parse object", "No branch or tag of the repository leads to the commit."),
    (r"No url found for submodule", "A submodule has no address."),
    (r"^Error during build: \S*(postBuild|start) (is|has|does)", "A script of the repository cannot be run."),
    (r"is a link that leads out of the repository", "The repository links to files of the builder."),
    (r"asks for the BuildKit frontend", "The only supported frontend (`# syntax=`) is docker/dockerfile."),
)
_SENTENCES: Sequence[tuple[str, str]] = (
    (
        (
            r"pull access denied|access to the resource is denied"
            r"|repository does not exist|manifest unknown|: not found$|invalid reference format"
            r"|failed to parse stage name|no match for platform"
        ),
        "An image or file that the Dockerfile names does not exist.",
    ),
    (
        (
            r"(?i)dockerfile|^building at step |no stages to build|no build stage"
            r"|failed to (compute cache key|calculate checksum|process|parse)"
            r"|unknown instruction|requires (at least|exactly)|should not be blank|containerPort|no instructions"
        ),
        "The Dockerfile cannot be built.",
    ),
    (r"^Error during build: ", "repo2docker cannot read the repository's configuration files."),
)
"""Introductory sentences for faults of the repository."""


def failure(account: Account, evidence: Evidence) -> Failure:
    """Classifies a failed run."""
    for row in ROWS:
        if row.applies(account, evidence):
            message = row.sentence.format(**_fields(account, evidence)).strip()
            flags = {"out_of_memory": row.out_of_memory, "counted": row.counted, "doubtful": row.doubtful}
            return Failure(row.reason, message, **flags)
    if not account.error and not account.complaints:
        return Failure(INFRASTRUCTURE, "The build failed, and no tool reported a reason.")
    if introduced := _introduced(account, _FETCH_SENTENCES if account.stage is AttemptStage.FETCH else ()):
        return introduced
    if any(line.startswith(("fatal: ", "error: ")) for line in account.complaints):
        return refusal(diagnosis("\n".join(account.complaints)))
    return _introduced(account, _SENTENCES) or Failure(REPOSITORY, f"The build failed. {_words(account)}")


def _introduced(account: Account, sentences: Sequence[tuple[str, str]]) -> Failure | None:
    """The repository's failure, if a pattern matches one of the reports."""
    for pattern, sentence in sentences:
        said = [line for line in (*account.complaints, account.error) if re.search(pattern, line)]
        if said:
            return Failure(REPOSITORY, f"{sentence} {_unwrapped(said[-1])}")
    return None


def _fields(account: Account, evidence: Evidence) -> dict[str, str]:
    return {
        "words": _words(account),
        "host": _host(f"{account.error} {account.source}"),
        "whose": account.idiom.daemon,
        "client": account.idiom.client,
        "daemon": evidence.daemon,
        "service": evidence.service,
        "unreachable": account.unreachable,
        "registry": account.registry,
        "login": account.login,
    }


def _host(error: str) -> str:
    """The host in BuildKit's error."""
    found = re.search(r"https?://([^/\"\s]+)|lookup (\S+)", error)
    return (found[1] or found[2]) if found else "A host of the Dockerfile"


def _outage(account: Account) -> str:
    """The package manager's own report of a failed service, if repo2docker wrote the step."""
    return reported_outage(account.step.output) if account.step and account.step.of_tool else ""


def _words(account: Account) -> str:
    if account.step:
        said = _outage(account) or telling(account.step.output)
        return f"{_short(account.step.name)}: {account.step.exit}" + (f"{LAST_OUTPUT}{said}" if said else "")
    if account.error:
        return _unwrapped(account.error)
    complaints = [
        line for line in account.complaints if line.startswith(("Error during build: ", "fatal: ", "error: "))
    ]
    return _unwrapped((complaints or list(account.complaints) or [""])[-1])


_WRAPPERS = re.compile(
    r"^(Error during build:|Error:|failed to solve(?: with frontend [\w.]+)?|rpc error: code = \w+ desc ="
    r"|failed to create LLB definition):? "
)


def _unwrapped(error: str) -> str:
    """BuildKit's error without the prefixes of BuildKit's own layers."""
    while (shorter := _WRAPPERS.sub("", error)) != error:
        error = shorter
    return error


_LONGEST_NAME = 100
"""Characters of a step in a message."""
_TIMED = re.compile(r"TIMEFORMAT='time: %3R' *bash -c '(?:time )?(.*?)'(?= &&|\s*$)")
_AROUND = re.compile(
    r"apt-get -qq update && |(?<=apt-get) -qq(?= install)| --yes| --no-install-recommends| --no-cache-dir| > /dev/null"
    r"|(?<=RUN )(?:/\S+/bin/|\$\{\w+\}/bin/)(?=\w)"
    r"| && (?:time )?(?:rm -rf|apt-get -qq (?:purge|clean)|apt-get purge|\$\{MAMBA_EXE\} clean).*"
)
"""Text that repo2docker writes around the command of a step."""


def _short(name: str) -> str:
    name = _AROUND.sub("", _TIMED.sub(r"\1", " ".join(name.split())))
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


_TELLING = (
    (
        r"(?i)does not exist|provides|no matching distribution|unable to locate package|no such file|not found\b"
        r"|has no installation candidate|no module named|no package called|is not available|conflicting dependencies"
        r"|invalid (requirement|spec|match ?spec)|permission denied|could not (find|open|resolve)"
    ),
    r"^\s*(E: |(\w+\.)*\w*(Error|Exception)\b|(?i:error|critical|fatal)\b)|(?i:\berror: |\bcritical\b|\bfatal: )",
)
"""Forms of lines that give a reason, in order of preference."""
_SUMMARY = re.compile(
    r"^critical libmamba (Could not solve|pip failed)|^ERROR: (Failed (building|to build)|ResolutionImpossible)"
    r"|subprocess-exited-with-error|metadata-generation-failed|wheel-build|:$"
)
"""Lines that only refer to the reason in other lines."""
_NOISE = re.compile(
    r"^\s*$|^time: [\d.]+$|^\[notice\]|^npm notice|^(WARNING|warning|Note|note|hint|DEPRECATION)\b|^\W+$"
    r"|^(real|user|sys)\s|^\+ "
)
_PLACE = re.compile(r'File "[^"]+", line \d+')
_EXCEPTION = re.compile(r"(\w+\.)*\w+(Error|Exception): ")


def telling(output: Sequence[str]) -> str:
    """The line of a step's output that explains its failure, or else its last meaningful line.

    If that line is a Python exception, its place is appended.
    """
    lines = [line.strip() for line in output if not _NOISE.search(line.strip())]
    reasons = [line for line in lines if not _SUMMARY.search(line)]
    for pattern in _TELLING:
        found = [line for line in reasons if re.search(pattern, line)]
        if found:
            return _placed(found[-1], lines)
    return lines[-1] if lines else ""


def _placed(line: str, lines: Sequence[str]) -> str:
    if not _EXCEPTION.match(line):
        return line
    places = [found[0] for before in lines[: lines.index(line)] if (found := _PLACE.match(before))]
    return f"{line} ({places[-1]})" if places else line


def refusal(error: RequestError) -> Failure:
    """The Failure for an error of the Git client: a possibly temporary error is not the repository's fault."""
    return Failure(INFRASTRUCTURE if isinstance(error, TryAgain) else REPOSITORY, str(error))


def exit_status(result: Result) -> int:
    """0 pushed or found; 64 `repository`; 69 `infrastructure`; 75 `timeout`; 143 after SIGTERM."""
    if result.state is State.SUCCEEDED:
        return os.EX_OK
    if result.state is State.CANCELLED:
        return 128 + signal.SIGTERM
    statuses = {Reason.REPOSITORY: os.EX_USAGE, Reason.TIMEOUT: os.EX_TEMPFAIL}
    return statuses.get(result.reason or Reason.INFRASTRUCTURE, os.EX_UNAVAILABLE)
