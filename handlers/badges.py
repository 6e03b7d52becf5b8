"""The badge of a repository for its README: an image that anybody can load, wherever it is shown.

So it is about builds that anybody might see: those whose source was fetched without a stored credential, of a
repository that `private` does not name. For all else it says `unknown`, as for what was never built, and it asks nobody
who they are: an image on another site brings no cookie. Its text is of a fixed list, so nothing of the query is in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Blueprint, Response, make_response, render_template, request

from builds.badge import Standing, standing
from builds.build import Build
from builds.errors import RepositoryError
from handlers.problems import Problem
from handlers.services import services

routes = Blueprint("badges", __name__)

LOOKED_AT = 100
"""Of the newest builds of the repository."""
SECONDS = 60
"""For which a badge may be shown from a cache."""
PLACES = 4
"""Requests that read records for a badge at a time: everybody may send them, and must not hold all threads."""
RETRY_AFTER = 5

COLOURS = {
    Standing.SUCCEEDED: "#166534",
    Standing.FAILED: "#b91c1c",
    Standing.RUNNING: "#1d4ed8",
    Standing.QUEUED: "#854d0e",
    Standing.UNKNOWN: "#57534e",
}
LETTER = 6.6
"""The width of one letter, of the text at 11 px."""

_places = threading.BoundedSemaphore(PLACES)


@routes.get("/badge.svg")
def badge() -> Response:
    """Raises Problem 503 where many are asked for at once, Unavailable."""
    found = _standing(request.args.get("repository", ""), request.args.get("ref") or None)
    width = round(len(found) * LETTER) + 12
    response = make_response(render_template("badge.svg", word=found.value, colour=COLOURS[found], width=width))
    response.content_type = "image/svg+xml; charset=utf-8"
    response.headers["Cache-Control"] = f"public, max-age={SECONDS}"
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.add_etag()
    response.make_conditional(request)
    return response


def is_public(build: Build) -> bool:
    """Whether anybody may see it."""
    return services().private.shows(build, frozenset(), admin=False)


def _standing(repository: str, ref: str | None) -> Standing:
    try:
        url = services().intake.repository(repository).url
    except RepositoryError:
        return Standing.UNKNOWN
    with _place():
        page = services().records.list(repository=url, limit=LOOKED_AT)
    return standing(filter(is_public, page.builds), ref)


@contextmanager
def _place() -> Iterator[None]:
    if not _places.acquire(blocking=False):
        raise Problem(503, "Many badges are asked for at once. Try again.", {"Retry-After": str(RETRY_AFTER)})
    try:
        yield
    finally:
        _places.release()
