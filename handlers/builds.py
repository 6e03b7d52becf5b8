"""The JSON API: ask for a build, look at builds, follow a log, cancel, rebuild.

Other modules take their part from here (`shape`, `list_builds`, `cancel`, `rebuild`), so that a page can never show or
do what the API would not.
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
from handlers import asking, bodies, logs
from handlers.auth import Identity
from handlers.cursors import Cursors
from handlers.problems import Problem
from handlers.services import services

routes = Blueprint("builds", __name__, url_prefix="/api/v1/builds")

MOST_LOOKED_AT = 5000
"""Builds, in one request of somebody who may see, or searches for, few of them."""
STEP = 500
"""How many of those at a time."""


def location(name: str) -> str:
    """The absolute path of a build in the API."""
    return f"{services().base_path.rstrip('/')}{routes.url_prefix}/{name}"


def shape(build: Build, *, tail: bool = True) -> dict[str, object]:
    """A build as the API says it (its form: `builds.report`)."""
    return as_json(build, base=services().base_path, tail=tail)


def look(name: str, identity: Identity) -> Build:
    """A build that they may see. Raises NotFound."""
    build = services().records.get(name)
    if not shown(build, identity):
        raise NotFound(name)
    return build


def shown(build: Build, identity: Identity) -> bool:
    return services().private.shows(build, identity.words, admin=identity.admin)


def list_builds(identity: Identity, *, limit: int = 50) -> Page:
    """What the request's query asks for, without what they may not see; `limit` where it does not say how many.

    Raises Problem 400, RequestError.
    """
    given = request.args
    most = given.get("limit", str(limit))
    if not re.fullmatch(r"[0-9]{1,4}", most, re.ASCII) or not 1 <= int(most) <= MAX_LISTED:
        raise Problem(400, f"limit must be a whole number from 1 to {MAX_LISTED}.")
    state = given.get("state") or None
    if state is not None and state not in [known.value for known in State]:
        raise Problem(400, f"state must be one of {', '.join(State)}.")
    repository = given.get("repository") or None
    url = services().intake.repository(repository).url if repository else None
    text, ref = given.get("search", ""), given.get("ref") or None
    about = [identity.by, url, state, *([text, ref] if text or ref else [])]
    cursors = Cursors(services().cursor_keys(), about)
    try:
        cursor = cursors.taken(given["continue"]) if given.get("continue") else None
    except ValueError as error:
        raise Problem(400, "continue must be what an earlier list gave as `continue`.") from error
    read = partial(services().records.list, repository=url, state=State(state) if state else None)
    return _seen(_wanted(identity, text, ref), int(most), read, cursor, cursors)


def _wanted(identity: Identity, text: str, ref: str | None) -> search.Wanted:
    """What they may see, and search for. Raises Malformed."""
    by_text = search.by_text(text)
    by_ref = search.by_ref(ref) if ref else search.anything
    return lambda build: by_ref(build) and by_text(build) and shown(build, identity)


def _seen(wanted: search.Wanted, limit: int, read: Callable[..., Page], cursor: str | None, cursors: Cursors) -> Page:
    """The wanted builds, as if there were no others: nor does the cursor tell of any.

    Where too many were looked at, the list goes on from a time, which names none.
    """
    seen: list[Build] = []
    looked, size = 0, limit + 1
    while True:
        page = read(limit=size, cursor=cursor)
        seen += filter(wanted, page.builds)
        if len(seen) > limit:
            return Page(builds=tuple(seen[:limit]), cursor=cursors.given(paging.place_of(seen[limit - 1])))
        if page.cursor is None:
            return Page(builds=tuple(seen), cursor=None)
        looked += size
        if looked > MOST_LOOKED_AT:
            return Page(builds=tuple(seen), cursor=cursors.given(paging.before_all(paging.place(page.cursor))))
        cursor, size = page.cursor, STEP


def may_cancel(build: Build, identity: Identity) -> bool:
    """Everybody who waits decides; where nobody does any more, those who have asked."""
    return identity.admin or all(cause.by == identity.by for cause in build.unanswered or build.causes)


def cancel(name: str, identity: Identity) -> Build:
    """Leaves the cancel mark. Who is no admin may do so only while nobody else waits for it. Raises Problem 403."""
    if not may_cancel(look(name, identity), identity):
        raise Problem(403, "Others have asked for this build too, so only an admin may cancel it.")
    asking.note(build=name)
    return services().records.cancel(name, identity.by)


def rebuild(name: str, identity: Identity, via: str = "api") -> Build:
    """Asks for the same image of the same commit once more, with `force`. One that is under way is joined.

    `via` is the way in, as metrics count it. Raises NotFound, EngineError; any RequestError of `builds.errors` where
    they may not have it built, or not so.
    """
    wanted = services().intake.again(look(name, identity), chooses=identity.chooses)
    builds = asking.accept([asking.check(one, _event(), who=identity, kind=Kind.PERSON) for one in wanted], via=via)
    return builds[0]


def may_resend(build: Build, identity: Identity) -> bool:
    """Whether the last event of an ended build may be sent again: by admins alone, as sinks are theirs."""
    return identity.admin and build.state.ended


def resend(name: str, sink: str, identity: Identity) -> Build:
    """Sets the mark to send the build's last event to the sink once more. Raises Problem 403, EngineError."""
    build = look(name, identity)
    if not identity.admin:
        raise Problem(403, "Only an admin may send an event again.")
    asking.note(build=build.name)
    return services().records.resend(name, sink, identity.by)


def _event() -> Event:
    """The event of a request that came without one."""
    return Event(source=url_for("builds.ask"), id=str(uuid.uuid4()), type=REQUESTED)


@routes.post("")
def ask() -> Response:
    identity = services().auth.admit(request)
    wanted = from_event_data(load_json(bodies.read_json(services().max_body)))
    (build,) = asking.accept([asking.check(wanted, _event(), who=identity, kind=Kind.PERSON)], via="api")
    return answer(shape(build), 202, {"Location": location(build.name)})


@routes.post("/<name>/rebuild")
def rebuilt(name: str) -> Response:
    identity = services().auth.admit(request)
    if load_json(bodies.read_json(services().max_body)) != {}:
        raise Problem(400, "The body must be {}: a rebuild is of the same request. Another one is a POST to the list.")
    build = rebuild(name, identity)
    return answer(shape(build), 202, {"Location": location(build.name)})


@routes.post("/<name>/resend")
def resent(name: str) -> Response:
    identity = services().auth.admit(request)
    body = load_json(bodies.read_json(services().max_body))
    sink = body.get("sink") if isinstance(body, dict) and len(body) == 1 else None
    if not isinstance(sink, str):
        raise Problem(400, 'The body must be {"sink": "<name>"}, with the name of a sink in the build\'s deliveries.')
    return answer(shape(resend(name, sink, identity)), 202)


@routes.get("")
def listed() -> Response:
    page = list_builds(services().auth.admit(request))
    return answer({"items": [shape(build, tail=False) for build in page.builds], "continue": page.cursor})


@routes.get("/<name>")
def one(name: str) -> Response:
    return answer(shape(look(name, services().auth.admit(request))))


@routes.delete("/<name>")
def cancelled(name: str) -> Response:
    return answer(shape(cancel(name, services().auth.admit(request))), 202)


@routes.get("/<name>/log")
def log(name: str) -> Response:
    """As server-sent events for who asks for those, else as the text that exists now."""
    identity = services().auth.admit(request)
    build = look(name, identity)
    wanted = attempt_asked(build)
    if follows():
        return followed(build, wanted, identity)
    return as_text(build, wanted or build.status.attempt)


def follows() -> bool:
    """Whether the request asks for server-sent events."""
    return "text/event-stream" in request.accept_mimetypes.values()


def as_text(build: Build, attempt: int, headers: dict[str, str] | None = None) -> Response:
    """The log of an attempt as it is now. Raises Problem 503."""
    lines = logs.begun(services().records.log(build.name, attempt))
    text = (f"{line.text}\n" for line in lines)
    return Response(text, headers=headers, content_type="text/plain; charset=utf-8")


def attempt_asked(build: Build) -> int | None:
    """`?attempt=`. Raises Problem: 400 for no number, 404 for an attempt that there is not."""
    text = request.args.get("attempt")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise Problem(400, "attempt must be a number, from 1.")
    if not 1 <= int(text) <= build.status.attempt:
        raise Problem(404, f"There is no attempt {int(text)}: the latest is {build.status.attempt}.")
    return int(text)


def followed(
    build: Build,
    wanted: int | None,
    identity: Identity,
    shape_line: Callable[[LogLine], object] = logs.line_as_json,
) -> Response:
    """The stream, with a viewer's place that is given back when it is closed, whoever closes it."""
    if request.method == "HEAD":
        return logs.streamed(())
    leave = services().viewers.enter(identity.by)
    start = logs.resumed(request.headers.get("Last-Event-ID"), build) or (wanted or build.first_attempt, 0)
    base = services().base_path

    def shaped(now: Build) -> object:
        return as_json(now, base=base, tail=False)

    stream = logs.events(services().records, build.name, start, shaped, services().stopping, shape_line=shape_line)
    return logs.streamed(stream, leave)


def answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, content_type="application/json")
