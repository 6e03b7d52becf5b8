"""The trace of a request, and its span if a collector exists.

The span is made at the end of the request, or earlier if its trace is needed: a build request without a trace begins
one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus

from flask import Request, Response, g

from eventing.event import Event
from eventing.spans import Span, Spans
from eventing.tracing import Trace, trace_of
from handlers.services import services, this_request


def trace(event: Event) -> Trace | None:
    """Return the trace of the event: its own, which began first, or else that of its transport."""
    request = this_request()
    found = trace_of(event.extensions) or trace_of(request.headers)
    spans = services().spans
    if spans is None:
        return found
    if "trace" not in g:
        g.trace = found
    return found or _span(request, spans).trace


def begin(spans: Spans | None) -> None:
    if spans is not None:
        g.began = datetime.now(UTC)


def finish(request: Request, response: Response, spans: Spans | None) -> None:
    if spans is None or request.endpoint == "static":
        return
    about: dict[str, str | int] = {
        "http.request.method": request.method,
        "http.response.status_code": response.status_code,
    }
    if request.url_rule:
        about["http.route"] = request.url_rule.rule
    failed = response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    _span(request, spans).end(about, error=f"answered {response.status_code}" if failed else None)


def _span(request: Request, spans: Spans) -> Span:
    if "span" not in g:
        parent = g.get("trace") or trace_of(request.headers)
        route = request.url_rule.rule if request.url_rule else ""
        g.span = spans.begin(f"{request.method} {route}".strip(), parent, kind="server", at=g.began)
    span: Span = g.span
    return span
