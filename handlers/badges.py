"""The badge of a repository: an image that a README on any site can show.

It is public, so it covers only builds that anybody could have: their source was fetched without a stored credential,
and `private` does not name the repository. Everything else is `unknown`, exactly as a repository that was never built.
The route ignores who asks, because an image on another site sends no cookie. The text comes from a fixed list, so the
image contains nothing of the query.
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
"""Newest builds of the repository that are examined."""
SECONDS = 60
"""Seconds for which caches may keep a badge."""
PLACES = 4
"""Badge requests that may read records at the same time: anybody may send them, and they must not hold all threads."""
RETRY_AFTER = 5

COLOURS = {
    Standing.SUCCEEDED: "#166534",
    Standing.FAILED: "#b91c1c",
    Standing.RUNNING: "#1d4ed8",
    Standing.QUEUED: "#854d0e",
    Standing.UNKNOWN: "#57534e",
}
LETTER = 6.6
"""Average width of a letter at 11 px, in px."""

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
    """Return whether anybody may see the build, without signing in."""
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
