"""Sign-in to the pages: the form for an API token, and the redirects to the sign-in of a Hub or an issuer and back.

Each way ends in a cookie for the base path. If the Hub or the issuer is the only way, a browser without a cookie goes
there immediately, and returns to the page that it opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlencode

from flask import Blueprint, Response, request, url_for

from handlers import html, problems, xsrf
from handlers.auth import SESSION, SESSION_SECONDS, Session
from handlers.hub import HUB_SESSION, HubService, HubSession
from handlers.oidc import OIDC_SESSION, OidcSession, OidcSignIn
from handlers.problems import Problem
from handlers.seals import SIGN_IN, SIGN_IN_SECONDS, SignIn, new_nonce
from handlers.services import services

routes = Blueprint("signin", __name__)


def ask(problem: Problem) -> Response:
    """Return the answer in place of a page: the sign-in elsewhere, or the page with all ways to sign in."""
    navigates = request.method == "GET" and request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
    elsewhere = [site for site in (_hub(), _issuer()) if site is not None]
    if navigates and len(elsewhere) == 1 and not _tokens() and request.blueprint == "pages":
        query = request.query_string.decode("ascii", "replace")
        target = url_for(str(request.endpoint), **(request.view_args or {})) + (f"?{query}" if query else "")
        try:
            return _over(elsewhere[0], target)
        except problems.KINDS as error:  # this answers an error already, and its own errors would have no handler
            return problems.answer(error)
    wrong = problem.detail if request.endpoint == "signin.login" else None
    build = (request.view_args or {}).get("name") or request.form.get("build", "")
    return _doors(build, wrong, problem)


@routes.get("/login")
def doors() -> Response:
    return _doors("", None, None)


@routes.post("/login")
def login() -> Response:
    """Set the session cookie for a valid token; show the form again for an invalid one."""
    html.check_form()
    response = _signed_in(request.form.get("token", ""), _place(request.form.get("build")))
    if response is None:
        raise Problem(401, "Unknown token.")
    return response


def take_token() -> Response | None:
    """Exchange the URL with this machine's token, which web prints, for the same URL without it and a cookie."""
    if not services().loopback_only or "token" not in request.args or request.method != "GET":
        return None
    kept = [(name, value) for name, value in request.args.items(multi=True) if name != "token"]
    place = url_for(str(request.endpoint), **(request.view_args or {})) + (f"?{urlencode(kept)}" if kept else "")
    return _signed_in(request.args["token"], place)


def _signed_in(token: str, place: str) -> Response | None:
    sessions = _tokens()
    value = sessions and sessions.begin(token.strip().encode())
    if not value:
        return None
    response = html.see_other(place)
    html.set_cookie(response, SESSION, value, SESSION_SECONDS)
    return response


@routes.get("/login/hub")
def login_over_the_hub() -> Response:
    return _over(_service(), _place(request.args.get("build")))


@routes.get("/login/oidc")
def login_over_the_issuer() -> Response:
    return _over(_issuer_service(), _place(request.args.get("build")))


@routes.get("/oauth_callback")
def come_back() -> Response:
    """Handle the redirect from the Hub, with a code to exchange. Raises Problem, HubAway."""
    return _come_back(_service(), HUB_SESSION)


@routes.get("/oidc_callback")
def come_back_from_the_issuer() -> Response:
    """Handle the redirect from an issuer. Raises Problem, IssuerAway."""
    return _come_back(_issuer_service(), OIDC_SESSION)


def _come_back(site: SignIn, cookie: str) -> Response:
    state, nonce = request.args.get("state", ""), request.cookies.get(SIGN_IN, "")
    target = site.target(state, nonce)
    if target is None:
        raise Problem(403, "This sign-in has expired, or began in another browser. Open the page again.")
    if "error" in request.args:
        raise Problem(403, f"{site.name} denied the sign-in. Ask its admins for access to this service.")
    value = site.session(request.args.get("code", ""), state, nonce)
    if value is None:
        raise Problem(403, f"{site.name} does not know this sign-in, or it was used before. Open the page again.")
    response = html.see_other(target)
    html.set_cookie(response, cookie, value, site.session_seconds, samesite="Lax")
    opened = site.opened(value)
    if opened:
        html.set_cookie(response, xsrf.COOKIE, opened[1].xsrf, site.session_seconds)
    response.delete_cookie(SIGN_IN, path=services().base_path)
    return response


@routes.post("/logout")
def logout() -> Response:
    """End the session on every replica; a session that began at the Hub ends there, too.

    A page redirects there, because browsers check redirects of a form against `form-action`, too. A Hub may be on
    another host, or redirect to the host with its user accounts.
    """
    identity = services().auth.admit(request)
    html.check_form(identity)
    if identity.session:
        services().sessions.end(identity.session.id, identity.session.expiry)
    service = _hub()
    over_the_hub = service is not None and HUB_SESSION in request.cookies
    if service and over_the_hub:
        response = html.page("signed_out.html", None, hub=service.logout_url)
    else:
        response = html.see_other(url_for("signin.doors"))
    for name in (SESSION, HUB_SESSION, OIDC_SESSION, xsrf.COOKIE):
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
        tokens=_tokens() is not None,
        local=services().loopback_only,
        hub=_hub() is not None,
        issuer=_issuer(),
    )


def _over(site: SignIn, target: str) -> Response:
    """Keep the nonce: a sign-in in another tab shares it."""
    nonce = request.cookies.get(SIGN_IN) or new_nonce()
    response = html.see_other(site.begin(nonce, target))
    html.set_cookie(response, SIGN_IN, nonce, SIGN_IN_SECONDS, samesite="Lax")
    return response


def _place(build: str | None) -> str:
    return url_for("pages.build", name=build) if build else url_for("pages.index")


def hub_pages() -> Mapping[str, str] | None:
    """Return the URLs of the Hub's pages `home` and `spawn`; `None` if Kiln is not the service of a Hub."""
    service = _hub()
    if service is None:
        return None
    return {name: service.logout_url.removesuffix("logout") + name for name in ("home", "spawn")}


def _hub() -> HubService | None:
    way = services().auth.of(HubSession)
    return way.service if way else None


def _service() -> HubService:
    service = _hub()
    if service is None:
        raise Problem(404, "Kiln is not configured as a service of a JupyterHub.")
    return service


def _issuer() -> OidcSignIn | None:
    way = services().auth.of(OidcSession)
    return way.site if way else None


def _issuer_service() -> OidcSignIn:
    site = _issuer()
    if site is None:
        raise Problem(404, "Kiln is not configured for sign-in by OpenID Connect.")
    return site


def _tokens() -> Session | None:
    return services().auth.of(Session)
