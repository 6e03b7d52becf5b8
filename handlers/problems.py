"""Errors as RFC 9457 problem details: one shape and one table from exceptions to statuses, for every route.

The sentence in `detail` is for a person who can act on it, and is the exception's own message: whoever raises one of
these writes it for the sender, without secrets. Anything not in the table is a fault of ours: it is logged with its
traceback, and the sender learns nothing but that.

Statuses are chosen for senders that repeat (peers of Knative's kind retry 404, 408 and 409, and drop 400, 413, 422):
what will not get better is final, what may is 429 or 503 with `Retry-After`.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from flask import Flask, Response, render_template, request
from werkzeug.exceptions import HTTPException

from builds.engines import AlreadyEnded, EngineError, NotFound, QueueFull
from builds.errors import RequestError, TryAgain
from eventing.errors import EventError

BUSY = 30
"""Seconds after which a sender may try again when the queue is full."""
AWAY = 5
"""… when something that should answer does not."""


class Problem(Exception):
    """Ends a request with this status and sentence. `headers` go along."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


KINDS = (Problem, HTTPException, RequestError, EngineError, EventError)
"""What may end a request."""


def register(app: Flask) -> None:
    for kind in KINDS:
        app.register_error_handler(kind, answer)


def problem_of(error: Exception) -> Problem:
    """What an exception means to the one who sent the request. Raises it again where it is in no table."""
    match error:
        case Problem():
            return error
        case TryAgain():
            return Problem(error.status, str(error), {"Retry-After": str(max(1, round(error.retry_after)))})
        case RequestError() | EventError():
            return Problem(error.status, str(error))
        case EngineError():
            return _of_engine(error)
        case HTTPException():
            kept = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
            said = "There is nothing at this address." if error.code == HTTPStatus.NOT_FOUND else error.description
            return Problem(error.code or 500, said or "", kept)
    raise error


def _of_engine(error: EngineError) -> Problem:
    match error:
        case NotFound():
            return Problem(404, "There is no such build.")
        case AlreadyEnded():
            return Problem(409, "The build has ended: there is nothing to cancel.")
        case QueueFull():
            return Problem(429 if error.per_user else 503, str(error), {"Retry-After": str(BUSY)})
    return Problem(503, "The records cannot be reached just now. Try again.", {"Retry-After": str(AWAY)})


def answer(error: Exception) -> Response:
    problem = problem_of(error)
    title = HTTPStatus(problem.status).phrase
    if for_a_person():
        html = render_template("problem.html", title=title, detail=problem.detail)
        return Response(html, problem.status, problem.headers, mimetype="text/html")
    body = {"type": "about:blank", "title": title, "status": problem.status, "detail": problem.detail}
    return Response(msgspec.json.encode(body), problem.status, problem.headers, mimetype="application/problem+json")


def for_a_person() -> bool:
    """Whether a browser asked for a page. Whatever else comes, wherever, gets JSON."""
    on_a_page = request.blueprint in ("pages", "signin") or (request.url_rule is None and request.method == "GET")
    return on_a_page and "text/html" in request.accept_mimetypes.values()
