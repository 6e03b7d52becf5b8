"""The badge of a repository: an image that a README on any site can show.

It is public, so it covers only public builds: Kiln fetched their source without a stored credential, and `private` does
not name the repository. All other repositories are `unknown`, as if they had never been built. The route ignores
credentials, because an image on another site sends no cookie. The text comes from a fixed list, so the image contains
no part of the query.
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

MAX_EXAMINED = 100
"""Newest builds of the repository that are examined."""
MAX_AGE = 60
"""Seconds for which caches may keep a badge."""
MAX_READERS = 4
"""Badge requests that read records at the same time. They need no credentials, so they must not occupy all threads."""
RETRY_AFTER = 5
"""Seconds."""

COLOURS = {
    Standing.SUCCEEDED: "#166534",
    Standing.FAILED: "#b91c1c",
    Standing.RUNNING: "#1d4ed8",
    Standing.QUEUED: "#854d0e",
    Standing.UNKNOWN: "#57534e",
}
LETTER_WIDTH = 6.6
"""Average width of a letter at 11 px, in px."""

_readers = threading.BoundedSemaphore(MAX_READERS)


@routes.get("/badge.svg")
def badge() -> Response:
    """Raises Problem 503 for more requests at the same time than `MAX_READERS`, Unavailable."""
    found = _standing(request.args.get("repository", ""), request.args.get("ref") or None)
    width = round(len(found) * LETTER_WIDTH) + 12
    response = make_response(render_template("badge.svg", word=found.value, colour=COLOURS[found], width=width))
    response.content_type = "image/svg+xml; charset=utf-8"
    response.headers["Cache-Control"] = f"public, max-age={MAX_AGE}"
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.add_etag()
    response.make_conditional(request)
    return response


def is_public(build: Build) -> bool:
    """Return whether the build is visible without signing in."""
    return services().private.shows(build, frozenset(), admin=False)


def _standing(repository: str, ref: str | None) -> Standing:
    try:
        url = services().intake.repository(repository).url
    except RepositoryError:
        return Standing.UNKNOWN
    with _reader():
        page = services().records.list(repository=url, limit=MAX_EXAMINED)
    return standing(filter(is_public, page.builds), ref)


@contextmanager
def _reader() -> Iterator[None]:
    if not _readers.acquire(blocking=False):
        raise Problem(503, "Too many requests for badges. Retry.", {"Retry-After": str(RETRY_AFTER)})
    try:
        yield
    finally:
        _readers.release()
