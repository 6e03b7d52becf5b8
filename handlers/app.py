"""The WSGI application: `create_app(services)`, and what holds for every request of it.

Stateless: everything is in the records, so any number of these answer side by side. A route is found in one place per
prefix: `events`, `webhooks`, `builds` (the JSON API), `binderhub` (its API), `documents`, `badges`, `pages`
and `signin` (the pages' doors).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from flask import Flask, Response

from builds.structs import make_ready
from handlers import (
    badges,
    binderhub,
    bodies,
    builds,
    documents,
    events,
    html,
    metrics,
    pages,
    problems,
    signin,
    tracing,
    webhooks,
)
from handlers.auth import refuse_foreigners
from handlers.services import Services, services, this_request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["Services", "create_app"]

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # The only value that parts a page from an opener of its own origin: another user's server may be one.
    "Cross-Origin-Opener-Policy": "noopener-allow-popups",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every response that does not set them itself. They keep a hostile log line or repository name from being
more than text."""
_BY_NAME = {name.lower(): (name, value) for name, value in HEADERS.items()}


class Application(Flask):
    """Flask whose addresses begin with the base path as it was given: a browser compares a cookie's path by letter.

    A path may have empty parts, as an address has that was joined with one `/` too many. Flask itself would redirect.
    """

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["PATH_INFO"] = re.sub("//+", "/", environ.get("PATH_INFO", ""))
        environ["kiln.began"] = time.perf_counter()

        def start(status: str, headers: list[tuple[str, str]], *failed: Any) -> Callable[[bytes], object]:
            there = {name.lower() for name, _ in headers}
            missing = [header for name, header in _BY_NAME.items() if name not in there]
            return start_response(status, headers + missing, *failed)

        return super().wsgi_app(environ, start)

    def url_for(self, endpoint: str, **values: Any) -> str:
        base: str = self.extensions["kiln"].base_path
        return base + super().url_for(endpoint, **values).split("/", base.count("/"))[-1]


def create_app(held: Services) -> Flask:
    """The application for these services. Raises nothing; does no I/O until the first request."""
    make_ready()
    prefix = unquote(held.base_path).rstrip("/")  # routes are compared with decoded paths
    app = Application("handlers", static_url_path=f"{prefix}/static")
    app.extensions["kiln"] = held
    # for the pages' forms; all else is read by `bodies`
    app.config.update(MAX_CONTENT_LENGTH=held.max_body, MAX_FORM_MEMORY_SIZE=held.max_body)
    app.url_map.strict_slashes = False  # a redirect is lost on a sender of events
    app.jinja_env.globals["integrity"] = html.integrity
    problems.register(app)
    for part in (events, webhooks, builds, binderhub, documents, badges, pages, signin):
        app.register_blueprint(part.routes, url_prefix=f"{prefix}{part.routes.url_prefix or ''}" or None)
    app.before_request(_begin)
    app.after_request(_finish)
    return app


def _begin() -> None:
    held = services()
    tracing.begin(held.spans)
    if held.loopback_only:
        refuse_foreigners(this_request())


def _finish(response: Response) -> Response:
    """Complete each answer and observe its duration."""
    request = this_request()
    if response.status_code >= HTTPStatus.BAD_REQUEST:
        bodies.drain()
    if not response.response and request.method != "HEAD":
        response.headers.pop("Content-Type", None)  # nothing is not HTML
    route = request.url_rule.rule if request.url_rule else "none"
    request.environ.setdefault("kiln.log", {})["route"] = route
    seconds = time.perf_counter() - request.environ["kiln.began"]
    method = request.method if request.method in _METHODS else "other"
    metrics.SECONDS.labels(route, method, response.status_code).observe(seconds)
    tracing.finish(request, response, services().spans)
    return response


_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
