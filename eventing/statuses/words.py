"""The texts of statuses and comments, within a host's limits and without markup from untrusted input.

A ref, the files of a commit and the output of build steps are untrusted. A status shows them as plain text; a comment
shows them in code, in which hosts interpret neither Markdown nor mentions.
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
"""The text for builds with stored credentials: their messages may quote private data."""
UNDER_WAY = {"queued": "Queued", "started": "Building", "retrying": "Building again"}

ZERO_WIDTH = "\u200b"
LONGEST_SENTENCE = 1000
"""Characters of a failure's reason in a comment."""


class CauseData(msgspec.Struct, frozen=True):
    trigger: str | None = None
    ref: str | None = None


class ImageData(msgspec.Struct, frozen=True):
    repository: str
    reference: str | None = None
    digest: str | None = None


class BuildData(msgspec.Struct, frozen=True, kw_only=True):
    """The used parts of an event's data."""

    name: str
    repository: str
    commit: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40,64}\Z")]
    image: ImageData
    reason: str | None = None
    message: str | None = None
    causes: tuple[CauseData, ...] = ()


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


def build_of(event: Event) -> BuildData:
    """Parse the build. Raises msgspec.ValidationError for other data."""
    return msgspec.convert(event.data, BuildData)


def word_of(event: Event) -> str:
    return event.type.split(".")[3]


def context_of(trigger: str | None) -> str:
    """Return the name of a status at its host."""
    return f"kiln/{trigger}" if trigger else "kiln"


def said(event: Event, *, context: str, url: str, longest: int, discreet: bool) -> Said:
    """Return the status of a build for an event. `longest` is the host's limit of a description, in characters."""
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


def _description(build: BuildData, word: str, longest: int, *, discreet: bool) -> str:
    if word == BUILT:
        return _image(build.image, longest)
    if word in UNDER_WAY:
        return UNDER_WAY[word]
    if word == "cancelled":
        return CANCELLED.get(build.reason or "", "Cancelled")
    return plain(sentence(build, discreet=discreet), longest)


def sentence(build: BuildData, *, discreet: bool) -> str:
    """Return the reason of the failure."""
    reason = build.reason or "failed"
    if discreet or not build.message:
        return FAILED.get(reason, "The build failed")
    return f"{reason}: {build.message}"


def _image(image: ImageData, longest: int) -> str:
    """Shorten the reference without creating another valid name: the digest goes last."""
    digest = image.digest or ""
    wholes = (image.reference or "", f"{image.repository}@{digest}", digest)
    return next((whole for whole in wholes if whole and len(whole) <= longest), "Built")


def plain(text: str, longest: int) -> str:
    """Return one line of at most so many characters, without mentions."""
    text = one_line(text).replace("@", f"@{ZERO_WIDTH}")
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def one_line(text: str) -> str:
    """Remove line breaks, control and bidirectional characters."""
    return re.sub(r"\s+", " ", "".join(each if each.isprintable() else " " for each in text)).strip()


# Comments ------------------------------------------------------------------------------------------------------------


def code(text: str) -> str:
    """Return a code span (CommonMark 0.31, §6.1), whose fence is longer than any run of backticks in the text."""
    text = one_line(text).replace("@", f"@{ZERO_WIDTH}") or " "
    fence = _fence(text, 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """Return a fenced code block (CommonMark 0.31, §4.5) around one line."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _fence(text: str, least: int) -> str:
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


def section(event: Event, *, context: str, url: str, discreet: bool) -> str:
    """Return the section of a comment for an ended build."""
    build = build_of(event)
    head = f"{code(context)}: {code(build.commit[:12])}"
    link = f"[The build](<{url}>)"
    if word_of(event) == BUILT:
        name = f"{build.image.repository}@{build.image.digest}" if build.image.digest else str(build.image.reference)
        run = f"docker run --rm -it -p 8888:8888 {shlex.quote(name)}"
        return f"{head} is built. {link}\n\n{block(one_line(run), 'sh')}"
    return f"{head} could not be built. {link}\n\n{block(plain(sentence(build, discreet=discreet), LONGEST_SENTENCE))}"
