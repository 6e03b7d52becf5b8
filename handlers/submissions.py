"""Turn requests into records of builds: the single path for all routes.

All builds of one request are validated before the first write, and written together. An answer therefore covers all of
them, and repeating a request is safe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from builds.build import Build, Kind, State
from builds.engines import NotFound, Submission
from builds.errors import Forbidden
from builds.intake import merge
from builds.triggers import RequestedBuild
from eventing.event import Event
from eventing.hops import hops_left
from eventing.hosts import request_of
from handlers import metrics
from handlers.auth import Identity
from handlers.services import services, this_request
from handlers.tracing import trace

PAGE = 200
"""Builds per read."""
MAX_LOGGED = 1000
"""Characters of one value in the log: a batch has many ids, chosen by its sender."""


def check(requested: RequestedBuild, event: Event, *, identity: Identity, kind: Kind) -> Submission:
    """Check that the sender may have the requested builds. Raises RequestError, Unavailable."""
    held = services()
    submission = held.intake.submission(
        requested,
        source=event.source,
        id=event.id,
        type=event.type,
        by=identity.by,
        groups=identity.groups,
        chooses=identity.chooses,
        kind=kind,
        now=held.now(),
        trace=trace(event),
        hops_left=hops_left(event),
    )
    if requested.force and not identity.chooses and _has_succeeded(submission.name):
        raise Forbidden("The build has succeeded. Only admins, API tokens and services of the Hub may force another.")
    return submission


def _has_succeeded(name: str) -> bool:
    """Return whether the build succeeded. Raises Unavailable."""
    try:
        return services().records.get(name).state is State.SUCCEEDED
    except NotFound:
        return False


def accept(submissions: Sequence[Submission], via: str) -> list[Build]:
    """Write all builds or none; duplicates return the existing builds. Raises EngineError."""
    builds = services().records.accept(merge(submissions))
    metrics.ASKED.labels(via).inc(len(builds))
    add_to_log(build=" ".join(dict.fromkeys(build.name for build in builds)))
    return builds


def withdraw(event: Event) -> str | None:
    """Withdraw the cause of a closed pull request from its builds and return a sentence; other causes keep a build
    alive.

    Raises EventError, RequestError, EngineError.
    """
    request = request_of(event)
    if request is None or not request.closed:
        return None
    held = services()
    repository = held.intake.repository(request.repository).url
    for name in [build.name for build in _live(repository) if any(cause.ref == request.ref for cause in build.causes)]:
        with suppress(NotFound):
            held.records.withdraw(name, request.ref)
    return "The pull request is closed. Its builds were withdrawn."


def _live(repository: str) -> Iterator[Build]:
    """Return the builds of a repository that have not ended. Raises Unavailable."""
    for state in (State.QUEUED, State.RUNNING):
        cursor = None
        while True:
            page = services().records.list(repository=repository, state=state, limit=PAGE, cursor=cursor)
            yield from page.builds
            if (cursor := page.cursor) is None:
                break


def add_to_log(**fields: str) -> None:
    """Add to the log line of this request, which the server (`kiln.gunicorn`) writes from `kiln.log` in the environ."""
    shortened = {name: value[:MAX_LOGGED] for name, value in fields.items()}
    this_request().environ.setdefault("kiln.log", {}).update(shortened)
