"""Pages for people: the builds there are, and one build with its log as it grows.

Each is whole without JavaScript (a live page then reloads itself); with it the log is followed as it is written, and
the facts around it are fetched anew from the same page. Whatever a repository or its log says is text here, never
markup: everything is escaped by the templates, and the Content-Security-Policy lets nothing inline run.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, request, url_for

from builds.build import Build, State
from builds.engines import AlreadyEnded, Unavailable
from builds.repository import short_name
from handlers import html, problems, signin
from handlers.builds import cancel, list_builds, look, may_cancel, shape
from handlers.problems import Problem
from handlers.services import services

routes = Blueprint("pages", __name__)

SHOWN_LINES = 2000
"""Of a log on a page; the whole is one link away."""
UNREADABLE = "[The log cannot be read just now. Its end, from the record:]"

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


routes.before_request(signin.take_token)


@routes.get("/", provide_automatic_options=False)
def index() -> Response:
    identity = services().auth.admit(request)
    page = list_builds(identity)
    asked = {name: request.args.get(name, "") for name in ("repository", "state")}
    kept = {name: value for name, value in asked.items() if value}
    return html.page(
        "index.html",
        identity,
        builds=[shape(build) for build in page.builds],
        states=[state.value for state in State],
        asked=asked,
        newest=url_for("pages.index") + _query(kept),
        older=url_for("pages.index") + _query({**kept, "continue": page.cursor}) if page.cursor else None,
        first="continue" not in request.args,
    )


@routes.get("/builds/<name>")
def build(name: str) -> Response:
    identity = services().auth.admit(request)
    found = look(name, identity)
    return html.page(
        "build.html",
        identity,
        build=shape(found),
        log=_log(found),
        shown=SHOWN_LINES,
        live=not found.state.ended,
        may_cancel=may_cancel(found, identity),
    )


@routes.post("/builds/<name>/cancel")
def cancel_build(name: str) -> Response:
    identity = services().auth.admit(request)
    html.check_form(identity)
    with suppress(AlreadyEnded):  # the page says so
        cancel(name, identity)
    return html.to(url_for("pages.build", name=name))


@routes.errorhandler(Problem)
def ask_who_it_is(problem: Problem) -> Response:
    """A browser that brings nothing is asked where the page would have been; everything else gets the problem."""
    if problem.status != HTTPStatus.UNAUTHORIZED or not problems.for_a_person():
        return problems.answer(problem)
    return signin.ask(problem)


def _query(values: Mapping[str, str]) -> str:
    return f"?{urlencode(values)}" if values else ""


def _log(build: Build) -> list[dict[str, str | None]]:
    """Its end as the record has it, where it cannot be read."""
    lines = services().records.log(build.name, build.status.attempt)
    try:
        return [{"text": line.text, "phase": line.phase} for line in deque(lines, maxlen=SHOWN_LINES)]
    except Unavailable:
        kept = [UNREADABLE, *build.status.log_tail.splitlines()]
        return [{"text": text, "phase": None} for text in kept]


# How the templates say values


@routes.app_template_filter()
def plain(text: str) -> str:
    """Text of a terminal without its codes, what a carriage return wrote over, and what turns text around."""
    return _CONTROL.sub("", _ANSI.sub("", text.rstrip("\r").rpartition("\r")[2]))


@routes.app_template_filter()
def minute(time: str | None) -> str:
    return "" if time is None else f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"


@routes.app_template_filter()
def lasted(build: Mapping[str, Any]) -> str:
    """How long a build, or one attempt at it, ran: `1 min 5 s`; empty before its end."""
    if not build["started_at"] or not build["finished_at"]:
        return ""
    began, ended = (datetime.fromisoformat(build[name]) for name in ("started_at", "finished_at"))
    minutes, seconds = divmod(max(0, round((ended - began).total_seconds())), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


@routes.app_template_filter()
def branch(ref: str | None) -> str:
    """A ref as people say it."""
    return short_name(ref or "")


@routes.app_template_test()
def web_address(url: str) -> bool:
    return url.startswith(("https://", "http://"))
