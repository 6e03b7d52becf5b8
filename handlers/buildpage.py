"""One build's page: how far it has come, why it failed, its image, and its log in colours as it grows.

The page is whole without JavaScript, then with the end of the log. With it, `static/log.js` follows the stream of
`log`, whose lines come as runs of one style each (`eventing.terminal`): the script knows no control sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flask import Response, request, url_for

from builds.build import Build, State
from builds.engines import AlreadyEnded, LogLine, NothingToSend, Unavailable
from builds.explanation import explain
from eventing.terminal import Run, styled
from handlers import html, signin
from handlers.auth import Identity
from handlers.builds import (
    as_text,
    attempt_asked,
    cancel,
    followed,
    follows,
    look,
    may_cancel,
    may_resend,
    rebuild,
    resend,
    shape,
)
from handlers.services import services

SHOWN_LINES = 1000
"""Of a log on a page without JavaScript; the whole is one link away."""
UNREADABLE = "[The log cannot be read just now. Its end, from the record:]"
PHASES = ("fetch", "build", "push")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a build. `state` is `done`, `current`, `failed`, or empty for one that has not begun."""

    name: str
    seconds: float | None
    state: str


@dataclass(frozen=True, kw_only=True)
class Line:
    number: int
    runs: Sequence[Run]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Lines of one phase that stand together."""

    attempt: int
    phase: str | None
    lines: list[Line]


def build(name: str) -> Response:
    """With `?part=facts` without the log, which the script has already."""
    identity = services().auth.admit(request)
    found = look(name, identity)
    attempt = attempt_asked(found)
    sections = [] if request.args.get("part") == "facts" else _sections(_log(found, attempt))
    shown = shape(found)
    return html.page(
        "build.html",
        identity,
        build=shown,
        attempt=attempt,
        first_attempt=attempt or found.first_attempt,
        sections=sections,
        cut=sum(len(section.lines) for section in sections) >= SHOWN_LINES,
        steps=steps(shown, next((section.phase for section in reversed(sections) if section.phase), None)),
        explanation=explain(shown),
        live=not found.state.ended,
        may_cancel=may_cancel(found, identity),
        may_rebuild=_may_rebuild(found, identity),
        resendable=_resendable(shown) if may_resend(found, identity) else {},
        hub=signin.hub_page("spawn"),
    )


def log(name: str) -> Response:
    """The log as a file, or followed as in the API, with lines as runs of `[classes, text]` where they have a style."""
    identity = services().auth.admit(request)
    found = look(name, identity)
    wanted = attempt_asked(found)
    if follows():
        return followed(found, wanted, identity, line_as_runs)
    number = wanted or found.status.attempt
    # A link with `download` is no navigation to a browser (Fetch Metadata), so it would be refused (`handlers.xsrf`).
    headers = {"Content-Disposition": f'attachment; filename="{found.name}-{number}.log"'}
    return as_text(found, number, headers)


def cancel_build(name: str) -> Response:
    identity = services().auth.admit(request)
    html.check_form(identity)
    with suppress(AlreadyEnded):  # the page says so
        cancel(name, identity)
    return html.to(url_for("pages.build", name=name))


def rebuild_build(name: str) -> Response:
    identity = services().auth.admit(request)
    html.check_form(identity)
    return html.to(url_for("pages.build", name=rebuild(name, identity, via="pages").name))


def resend_event(name: str) -> Response:
    identity = services().auth.admit(request)
    html.check_form(identity)
    with suppress(NothingToSend):  # the page shows the deliveries
        resend(name, request.form.get("sink", ""), identity)
    return html.to(url_for("pages.build", name=name))


def _resendable(build: Mapping[str, Any]) -> Mapping[str, int]:
    """By sink, the place of its latest delivery, unless that is pending: the row with the button."""
    latest = {delivery["sink"]: place for place, delivery in enumerate(build["deliveries"])}
    return {sink: place for sink, place in latest.items() if build["deliveries"][place]["state"] != "pending"}


def _may_rebuild(build: Build, identity: Identity) -> bool:
    """An image that is there is built once more only for those who may say how to build."""
    return build.state.ended and (build.state is not State.SUCCEEDED or identity.chooses)


def line_as_runs(line: LogLine) -> object:
    """Of a `log` event: `line` is the text, `runs` only there where any of it has a style."""
    runs = styled(line.text)
    value = {"line": "".join(run.text for run in runs), "phase": line.phase}
    return {**value, "runs": [[run.style, run.text] for run in runs]} if any(run.style for run in runs) else value


def steps(build: Mapping[str, Any], phase: str | None) -> list[Step]:
    """The way of a build, with the seconds of each step of its latest attempt. `phase` is what its log is about."""
    durations: Mapping[str, float | None] = build["durations"]
    reached = _reached(build, phase)
    waits = build["state"] == "queued"
    ended = {"failed": "failed", "cancelled": "failed"}.get(build["state"], "current")
    found = [Step(name="queued", seconds=durations["queued"], state="current" if waits else "done")]
    for name in PHASES:
        state = "done" if build["state"] == "succeeded" or PHASES.index(name) < reached else ""
        if not waits and build["state"] != "succeeded" and PHASES.index(name) == reached:
            state = ended
        found.append(Step(name=name, seconds=None if waits else durations[name], state=state))
    return found


def _reached(build: Mapping[str, Any], phase: str | None) -> int:
    """The place of the step that the build is at or ended in; -1 before the first."""
    if build["state"] == "queued" or not build["started_at"]:
        return -1
    if build["state"] == "running" and phase in PHASES:
        return PHASES.index(phase)
    done = [place for place, name in enumerate(PHASES) if build["durations"][name] is not None]
    return max(done, default=PHASES.index(phase) if phase in PHASES else 0)


def _log(build: Build, attempt: int | None) -> Iterable[LogLine]:
    """The end of an attempt's log, or as the record has it, where it cannot be read."""
    number = attempt or max(build.status.attempt, build.first_attempt)
    try:
        return deque(services().records.log(build.name, number), maxlen=SHOWN_LINES)
    except Unavailable:
        kept = [UNREADABLE, *build.status.log_tail.splitlines()]
        return [LogLine(attempt=number, number=place, text=text) for place, text in enumerate(kept)]


def _sections(lines: Iterable[LogLine]) -> list[Section]:
    """Lines without a phase belong to what stands before them."""
    sections: list[Section] = []
    for line in lines:
        if not sections or (line.phase and line.phase != sections[-1].phase):
            sections.append(Section(attempt=line.attempt, phase=line.phase, lines=[]))
        sections[-1].lines.append(Line(number=line.number, runs=styled(line.text)))
    return sections
