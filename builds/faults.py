"""Where a process can be killed in a test: one list, a point after each durable step.

`KILN_FAULT=<folder>` makes a process kill itself with SIGKILL where it gets to a point that a file in there is called
after. It removes the file just before, which both proves that the point was reached and keeps the next process, or
another replica, from dying there again.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from pathlib import Path


class Fault(StrEnum):
    """Every point, in the order in which a build passes them. The crash tests iterate over this list."""

    WEB_ACCEPTING = "web-accepting"  # checked, nothing written
    WEB_ACCEPTED = "web-accepted"  # written, not answered
    CONTROLLER_ANNOUNCED = "controller-announced"  # an event is in the record, not sent
    CONTROLLER_START_WRITTEN = "controller-start-written"  # the attempt is in the record, not started
    ENGINE_FOLDER_MADE = "engine-folder-made"  # the attempt's folder is there, its process is not
    ENGINE_SPAWNED = "engine-spawned"  # the builder runs
    ENGINE_JOB_MADE = "engine-job-made"  # the attempt's Job is there
    BUILDER_LOCKED = "builder-locked"  # the builder has its locks
    BUILDER_FETCHED = "builder-fetched"  # the commit and its submodules have been looked at
    BUILDER_PUSHED = "builder-pushed"  # the image is in the registry, the tags are not set
    BUILDER_ATTESTED = "builder-attested"  # its provenance statement is there, too
    BUILDER_TAGGED = "builder-tagged"  # tags set, no result written
    BUILDER_RESULT_WRITTEN = "builder-result-written"
    CONTROLLER_END_WRITTEN = "controller-end-written"  # the terminal event is in the record, not sent
    CONTROLLER_SENT = "controller-sent"  # a sink has it, the record does not say so
    CONTROLLER_DELIVERED = "controller-delivered"  # the record says so; with the last event it is settled, too
    CONTROLLER_SETTLED = "controller-settled"


ONLY_LOCAL = frozenset({Fault.ENGINE_FOLDER_MADE, Fault.ENGINE_SPAWNED})
ONLY_KUBERNETES = frozenset({Fault.ENGINE_JOB_MADE})
"""Points that the other engine never gets to."""


def crash_if_armed(point: Fault) -> None:
    """Dies here if it was asked to, and nobody has yet."""
    folder = os.environ.get("KILN_FAULT")
    if not folder:
        return
    try:
        Path(folder, point).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)  # process 1 of a container cannot kill itself, but all else in it dies with it
