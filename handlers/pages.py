"""Pages for people: the builds there are, and one build with its log as it grows.

Each is whole without JavaScript (a live page then reloads itself); with it the log is followed as it is written, and
the facts around it are fetched anew from the same page. Whatever a repository or its log says is text here, never
markup: everything is escaped by the templates, and the Content-Security-Policy lets nothing inline run.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for

from builds.build import Build, State
from builds.engines import AlreadyEnded
from builds.repository import short_name
from handlers import problems
from handlers.auth import SESSION, SESSION_SECONDS, Identity, foreign_origin, name_of, session
from handlers.builds import cancel, list_builds, shape
from handlers.problems import Problem
from handlers.services import services

routes = Blueprint("pages", __name__)

CSRF = "kiln-form"
SHOWN_LINES = 2000
"""Of a log on a page; the whole is one link away."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@routes.get("/", provide_automatic_options=False)
def index() -> Response:
    identity = services().auth.admit(request)
    page = list_builds()
    asked = {name: request.args.get(name, "") for name in ("repository", "state")}
    kept = {name: value for name, value in asked.items() if value}
    return _page(
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
    found = services().records.get(name)
    return _page(
        "build.html",
        identity,
        build=shape(found),
        log=_log(found),
        shown=SHOWN_LINES,
        live=not found.state.ended,
    )


@routes.post("/builds/<name>/cancel")
def cancel_build(name: str) -> Response:
    _check_form()
    identity = services().auth.admit(request)
    with suppress(AlreadyEnded):  # the page says so
        cancel(name, identity)
    return _to(url_for("pages.build", name=name))


@routes.post("/login")
def login() -> Response:
    """Sets the session cookie for a right token; asks again for a wrong one."""
    _check_form()
    given = request.form.get("token", "").strip().encode()
    tokens = services().tokens()
    name = name_of(given, tokens)
    if name is None or not services().auth.asks:
        raise Problem(401, "There is no such token.")
    build = request.form.get("build")
    response = _to(url_for("pages.build", name=build) if build else url_for("pages.index"))
    value = session(name, tokens[name], int(time.time()) + SESSION_SECONDS)
    _set_cookie(response, SESSION, value, SESSION_SECONDS)
    return response


@routes.post("/logout")
def logout() -> Response:
    _check_form()
    response = _to(url_for("pages.index"))
    response.delete_cookie(SESSION, path=services().base_path)
    return response


@routes.errorhandler(Problem)
def ask_for_token(problem: Problem) -> Response:
    """A browser that brings no token gets the form where the page would have been; everything else the problem."""
    if problem.status != HTTPStatus.UNAUTHORIZED or not problems.for_a_person():
        return problems.answer(problem)
    wrong = problem.detail if request.endpoint == "pages.login" else None
    build = (request.view_args or {}).get("name") or request.form.get("build", "")
    return _page("login.html", None, status=401, wrong=wrong, build=build, headers=problem.headers)


def _page(
    template: str,
    identity: Identity | None,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> Response:
    """A page and, because each has a form, the cookie that its forms must match."""
    nonce = request.cookies.get(CSRF, "")
    fresh = not re.fullmatch(r"[\w-]{43}", nonce, re.ASCII)
    nonce = secrets.token_urlsafe(32) if fresh else nonce
    html = render_template(template, nonce=nonce, by=identity.by if identity else None, **values)
    response = make_response(html, status, dict(headers or {}))
    if fresh:
        _set_cookie(response, CSRF, nonce, None)
    return response


def _check_form() -> None:
    """Whether one of our own pages sent the form: it holds what the cookie holds, which no other site can read."""
    nonce = request.cookies.get(CSRF, "").encode()
    if foreign_origin(request) or not nonce or not hmac.compare_digest(request.form.get("form", "").encode(), nonce):
        raise Problem(403, "This form has expired. Go back, reload the page and try again.")


def _set_cookie(response: Response, name: str, value: str, max_age: int | None) -> None:
    secure = (services().public_url or "").startswith("https:")
    path = services().base_path
    response.set_cookie(name, value, max_age=max_age, path=path, secure=secure, httponly=True, samesite="Strict")


def _to(location: str) -> Response:
    return make_response(redirect(location, 303))


def _query(values: Mapping[str, str]) -> str:
    return f"?{urlencode(values)}" if values else ""


def _log(build: Build) -> list[dict[str, str | None]]:
    lines = services().records.log(build.name, build.status.attempt)
    return [{"text": line.text, "phase": line.phase} for line in deque(lines, maxlen=SHOWN_LINES)]


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
