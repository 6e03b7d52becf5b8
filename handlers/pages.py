"""Pages for people: their routes, and one build with its log as it grows. `lists` has those that list builds.

Each is whole without JavaScript (a live page then reloads itself); with it the log is followed as it is written, and
the facts around it are fetched anew from the same page. Whatever a repository or its log says is text here, never
markup: everything is escaped by the templates, and the Content-Security-Policy lets nothing inline run.
"""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress
from http import HTTPStatus

from flask import Blueprint, Response, request, url_for

from builds.build import Build
from builds.engines import AlreadyEnded, Unavailable
from builds.repository import short_name
from handlers import html, lists, problems, signin, times
from handlers.builds import cancel, look, may_cancel, shape
from handlers.problems import Problem
from handlers.services import services

routes = Blueprint("pages", __name__)
routes.add_url_rule("/", view_func=lists.index, provide_automatic_options=False)
routes.add_url_rule("/repository", view_func=lists.repository)
for read in times.FILTERS:
    routes.add_app_template_filter(read)

SHOWN_LINES = 2000
"""Of a log on a page; the whole is one link away."""
UNREADABLE = "[The log cannot be read just now. Its end, from the record:]"

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


routes.before_request(signin.take_token)


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
def branch(ref: str | None) -> str:
    """A ref as people say it."""
    return short_name(ref or "")


@routes.app_template_test()
def web_address(url: str) -> bool:
    return url.startswith(("https://", "http://"))
