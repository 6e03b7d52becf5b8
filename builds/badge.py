"""The standing of a repository, as its badge shows it: the result of its latest build.

A badge is for everybody, so a pull request from a fork has no part in it: its author is a stranger, and the badge would
show what they have broken. A cancelled build has no result, so the one before it counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from builds.build import Build, Cause, State
from builds.repository import full_names


class Standing(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RUNNING = "running"
    QUEUED = "queued"
    UNKNOWN = "unknown"  # nothing was built, or nothing that everybody may see


def standing(builds: Iterable[Build], ref: str | None) -> Standing:
    """Of a repository's `builds`, newest first. Without a `ref` those of its default branch count, if there are any.

    A build that is under way counts only where none has ended.
    """
    asked = [build for build in builds if any(not cause.foreign for cause in build.causes)]
    ours = [build for build in asked if any(_is_of(cause, ref) for cause in build.causes)]
    if ref is None:
        ours = ours or asked
    ended = (build.state for build in ours if build.state in (State.SUCCEEDED, State.FAILED))
    under_way = (build.state for build in ours if not build.state.ended)
    return Standing(next(ended, None) or next(under_way, None) or Standing.UNKNOWN)


def _is_of(cause: Cause, ref: str | None) -> bool:
    """Whether it asked for the ref, or where none is named for the default branch."""
    if cause.foreign:
        return False
    return cause.default if ref is None else cause.ref in full_names(ref)
