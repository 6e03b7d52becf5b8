"""Errors as RFC 9457 problem details: one format and one table from exceptions to statuses, for every route.

`detail` is the exception's own message, written for a person who can act on it and without secrets. An exception
outside the table is a defect of Kiln: it is logged with its traceback, and the sender learns no details.

Statuses suit senders that retry (senders like Knative's retry 404, 408 and 409, and drop 400, 413, 422): permanent
errors are final, temporary ones are 429 or 503 with `Retry-After`.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from flask import Flask, Response, render_template, request
from werkzeug.exceptions import HTTPException

from builds.engines import AlreadyEnded, EngineError, NotFound, NothingToSend, QueueFull
from builds.errors import RequestError, TryAgain
from eventing.errors import EventError

BUSY_RETRY_AFTER = 30
"""Seconds after which a sender may retry when the queue is full."""
UNAVAILABLE_RETRY_AFTER = 5
"""… if a dependency does not answer."""


class Problem(Exception):
    """End a request with this status and sentence, and additional `headers`."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


KINDS = (Problem, HTTPException, RequestError, EngineError, EventError)
"""Exceptions that may end a request."""


def register(app: Flask) -> None:
    for kind in KINDS:
        app.register_error_handler(kind, answer)


def problem_of(error: Exception) -> Problem:
    """Map an exception to a problem. Raises it again if the table does not list it."""
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
            said = "Page not found." if error.code == HTTPStatus.NOT_FOUND else error.description
            return Problem(error.code or 500, said or "", kept)
    raise error


def _of_engine(error: EngineError) -> Problem:
    match error:
        case NotFound():
            return Problem(404, "Build not found.")
        case AlreadyEnded():
            return Problem(409, "The build has already ended.")
        case NothingToSend():
            return Problem(409, str(error))
        case QueueFull():
            return Problem(429 if error.per_user else 503, str(error), {"Retry-After": str(BUSY_RETRY_AFTER)})
    return Problem(503, "The records are unavailable. Retry.", {"Retry-After": str(UNAVAILABLE_RETRY_AFTER)})


def answer(error: Exception) -> Response:
    problem = problem_of(error)
    title = HTTPStatus(problem.status).phrase
    if for_a_person():
        html = render_template("problem.html", title=title, detail=problem.detail)
        return Response(html, problem.status, problem.headers, mimetype="text/html")
    body = {"type": "about:blank", "title": title, "status": problem.status, "detail": problem.detail}
    return Response(msgspec.json.encode(body), problem.status, problem.headers, mimetype="application/problem+json")


def for_a_person() -> bool:
    """Return whether a browser requested a page. All other clients get JSON."""
    on_a_page = request.blueprint in ("pages", "signin") or (request.url_rule is None and request.method == "GET")
    return on_a_page and "text/html" in request.accept_mimetypes.values()
