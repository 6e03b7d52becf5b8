"""Whose fault it was: from the stage reached and what the tool said to a reason and a sentence.

repo2docker ends with status 1 whatever happened. What BuildKit, git and docker say differs, and this is the one table
of it. What no row knows is the repository's fault only once one of its own build steps ran: before that, an unknown
complaint is ours, and is tried again.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from builds.build import Reason, Result, State
from builds.clients.git import diagnosis
from builds.errors import AskError, TryAgain


class Stage(StrEnum):
    """How far an attempt has come. The words of the log's phases and of the timings, but for `READY`."""

    READY = "ready"  # nothing of the repository has been touched
    FETCH = "fetch"
    BUILD = "build"  # fetched; its Dockerfile is made or read
    STEP = "step"  # a step of its Dockerfile ran
    PUSH = "push"


class Failure(Exception):
    """The attempt failed: `reason` is `repository` or `infrastructure`, and the message is for whoever asked.

    What is not `counted` is tried again whatever came before: the daemon went away.
    """

    def __init__(self, reason: Reason, message: str, *, out_of_memory: bool = False, counted: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.out_of_memory = out_of_memory
        self.counted = counted


class Row(NamedTuple):
    """What a pattern in the tool's words means in these stages. `sentence` comes before the words in the message."""

    stages: Sequence[Stage]
    pattern: str
    reason: Reason
    sentence: str
    out_of_memory: bool = False
    counted: bool = True


ANY = tuple(Stage)
BUILDING = (Stage.BUILD, Stage.STEP)
REPOSITORY, INFRASTRUCTURE = Reason.REPOSITORY, Reason.INFRASTRUCTURE

ROWS: Sequence[Row] = (
    Row(ANY, r"no space left on device", INFRASTRUCTURE, "The disk is full."),
    Row(
        ANY,
        r"Cannot connect to the Docker daemon|commandline client must be installed|buildx plugin must be installed"
        r"|is the docker daemon running|code = Unavailable|failed to receive status|error reading from server"
        r"|transport is closing|docker\.sock: connect",
        INFRASTRUCTURE,
        "The Docker daemon does not answer, or the connection to it was lost.",
        counted=False,
    ),
    Row(
        BUILDING,
        r"^runc run failed: .* error running hook",
        INFRASTRUCTURE,
        "The Docker daemon could not start a step.",
        counted=False,
    ),
    Row(
        BUILDING,
        r"exit code: 137\b|signal: killed|cannot allocate memory",
        INFRASTRUCTURE,
        "A step was killed, most likely because there was not enough memory for it.",
        out_of_memory=True,
    ),
    Row(
        (Stage.PUSH,),
        r"unauthorized|denied|no basic auth credentials|authentication required",
        INFRASTRUCTURE,
        "The registry does not let the image be pushed.",
    ),
    Row((Stage.PUSH,), r"", INFRASTRUCTURE, "The image could not be pushed to the registry."),
    Row(
        (Stage.FETCH,),
        r"Could not parse object",
        REPOSITORY,
        "No branch or tag of the repository leads to the commit.",
    ),
    Row(
        (Stage.FETCH,),
        r"No url found for submodule",
        REPOSITORY,
        "A submodule has no address.",
    ),
    Row(BUILDING, r"did not complete successfully|executor failed running", REPOSITORY, "A step of the build failed."),
    Row(
        BUILDING,
        r"dial tcp|i/o timeout|TLS handshake timeout|lookup .* (no such host|server misbehaving)|x509:"
        r"|unexpected status.* 5\d\d|toomanyrequests|429 Too Many|connection reset|unexpected EOF",
        INFRASTRUCTURE,
        "What the build needs could not be reached by the Docker daemon.",
    ),
    Row(
        BUILDING,
        r"pull access denied|repository does not exist|manifest unknown|: not found$|invalid reference format"
        r"|failed to parse stage name|no match for platform",
        REPOSITORY,
        "Something that the Dockerfile names is not there.",
    ),
    Row(
        BUILDING,
        r"dockerfile parse error|failed to read dockerfile|Dockerfile cannot be empty|no build stage"
        r"|failed to (compute cache key|calculate checksum)|unknown instruction|requires (at least|exactly)",
        REPOSITORY,
        "The Dockerfile cannot be built.",
    ),
    Row(
        ANY,
        r"Subdirectory .* does not exist|No environment specification found",
        REPOSITORY,
        "The repository has nothing to build there.",
    ),
    Row(
        (Stage.FETCH, Stage.BUILD),
        r"^Error during build: (?!Command |Failed to |\[Errno)",
        REPOSITORY,
        "repo2docker cannot make sense of the repository's configuration files.",
    ),
)


def failure(stage: Stage, complaints: Sequence[str], step: str = "") -> Failure:
    """What a failed tool stands for. `complaints` are all that the tool itself said, `step` tells of the failed one.

    In the message is the step, or else the complaint that gave the reason.
    """
    for row in ROWS:
        telling = [line for line in complaints if re.search(row.pattern, line, re.IGNORECASE)]
        if telling and stage in row.stages:
            words = step or telling[-1].removeprefix("Error during build: ")
            message = f"{row.sentence} {words}"
            return Failure(row.reason, message, out_of_memory=row.out_of_memory, counted=row.counted)
    if stage is Stage.FETCH:
        return refusal(diagnosis("\n".join(complaints)))
    words = step or (complaints[-1] if complaints else "It said nothing.")
    if stage is Stage.STEP:
        return Failure(REPOSITORY, f"The build failed. {words}")
    return Failure(INFRASTRUCTURE, f"The build could not be carried out. {words}")


def refusal(error: AskError) -> Failure:
    """What an error of the Git client stands for: what may be otherwise next time is not the repository's fault."""
    return Failure(INFRASTRUCTURE if isinstance(error, TryAgain) else REPOSITORY, str(error))


def exit_status(result: Result) -> int:
    """0 pushed or found; 64 `repository`; 69 `infrastructure`; 75 `timeout`; 143 after SIGTERM."""
    if result.state is State.SUCCEEDED:
        return os.EX_OK
    if result.state is State.CANCELLED:
        return 128 + signal.SIGTERM
    statuses = {Reason.REPOSITORY: os.EX_USAGE, Reason.TIMEOUT: os.EX_TEMPFAIL}
    return statuses.get(result.reason or Reason.INFRASTRUCTURE, os.EX_UNAVAILABLE)
