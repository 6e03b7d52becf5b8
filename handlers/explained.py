"""Why a build did not end with an image, for the person who waits: a sentence, the lines that tell, what to do next.

Pure; made from the build as the API shows it (`builds.report`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventing.terminal import plain

MAX_QUOTED = 6
"""Lines of the log."""
_SAID = "; it said: "
"""What the builder puts between a step and what the step said last."""
_TELLING = re.compile(
    r"\berror\b|\bfatal\b|\bcritical\b|exception|traceback|^E: |not found|no such|denied|cannot|could not|unable to",
    re.IGNORECASE,
)
_HEAD = re.compile(r"^#\d+ (?:[\d.]+ )?")
"""BuildKit's number of a step, and the seconds since it began."""
_SHORTEST = 8
"""Characters: a shorter line is found in almost any message."""

_NEXT = {
    ("failed", "repository"): "Correct the repository and push: the push starts a new build if a webhook or a schedule "
    "watches it. Otherwise ask for the new commit.",
    ("failed", "infrastructure"): "The repository is not at fault. Build it again later. If it fails again, show this "
    "page to an administrator of Kiln.",
    ("failed", "timeout"): "Make the build shorter: install fewer packages, or from binary packages. An administrator "
    "can raise the time limit (KILN_BUILD_TIMEOUT).",
    ("cancelled", "requested"): "Somebody cancelled it. Build it again if the image is still needed.",
    ("cancelled", "superseded"): "A later push to the same branch replaced it: see the build of that commit.",
    ("cancelled", "deleted"): "Somebody deleted its record. Build it again if the image is still needed.",
}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    sentence: str
    quoted: tuple[str, ...]
    """Lines of the log that tell why; none where the log says nothing of it."""
    next_step: str


def explained(build: Mapping[str, Any]) -> Explanation | None:
    """`None` where there is nothing to explain: the build goes on, or has succeeded."""
    next_step = _NEXT.get((build["state"], build["reason"]))
    if next_step is None:
        return None
    message = plain(build["message"] or "")
    sentence, _, said = message.partition(_SAID)
    tail = [plain(line) for line in (build["log"].get("tail") or "").splitlines()]
    quoted = decisive(tail, said or message) if build["state"] == "failed" else ()
    if said and not any(said.strip() in line for line in quoted):
        quoted = (said.strip(), *quoted)[:MAX_QUOTED]
    return Explanation(sentence=sentence, quoted=quoted, next_step=next_step)


def decisive(tail: Sequence[str], message: str) -> tuple[str, ...]:
    """The lines that the message quotes or that name an error, with what stands between them; at most `MAX_QUOTED`."""
    telling = [place for place, line in enumerate(tail) if _tells(line, message)]
    if not telling:
        return ()
    last = telling[-1]
    first = min(place for place in telling if place > last - MAX_QUOTED)
    return tuple(_HEAD.sub("", line) for line in tail[first : last + 1] if line.strip())


def _tells(line: str, message: str) -> bool:
    text = _HEAD.sub("", line).strip()
    return (len(text) >= _SHORTEST and text in message) or _TELLING.search(text) is not None
