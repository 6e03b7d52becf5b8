"""The doors of the pages: the form for an API token, and the way over the Hub's own sign-in and back.

Each ends in a cookie for the base path. A browser without one that opens a page is sent on to the Hub at once where
that is the only door, and comes back to that page.
"""

from __future__ import annotations

import time
from http import HTTPStatus

from flask import Blueprint, Response, request, url_for

from handlers import html, problems
from handlers.auth import SESSION, SESSION_SECONDS, Session, name_of, session
from handlers.hub import HUB_SESSION, SIGN_IN, SIGN_IN_SECONDS, XSRF, HubService, HubSession, new_nonce
from handlers.problems import Problem
from handlers.services import services

routes = Blueprint("signin", __name__)


def ask(problem: Problem) -> Response:
    """What a browser gets in place of a page: the Hub's sign-in, or the page with the doors that there are."""
    navigates = request.method == "GET" and request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
    if navigates and _hub() and not _tokens() and request.endpoint in ("pages.index", "pages.build"):
        query = request.query_string.decode("ascii", "replace")
        return _over_the_hub(url_for(request.endpoint, **(request.view_args or {})) + (f"?{query}" if query else ""))
    wrong = problem.detail if request.endpoint == "signin.login" else None
    build = (request.view_args or {}).get("name") or request.form.get("build", "")
    return _doors(build, wrong, problem)


@routes.get("/login")
def doors() -> Response:
    return _doors("", None, None)


@routes.post("/login")
def login() -> Response:
    """Sets the session cookie for a right token; asks again for a wrong one."""
    html.check_form()
    given = request.form.get("token", "").strip().encode()
    tokens = services().tokens()
    name = name_of(given, tokens)
    if name is None or not _tokens():
        raise Problem(401, "There is no such token.")
    response = html.to(_place(request.form.get("build")))
    value = session(name, tokens[name], int(time.time()) + SESSION_SECONDS)
    html.set_cookie(response, SESSION, value, SESSION_SECONDS)
    return response


@routes.get("/login/hub")
def login_over_the_hub() -> Response:
    return _over_the_hub(_place(request.args.get("build")))


@routes.get("/oauth_callback")
def come_back() -> Response:
    """Where the Hub sends a browser that has signed in, with a code for us to exchange. Raises Problem, HubAway."""
    service = _service()
    target = service.target(request.args.get("state", ""), request.cookies.get(SIGN_IN, ""))
    if target is None:
        raise Problem(403, "This sign-in has expired, or was begun elsewhere. Open the page again.")
    if "error" in request.args:
        raise Problem(403, "The JupyterHub did not let you sign in here. Ask its admins for access to this service.")
    value = service.session(request.args.get("code", ""))
    if value is None:
        raise Problem(403, "The JupyterHub does not know this sign-in, or it was used already. Open the page again.")
    response = html.to(target)
    html.set_cookie(response, HUB_SESSION, value, service.session_seconds, samesite="Lax")
    html.set_cookie(response, XSRF, service.xsrf(value), service.session_seconds, readable=True)
    response.delete_cookie(SIGN_IN, path=services().base_path)
    return response


@routes.post("/logout")
def logout() -> Response:
    html.check_form()
    response = html.to(url_for("signin.doors"))
    for name in (SESSION, HUB_SESSION, XSRF):
        response.delete_cookie(name, path=services().base_path)
    return response


@routes.errorhandler(Problem)
def again(problem: Problem) -> Response:
    if problem.status != HTTPStatus.UNAUTHORIZED or not problems.for_a_person():
        return problems.answer(problem)
    return ask(problem)


def _doors(build: str, wrong: str | None, problem: Problem | None) -> Response:
    return html.page(
        "login.html",
        None,
        status=problem.status if problem else 200,
        headers=problem.headers if problem else None,
        wrong=wrong,
        build=build,
        tokens=_tokens(),
        hub=_hub() is not None,
    )


def _over_the_hub(target: str) -> Response:
    """A sign-in that is under way in another tab goes on: all share the nonce."""
    nonce = request.cookies.get(SIGN_IN) or new_nonce()
    response = html.to(_service().begin(nonce, target))
    html.set_cookie(response, SIGN_IN, nonce, SIGN_IN_SECONDS, samesite="Lax")
    return response


def _place(build: str | None) -> str:
    return url_for("pages.build", name=build) if build else url_for("pages.index")


def _hub() -> HubService | None:
    ways = services().auth.authenticators
    return next((way.service for way in ways if isinstance(way, HubSession)), None)


def _service() -> HubService:
    service = _hub()
    if service is None:
        raise Problem(404, "This Kiln is no service of a JupyterHub.")
    return service


def _tokens() -> bool:
    return services().auth.has(Session)
