"""The page of one build: its progress, the reason of a failure, its image, and its log.

Without JavaScript the page contains the end of the log. With it, `static/log.js` follows the stream of `log`, which
delivers each line as runs of one style (`eventing.terminal`), so the script needs no knowledge of control sequences.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from flask import Response, request, url_for

from builds.build import Build, State
from builds.engines import AlreadyEnded, LogLine, NothingToSend, Unavailable
from builds.explanation import explain
from eventing.terminal import Run, styled
from handlers import html, signin
from handlers.auth import Identity
from handlers.builds import (
    build_view,
    cancel,
    get_build,
    log_stream,
    log_text,
    may_cancel,
    may_resend,
    rebuild,
    requested_attempt,
    resend,
    wants_stream,
)
from handlers.lists import repository_name
from handlers.services import services

MAX_LINES = 1000
"""Lines of the log in a page without JavaScript, which links to the whole log."""
UNREADABLE = "[The log is not readable now. These are its last lines, from the record of the build:]"
PHASES = ("fetch", "build", "push")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a build. `state` is `done`, `current` or `failed`; it is empty for a step that has not begun."""

    name: str
    seconds: float | None
    state: str


@dataclass(frozen=True, kw_only=True)
class Line:
    number: int
    runs: Sequence[Run]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Consecutive lines of one phase."""

    attempt: int
    phase: str | None
    lines: list[Line]


def build(name: str) -> Response:
    """Return the page; with `?part=facts` without the log, which the script has already."""
    identity = services().auth.admit(request)
    found = get_build(name, identity)
    attempt = requested_attempt(found)
    view = build_view(found)
    log_end = cache(partial(_log_end, found))
    facts_only = request.args.get("part") == "facts"
    sections = [] if facts_only else _sections(log_end(attempt or view["attempt"]))
    in_log = needs_log(view, facts_only=facts_only)
    return html.page(
        "build.html",
        identity,
        build=view,
        repo=repository_name(found.request.repository),
        attempt=attempt,
        first_attempt=attempt or found.first_attempt,
        sections=sections,
        max_lines=MAX_LINES,
        truncated=sum(len(section.lines) for section in sections) >= MAX_LINES,
        steps=steps(view, _last_phase(log_end(view["attempt"])) if in_log else None),
        explanation=explain(view),
        live=not found.state.ended,
        may_cancel=may_cancel(found, identity),
        may_rebuild=_may_rebuild(found, identity),
        resendable=_resendable(view) if may_resend(found, identity) else {},
        hub=None if found.request.stays else signin.hub_pages(),
    )


def log(name: str) -> Response:
    """Return the log as a file, or as the API's stream, where a line with styles also has runs of `[classes, text]`."""
    identity = services().auth.admit(request)
    found = get_build(name, identity)
    attempt = requested_attempt(found)
    if wants_stream():
        return log_stream(found, attempt, identity, line_as_runs)
    number = attempt or found.status.attempt
    # This header makes the link a download. An attribute `download` would do so, too, but then the browser sends a
    # request that is no navigation (Fetch Metadata), and `handlers.xsrf` refuses it.
    headers = {"Content-Disposition": f'attachment; filename="{found.name}-{number}.log"'}
    return log_text(found, number, headers)


def cancel_build(name: str) -> Response:
    identity = services().auth.admit(request)
    html.check_form(identity)
    with suppress(AlreadyEnded):  # the page shows the end
        cancel(name, identity)
    return html.see_other(url_for("pages.build", name=name))


def rebuild_build(name: str) -> Response:
    identity = services().auth.admit(request)
    html.check_form(identity)
    return html.see_other(url_for("pages.build", name=rebuild(name, identity, via="pages").name))


def resend_event(name: str) -> Response:
    identity = services().auth.admit(request)
    html.check_form(identity)
    with suppress(NothingToSend):  # the page shows the deliveries
        resend(name, request.form.get("sink", ""), identity)
    return html.see_other(url_for("pages.build", name=name))


def _resendable(build: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the index of each sink's latest delivery, unless it is pending. Its row has the button."""
    latest = {delivery["sink"]: place for place, delivery in enumerate(build["deliveries"])}
    return {sink: place for sink, place in latest.items() if build["deliveries"][place]["state"] != "pending"}


def _may_rebuild(build: Build, identity: Identity) -> bool:
    """Return whether the build has ended. To repeat a successful build, the user must be allowed to use `force`."""
    return build.state.ended and (build.state is not State.SUCCEEDED or identity.chooses)


def line_as_runs(line: LogLine) -> object:
    """Return the data of a `log` event: `line` is the text. A line with styles also has `runs`."""
    runs = styled(line.text)
    value = {"line": "".join(run.text for run in runs), "phase": line.phase}
    return {**value, "runs": [[run.style, run.text] for run in runs]} if any(run.style for run in runs) else value


def steps(build: Mapping[str, Any], phase: str | None) -> list[Step]:
    """Return the steps of a build's latest attempt, with their seconds. `phase` is the last one in its log."""
    durations: Mapping[str, float | None] = build["durations"]
    reached = _reached(build, phase)
    queued = build["state"] == "queued"
    last_state = {"failed": "failed", "cancelled": "failed"}.get(build["state"], "current")
    found = [Step(name="queued", seconds=durations["queued"], state="current" if queued else "done")]
    for name in PHASES:
        state = "done" if build["state"] == "succeeded" or PHASES.index(name) < reached else ""
        if not queued and build["state"] != "succeeded" and PHASES.index(name) == reached:
            state = last_state
        found.append(Step(name=name, seconds=None if queued else durations[name], state=state))
    return found


def needs_log(build: Mapping[str, Any], *, facts_only: bool = False) -> bool:
    """Return whether only the log shows which phase the latest attempt has reached.

    An attempt that still runs, or that left no result, has no durations. The script, which requests only the facts,
    follows the log of a running build itself.
    """
    if not build["started_at"] or build["state"] in ("queued", "succeeded"):
        return False
    has_durations = any(build["durations"][name] is not None for name in PHASES)
    return not has_durations and not (facts_only and build["state"] == "running")


def _reached(build: Mapping[str, Any], phase: str | None) -> int:
    """Return the index of the current or last phase, -1 before the first."""
    if build["state"] == "queued" or not build["started_at"]:
        return -1
    found = [place for place, name in enumerate(PHASES) if name == phase or build["durations"][name] is not None]
    return max(found, default=0)


def _log_end(build: Build, attempt: int) -> Sequence[LogLine]:
    """Return the last lines of an attempt's log, or those in the record if the log is unreadable."""
    try:
        return deque(services().records.log(build.name, attempt), maxlen=MAX_LINES)
    except Unavailable:
        kept = [UNREADABLE, *build.status.log_tail.splitlines()]
        return [LogLine(attempt=attempt, number=place, text=text) for place, text in enumerate(kept)]


def _last_phase(lines: Sequence[LogLine]) -> str | None:
    return next((line.phase for line in reversed(lines) if line.phase), None)


def _sections(lines: Iterable[LogLine]) -> list[Section]:
    """Group the lines by phase. A line without a phase belongs to the section before it."""
    sections: list[Section] = []
    for line in lines:
        if not sections or (line.phase and line.phase != sections[-1].phase):
            sections.append(Section(attempt=line.attempt, phase=line.phase, lines=[]))
        sections[-1].lines.append(Line(number=line.number, runs=styled(line.text)))
    return sections
