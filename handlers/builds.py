"""The JSON API: request, list, show, cancel and repeat builds, and follow their logs.

The pages use the functions of this module (`build_view`, `list_builds`, `cancel`, `rebuild`), so a page cannot show or
do more than the API.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from functools import partial

import msgspec
from flask import Blueprint, Response, request, url_for

from builds import search
from builds.build import Build, Kind, State
from builds.engines import LogLine, NotFound, Page, paging
from builds.engines.paging import MAX_LISTED
from builds.report import as_json
from builds.triggers import REQUESTED, from_event_data
from eventing.event import Event
from eventing.wire import load_json
from handlers import bodies, logs, submissions
from handlers.auth import Identity
from handlers.cursors import Cursors
from handlers.problems import Problem
from handlers.services import services

routes = Blueprint("builds", __name__, url_prefix="/api/v1/builds")

JSON_LINES = "application/x-ndjson"
"""Media type of JSON values that each end in a line feed (https://github.com/ndjson/ndjson-spec)."""
MAX_EXAMINED = 5000
"""Builds that one request examines if few of them match or are visible."""
BATCH = 500
"""Builds per read after the first."""


def location(name: str) -> str:
    """Return the absolute path of a build in the API."""
    return f"{services().base_path.rstrip('/')}{routes.url_prefix}/{name}"


def build_view(build: Build, *, tail: bool = True) -> dict[str, object]:
    """Return the JSON object of a build (`builds.report.BuildView`), with the end of its log if `tail`."""
    return as_json(build, base=services().base_path, tail=tail)


def get_build(name: str, identity: Identity) -> Build:
    """Return a build. Raises NotFound, also for a build that the user may not see."""
    build = services().records.get(name)
    if not may_see(build, identity):
        raise NotFound(name)
    return build


def may_see(build: Build, identity: Identity) -> bool:
    return services().private.shows(build, identity.words, admin=identity.admin)


def list_builds(identity: Identity, *, limit: int = 50) -> Page:
    """Return the visible builds that the request's query selects; `limit` applies if the query has none.

    Raises Problem 400, RequestError.
    """
    query = request.args
    limit_text = query.get("limit", str(limit))
    if not re.fullmatch(r"[0-9]{1,4}", limit_text, re.ASCII) or not 1 <= int(limit_text) <= MAX_LISTED:
        raise Problem(400, f"limit must be a whole number from 1 to {MAX_LISTED}.")
    state = query.get("state") or None
    if state is not None and state not in [known.value for known in State]:
        raise Problem(400, f"state must be one of {', '.join(State)}.")
    repository = query.get("repository") or None
    url = services().intake.repository(repository).url if repository else None
    text, ref = query.get("search", ""), query.get("ref") or None
    cursors = Cursors(services().cursor_keys(), [identity.by, url, state, *([text, ref] if text or ref else [])])
    try:
        cursor = cursors.taken(query["continue"]) if query.get("continue") else None
    except ValueError as error:
        raise Problem(400, "continue must be the value of `continue` in an earlier list.") from error
    read = partial(services().records.list, repository=url, state=State(state) if state else None)
    return _select(_matches(identity, text, ref), int(limit_text), read, cursor, cursors)


def _matches(identity: Identity, text: str, ref: str | None) -> search.Wanted:
    """Return a filter for builds that match the search and are visible. Raises Malformed."""
    by_text = search.by_text(text)
    by_ref = search.by_ref(ref) if ref else search.anything
    return lambda build: by_ref(build) and by_text(build) and may_see(build, identity)


def _select(
    matches: search.Wanted, limit: int, read: Callable[..., Page], cursor: str | None, cursors: Cursors
) -> Page:
    """Return up to `limit` matching builds. Neither they nor the cursor reveal that others exist.

    After MAX_EXAMINED builds the cursor contains a time instead of a build, because the last build may be hidden.
    """
    found: list[Build] = []
    examined, size = 0, limit + 1
    while True:
        page = read(limit=size, cursor=cursor)
        found += filter(matches, page.builds)
        if len(found) > limit:
            return Page(builds=tuple(found[:limit]), cursor=cursors.given(paging.place_of(found[limit - 1])))
        if page.cursor is None:
            return Page(builds=tuple(found), cursor=None)
        examined += size
        if examined > MAX_EXAMINED:
            return Page(builds=tuple(found), cursor=cursors.given(paging.before_all(paging.place(page.cursor))))
        cursor, size = page.cursor, BATCH


def may_cancel(build: Build, identity: Identity) -> bool:
    """Return whether the user is an admin, or the only requester without an answer so far.

    If the build has answered all requests, all of them must be the user's.
    """
    return identity.admin or all(cause.by == identity.by for cause in build.unanswered or build.causes)


def cancel(name: str, identity: Identity) -> Build:
    """Set the mark that makes the controller cancel the build. Raises Problem 403, EngineError."""
    if not may_cancel(get_build(name, identity), identity):
        raise Problem(403, "Others requested this build, too. Only an admin may cancel it.")
    submissions.add_to_log(build=name)
    return services().records.cancel(name, identity.by)


def rebuild(name: str, identity: Identity, via: str = "api") -> Build:
    """Request the same image of the same commit again, with `force`. A build in progress takes the request.

    `via` is the label of metrics. Raises NotFound, EngineError; a RequestError if the user may not request this build.
    """
    requests = services().intake.again(get_build(name, identity), chooses=identity.chooses)
    builds = submissions.accept(
        [submissions.check(one, _event(), identity=identity, kind=Kind.PERSON) for one in requests], via=via
    )
    return builds[0]


def may_resend(build: Build, identity: Identity) -> bool:
    """Return whether the user may send the last event of the build again: only admins manage sinks."""
    return identity.admin and build.state.ended


def resend(name: str, sink: str, identity: Identity) -> Build:
    """Set the mark that makes the controller send the last event again. Raises Problem 403, EngineError."""
    build = get_build(name, identity)
    if not identity.admin:
        raise Problem(403, "Only an admin may send an event again.")
    submissions.add_to_log(build=build.name)
    return services().records.resend(name, sink, identity.by)


def _event() -> Event:
    """Return the event that stands for an API request."""
    return Event(source=url_for("builds.post_build"), id=str(uuid.uuid4()), type=REQUESTED)


@routes.post("")
def post_build() -> Response:
    identity = services().auth.admit(request)
    requested = from_event_data(load_json(bodies.read_json(services().max_body)))
    (build,) = submissions.accept(
        [submissions.check(requested, _event(), identity=identity, kind=Kind.PERSON)], via="api"
    )
    return json_response(build_view(build), 202, {"Location": location(build.name)})


@routes.post("/<name>/rebuild")
def post_rebuild(name: str) -> Response:
    identity = services().auth.admit(request)
    if load_json(bodies.read_json(services().max_body)) != {}:
        raise Problem(400, "The body must be {}. A rebuild takes its values from the earlier request.")
    build = rebuild(name, identity)
    return json_response(build_view(build), 202, {"Location": location(build.name)})


@routes.post("/<name>/resend")
def post_resend(name: str) -> Response:
    identity = services().auth.admit(request)
    body = load_json(bodies.read_json(services().max_body))
    sink = body.get("sink") if isinstance(body, dict) and len(body) == 1 else None
    if not isinstance(sink, str):
        raise Problem(400, 'The body must be {"sink": "<name>"}, with the name of a sink in the build\'s deliveries.')
    return json_response(build_view(resend(name, sink, identity)), 202)


@routes.get("")
def show_list() -> Response:
    page = list_builds(services().auth.admit(request))
    return json_response({"items": [build_view(build, tail=False) for build in page.builds], "continue": page.cursor})


@routes.get("/<name>")
def show_build(name: str) -> Response:
    return json_response(build_view(get_build(name, services().auth.admit(request))))


@routes.delete("/<name>")
def delete_build(name: str) -> Response:
    return json_response(build_view(cancel(name, services().auth.admit(request))), 202)


@routes.get("/<name>/log")
def show_log(name: str) -> Response:
    """Return server-sent events or the present lines as JSON if the request accepts them, otherwise as text."""
    identity = services().auth.admit(request)
    build = get_build(name, identity)
    attempt = requested_attempt(build)
    if wants_stream():
        return log_stream(build, attempt, identity)
    present = log_json if JSON_LINES in request.accept_mimetypes.values() else log_text
    return present(build, attempt or build.status.attempt)


def wants_stream() -> bool:
    """Return whether the request accepts server-sent events."""
    return "text/event-stream" in request.accept_mimetypes.values()


def log_json(build: Build, attempt: int) -> Response:
    """Return the present log of an attempt, of each line a JSON object with its text and phase. Raises Problem 503."""
    lines = logs.begun(services().records.log(build.name, attempt))
    encoded = (msgspec.json.encode(logs.line_as_json(line)) + b"\n" for line in lines)
    return Response(encoded, content_type=JSON_LINES)


def log_text(build: Build, attempt: int, headers: dict[str, str] | None = None) -> Response:
    """Return the present log of an attempt as text. Raises Problem 503."""
    lines = logs.begun(services().records.log(build.name, attempt))
    text = (f"{line.text}\n" for line in lines)
    return Response(text, headers=headers, content_type="text/plain; charset=utf-8")


def requested_attempt(build: Build) -> int | None:
    """Return the number in `?attempt=`, if any. Raises Problem 400 for other text, 404 for an unknown attempt."""
    text = request.args.get("attempt")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise Problem(400, "attempt must be a number, from 1.")
    if not 1 <= int(text) <= build.status.attempt:
        raise Problem(404, f"The build has no attempt {int(text)}. The latest is {build.status.attempt}.")
    return int(text)


def log_stream(
    build: Build,
    attempt: int | None,
    identity: Identity,
    shape_line: Callable[[LogLine], object] = logs.line_as_json,
) -> Response:
    """Stream the log from an attempt on. The response holds a viewer's place until it is closed. Raises Problem."""
    if request.method == "HEAD":
        return logs.streamed(())
    leave = services().viewers.enter(identity.by)
    start = logs.resumed(request.headers.get("Last-Event-ID"), build) or (attempt or build.first_attempt, 0)
    base = services().base_path

    def view(now: Build) -> object:
        return as_json(now, base=base, tail=False)

    stream = logs.events(services().records, build.name, start, view, services().stopping, shape_line=shape_line)
    return logs.streamed(stream, leave)


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, content_type="application/json")
