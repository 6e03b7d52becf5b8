"""Fault points: the places where a test can kill a process, one after each durable step.

`KILN_FAULT=<folder>` arms the points that files in the folder are named after. A process that reaches an armed point
removes the file, then kills itself with SIGKILL. The removal proves that the point was reached, and keeps the next
process, or another replica, alive.
"""

from __future__ import annotations

import os
import signal
from enum import StrEnum
from pathlib import Path


class Fault(StrEnum):
    """All points, in the order in which a build passes them. The crash tests iterate over this list."""

    WEB_ACCEPTING = "web-accepting"  # checked, nothing written
    WEB_ACCEPTED = "web-accepted"  # written, no response yet
    CONTROLLER_ANNOUNCED = "controller-announced"  # an event is in the record, not sent
    CONTROLLER_START_WRITTEN = "controller-start-written"  # the attempt is in the record, not started
    ENGINE_FOLDER_MADE = "engine-folder-made"  # the attempt's folder exists, its process does not
    ENGINE_SPAWNED = "engine-spawned"  # the builder runs
    ENGINE_JOB_MADE = "engine-job-made"  # the attempt's Job exists
    BUILDER_LOCKED = "builder-locked"  # the builder holds its locks
    BUILDER_FETCHED = "builder-fetched"  # the commit and its submodules have been checked
    BUILDER_PUSHED = "builder-pushed"  # the image is in the registry, the tags are not set
    BUILDER_ATTESTED = "builder-attested"  # so is its provenance statement
    BUILDER_TAGGED = "builder-tagged"  # tags set, no result written
    BUILDER_RESULT_WRITTEN = "builder-result-written"
    CONTROLLER_END_WRITTEN = "controller-end-written"  # the terminal event is in the record, not sent
    CONTROLLER_SENT = "controller-sent"  # a sink has it, the record does not say so
    CONTROLLER_DELIVERED = "controller-delivered"  # the record says so; with the last event the build is settled, too
    CONTROLLER_SETTLED = "controller-settled"


ONLY_LOCAL = frozenset({Fault.ENGINE_FOLDER_MADE, Fault.ENGINE_SPAWNED})
ONLY_KUBERNETES = frozenset({Fault.ENGINE_JOB_MADE})
"""Points that the other engine never reaches."""


def crash_if_armed(point: Fault) -> None:
    """Kills this process if `KILN_FAULT` arms the point, and disarms it first."""
    folder = os.environ.get("KILN_FAULT")
    if not folder:
        return
    try:
        Path(folder, point).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)  # process 1 of a container cannot kill itself; its exit ends the container
