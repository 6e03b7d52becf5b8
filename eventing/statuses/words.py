"""What a status and a comment say, in a host's limits, so that nothing that a stranger wrote is read as markup.

A ref, a commit's files and what a build's steps print are a stranger's words. In a status they are plain text; in a
comment they stand in code, where hosts read neither Markdown nor mentions.
"""

from __future__ import annotations

import re
import shlex
from typing import Annotated

import msgspec

from eventing.event import Event

BUILT = "succeeded"
CANCELLED = {
    "superseded": "Cancelled: a newer push took its place",
    "requested": "Cancelled",
    "deleted": "Cancelled: its record was deleted",
}
FAILED = {
    "repository": "The repository could not be built",
    "infrastructure": "The infrastructure failed",
    "timeout": "The build took too long",
}
"""All that is said where the build had stored credentials: its message may quote what they let it read."""
UNDER_WAY = {"queued": "Queued", "started": "Building", "retrying": "Building again"}

ZERO_WIDTH = "\u200b"
LONGEST_SENTENCE = 1000
"""Characters of why a build failed, in a comment."""


class Cause(msgspec.Struct, frozen=True):
    trigger: str | None = None
    ref: str | None = None


class Image(msgspec.Struct, frozen=True):
    repository: str
    reference: str | None = None
    digest: str | None = None


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an event's data that are told."""

    name: str
    repository: str
    commit: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40,64}\Z")]
    image: Image
    reason: str | None = None
    message: str | None = None
    causes: tuple[Cause, ...] = ()


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One status: `word` is the event's (`queued` … `cancelled`)."""

    word: str
    reason: str | None
    context: str
    description: str
    url: str
    commit: str
    ref: str | None

    @property
    def ended(self) -> bool:
        return self.word not in UNDER_WAY


def build_of(event: Event) -> Build:
    """Raises msgspec.ValidationError for data that is no build's."""
    return msgspec.convert(event.data, Build)


def word_of(event: Event) -> str:
    return event.type.split(".")[3]


def context_of(trigger: str | None) -> str:
    """What a status is called at its host."""
    return f"kiln/{trigger}" if trigger else "kiln"


def said(event: Event, *, context: str, url: str, longest: int, discreet: bool) -> Said:
    """The status of a build as of an event. `longest` is how many characters of description the host takes."""
    build, word = build_of(event), word_of(event)
    refs = (cause.ref for cause in build.causes if context_of(cause.trigger) == context)
    return Said(
        word=word,
        reason=build.reason,
        context=context,
        description=_description(build, word, longest, discreet=discreet),
        url=url,
        commit=build.commit,
        ref=next(filter(None, refs), None),
    )


def _description(build: Build, word: str, longest: int, *, discreet: bool) -> str:
    if word == BUILT:
        return _image(build.image, longest)
    if word in UNDER_WAY:
        return UNDER_WAY[word]
    if word == "cancelled":
        return CANCELLED.get(build.reason or "", "Cancelled")
    return plain(sentence(build, discreet=discreet), longest)


def sentence(build: Build, *, discreet: bool) -> str:
    """Why it failed."""
    reason = build.reason or "failed"
    if discreet or not build.message:
        return FAILED.get(reason, "The build failed")
    return f"{reason}: {build.message}"


def _image(image: Image, longest: int) -> str:
    """Whatever fits of the reference without cutting anything that could then be taken for a name: a digest last."""
    digest = image.digest or ""
    wholes = (image.reference or "", f"{image.repository}@{digest}", digest)
    return next((whole for whole in wholes if whole and len(whole) <= longest), "Built")


def plain(text: str, longest: int) -> str:
    """One line of at most so many characters, in which nobody is mentioned."""
    text = one_line(text).replace("@", f"@{ZERO_WIDTH}")
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def one_line(text: str) -> str:
    """Without line breaks, control and bidirectional characters."""
    return re.sub(r"\s+", " ", "".join(each if each.isprintable() else " " for each in text)).strip()


# Comments ------------------------------------------------------------------------------------------------------------


def code(text: str) -> str:
    """A code span (CommonMark 0.31, §6.1): its fence is longer than any run of backticks in the text."""
    text = one_line(text).replace("@", f"@{ZERO_WIDTH}") or " "
    fence = _fence(text, 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """A fenced code block (CommonMark 0.31, §4.5) around one line."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _fence(text: str, least: int) -> str:
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


def section(event: Event, *, context: str, url: str, discreet: bool) -> str:
    """What a comment tells of a build that has ended."""
    build = build_of(event)
    head = f"{code(context)}: {code(build.commit[:12])}"
    link = f"[The build](<{url}>)"
    if word_of(event) == BUILT:
        name = f"{build.image.repository}@{build.image.digest}" if build.image.digest else str(build.image.reference)
        run = f"docker run --rm -it -p 8888:8888 {shlex.quote(name)}"
        return f"{head} is built. {link}\n\n{block(one_line(run), 'sh')}"
    return f"{head} could not be built. {link}\n\n{block(plain(sentence(build, discreet=discreet), LONGEST_SENTENCE))}"
