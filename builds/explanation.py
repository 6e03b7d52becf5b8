"""Explain to the requester why a build ended without an image: a sentence, the log lines that show it, the next step.

The input is the build as the API shows it (`builds.report`), so the pages and the command give the same advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builds.build import Reason
from eventing.terminal import plain

MAX_QUOTED = 6
"""Lines of the log."""
LAST_OUTPUT = "; it said: "
"""Separates a failed step from the last line of its output in the builder's messages."""
NEXT_STEPS: Mapping[str, str] = {
    Reason.REPOSITORY: "Correct the repository and push. If neither a webhook nor a schedule starts a build then, "
    "request one.",
    Reason.INFRASTRUCTURE: "The repository is not at fault. Build again later. If that fails too, an administrator can "
    "find the cause with `kiln doctor`.",
    Reason.TIMEOUT: "Make the build shorter: install fewer packages, or use binary packages. An administrator can "
    "raise the time limit (KILN_BUILD_TIMEOUT).",
    Reason.REQUESTED: "Build again if you still need the image.",
    Reason.SUPERSEDED: "See the build of the later push. Build again only if you need this commit.",
    Reason.DELETED: "Build again if you still need the image.",
}
"""The next step by the reason for the end."""

_ERROR = re.compile(
    r"\berror\b|\bfatal\b|\bcritical\b|exception|traceback|^E: |not found|no such|denied|cannot|could not|unable to",
    re.IGNORECASE,
)
_PREFIX = re.compile(r"^#\d+ (?:[\d.]+ )?")
"""BuildKit's number of a step, and the seconds since the step began."""
_MIN_QUOTABLE = 8
"""Characters. Almost any message contains a shorter line."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """`quoted` are lines of the log; it is empty if the log does not show the reason."""

    sentence: str
    quoted: tuple[str, ...]
    next_step: str


def explain(build: Mapping[str, Any]) -> Explanation | None:
    """Return `None` for a build that has succeeded or has not ended."""
    next_step = NEXT_STEPS.get(build["reason"] or "")
    if next_step is None:
        return None
    message = plain(build["message"] or "")
    sentence, _, output = message.partition(LAST_OUTPUT)
    tail = [plain(line) for line in (build["log"].get("tail") or "").splitlines()]
    quoted = decisive_lines(tail, output or message) if build["state"] == "failed" else ()
    if output and not any(output.strip() in line for line in quoted):
        quoted = (output.strip(), *quoted)[:MAX_QUOTED]
    return Explanation(sentence=sentence, quoted=quoted, next_step=next_step)


def decisive_lines(tail: Sequence[str], message: str) -> tuple[str, ...]:
    """Return the last lines that the message quotes or that name an error, and the lines between them.

    The result has at most `MAX_QUOTED` lines.
    """
    places = [place for place, line in enumerate(tail) if _is_decisive(line, message)]
    if not places:
        return ()
    last = places[-1]
    first = min(place for place in places if place > last - MAX_QUOTED)
    return tuple(_PREFIX.sub("", line) for line in tail[first : last + 1] if line.strip())


def _is_decisive(line: str, message: str) -> bool:
    text = _PREFIX.sub("", line).strip()
    return (len(text) >= _MIN_QUOTABLE and text in message) or _ERROR.search(text) is not None
