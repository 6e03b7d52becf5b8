"""The state that a repository's badge shows: the result of its latest build.

Badges are public, so pull requests from forks do not count: a stranger's broken commit must not turn the badge red. A
cancelled build has no result, so the previous one counts.
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
    UNKNOWN = "unknown"  # no build exists, or none is public


def standing(builds: Iterable[Build], ref: str | None) -> Standing:
    """Return the standing of a repository from its `builds`, newest first.

    Without a `ref`, builds of the default branch count, or all builds if there are none. A queued or running build
    counts only if no build has a result.
    """
    asked = [build for build in builds if any(not cause.foreign for cause in build.causes)]
    ours = [build for build in asked if any(_is_of(cause, ref) for cause in build.causes)]
    if ref is None:
        ours = ours or asked
    ended = (build.state for build in ours if build.state in (State.SUCCEEDED, State.FAILED))
    under_way = (build.state for build in ours if not build.state.ended)
    return Standing(next(ended, None) or next(under_way, None) or Standing.UNKNOWN)


def _is_of(cause: Cause, ref: str | None) -> bool:
    """Return whether the cause requested the ref, or the default branch if no ref is given."""
    if cause.foreign:
        return False
    return cause.default if ref is None else cause.ref in full_names(ref)
