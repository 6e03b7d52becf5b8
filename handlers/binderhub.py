"""BinderHub's API for its existing clients: `GET /build/<provider>/<spec>` requests an image and streams the progress.

Its clients show a message only for a 200 with a `failed` event. They treat any other end of a stream as a fault and
never reconnect by themselves. On this route every refusal is therefore such an event, and every stream ends in `ready`
or `failed`, with a message. BinderHub's API also requests builds by GET. Each GET is a new cause, as on other routes,
but browsers repeat it by themselves. With `Last-Event-ID`, or soon after the end, a GET therefore only reads.

Kiln builds images and leaves launching to a Hub, regardless of `build_only`.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

from flask import Blueprint, Response, request, url_for

from builds.build import Build, Kind, State
from builds.engines import EngineError, LogLine, NotFound, Records, Submission
from builds.errors import UnknownRef
from builds.image import tag_for
from builds.retention import recorded
from builds.triggers import REQUESTED, from_event_data
from eventing.event import Event
from handlers import logs, problems, providers, submissions
from handlers.auth import Identity
from handlers.builds import get_build
from handlers.problems import Problem, problem_of
from handlers.providers import PROVIDERS, NamedSource
from handlers.services import services

log = logging.getLogger(__name__)

routes = Blueprint("binderhub", __name__)

COMPATIBLE = "1.0.0"
"""The version of BinderHub whose API this is, as `/versions` reports it."""
REPEATED = timedelta(seconds=60)
"""Seconds after the end of a build within which a GET counts as a browser's repetition."""
MOST_COUNTED = 100
"""Limit for the number of waiting builds in a message."""

PHASES = {"fetch": "fetching", "build": "building", "push": "pushing"}
"""BinderHub's phases for those of our logs."""
NO_LAUNCH = "Kiln builds the image. A JupyterHub launches it."
GOES_ON = "Kiln's web server restarts. The build continues. Request it again to follow it."

CORS = {
    # Safe: browsers do not send cookies with `*`, and on this route a cookie gives no access.
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "Authorization, Cache-Control, Last-Event-ID, X-Xsrftoken",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Max-Age": "600",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class Viewed(NamedTuple):
    """A build to follow: the starting position, and the key of this request's cause, whose answer ends the stream."""

    build: Build
    position: logs.Position
    cause: str | None = None


# Routes --------------------------------------------------------------------------------------------------------------


@routes.get("/build/<provider>/<path:spec>")
def build(provider: str, spec: str) -> Response:
    identity = services().auth.admit(request)
    if "token" in request.args and not services().auth.token_in_url:
        raise Problem(400, "A token in a URL is not accepted, because logs record URLs. Send `Authorization: Bearer`.")
    source = providers.source(provider, _raw(spec))
    if request.method == "HEAD":
        return logs.streamed(())
    resumed = _resumed(source, identity)
    if resumed:
        return _followed(lambda: resumed, identity.by)
    submission, notes = _submission(source, url_for("binderhub.build", provider=provider, spec=spec), identity)
    tag = tag_for(submission.request.commit, submission.request.subdir, submission.request.build_args)
    digest = services().find_image(submission.request.image, tag, submission.name)
    if digest:
        _note_use(submission)
        return logs.streamed([*_noted(notes), _ready(submission.request.image, tag, digest, "Done! Found built image")])
    return _followed(lambda: _just_ended(submission.name) or _accepted(submission), identity.by, notes)


@routes.get("/versions")
def versions() -> Response:
    info = services().builder_info
    builder = " ".join(info.values())
    about = {"builder_info": info, "binderhub": f"{COMPATIBLE}+kiln.{services().version}", "builder": builder}
    return _said(about)


@routes.get("/health")
def health() -> Response:
    found = {"Docker registry": services().registry_answers(), "Records": _records_answer()}
    checks = [{"service": name, "ok": ok} for name, ok in found.items()]
    good = all(found.values())
    return _said({"ok": good, "checks": checks}, HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE)


@routes.get("/api/repoproviders")
def repository_providers() -> Response:
    return _said([provider.display for provider in PROVIDERS.values()])


@routes.after_request
def allow_other_sites(response: Response) -> Response:
    response.headers.update(CORS)
    return response


def refused(error: Exception) -> Response:
    """Return the format that BinderHub's clients can show; the problem for all other clients."""
    if request.endpoint != "binderhub.build" or request.method == "OPTIONS":
        return problems.answer(error)
    problem = problem_of(error)
    submissions.add_to_log(refused=f"{problem.status} {problem.detail}")
    return logs.streamed([_failed(problem)])


for kind in problems.KINDS:
    routes.register_error_handler(kind, refused)


# Requests ------------------------------------------------------------------------------------------------------------


def _raw(spec: str) -> str:
    """Return the spec as sent: WSGI decodes the path, so a `/` in it may have been a `%2F`."""
    target = request.environ.get("RAW_URI") or request.environ.get("REQUEST_URI") or ""
    path = providers.parts(re.sub(r"^[A-Za-z]+://[^/]*", "", target).partition("?")[0])
    before = len(providers.parts(services().base_path)) + 2  # `build` and the provider
    raw = "/".join(path[before:])
    return raw if providers.parts(unquote(raw)) == providers.parts(spec) else spec


def _submission(source: NamedSource, address: str, identity: Identity) -> tuple[Submission, list[str]]:
    """Return the request, and a first message with advice if the default branch has a new name. Raises RequestError."""
    notes = [] if request.args.get("build_only", "").lower() == "true" else [NO_LAUNCH]

    def submitted(ref: str) -> Submission:
        event = Event(source=address, id=str(uuid.uuid4()), type=REQUESTED)
        wanted = from_event_data({"repository": source.repository, "ref": ref})
        return submissions.check(wanted, event, identity=identity, kind=Kind.PERSON)

    try:
        return submitted(source.ref), notes
    except UnknownRef as error:
        advice = f"{error} {providers.advice(source.ref)}".rstrip()
        if source.ref not in providers.DEFAULT_BRANCHES:
            raise UnknownRef(advice) from None
    return submitted("HEAD"), [*notes, f"{advice} Kiln builds it instead of {source.ref}. Update your links."]


def _resumed(source: NamedSource, identity: Identity) -> Viewed | None:
    """Return the view that a client resumes, if `Last-Event-ID` belongs to this repository. Raises NotFound,
    Unavailable.
    """
    name, _, rest = request.headers.get("Last-Event-ID", "").partition(":")
    if not re.fullmatch(r"build-[a-z0-9-]{1,57}", name):
        return None
    found = get_build(name, identity)
    position = logs.resumed(rest, found)
    if position is None or found.request.repository != services().intake.repository(source.repository).url:
        return None
    return Viewed(found, position)


def _just_ended(name: str) -> Viewed | None:
    """Return the build of that name if it ended a moment ago."""
    try:
        found = services().records.get(name)
    except NotFound:
        return None
    finished = found.status.finished_at
    if not found.state.ended or finished is None or services().now() - finished > REPEATED:
        return None
    return Viewed(found, (found.status.round_began_with, 0))


def _note_use(submission: Submission) -> None:
    """Record the request as a use, so that retention keeps the image."""
    after = services().note_use_after
    if after is None:
        return
    with suppress(EngineError):
        if services().now() - recorded(services().records.get(submission.name)).used_at >= after:
            submissions.accept([submission], via="binderhub")


def _accepted(submission: Submission) -> Viewed:
    """Write the request. The stream of an ended build starts with its next attempt."""
    (found,) = submissions.accept([submission], via="binderhub")
    status = found.status
    first = status.attempt + 1 if status.state.ended else status.round_began_with
    return Viewed(found, (first, 0), submission.cause.key)


def _records_answer() -> bool:
    try:
        services().records.list(limit=1)
    except EngineError:
        return False
    return True


# Messages ------------------------------------------------------------------------------------------------------------


def _followed(find: Callable[[], Viewed], by: str | None, notes: Sequence[str] = ()) -> Response:
    """Stream a build. The build is read, or requested, once the viewer has a place."""
    leave = services().viewers.enter(by)
    try:
        viewed = find()
        submissions.add_to_log(build=viewed.build.name)
    except BaseException:
        leave()
        raise
    teller = _Teller(viewed, services().records)
    seen = logs.follow(teller.records, viewed.build.name, viewed.position, services().stopping, teller.over)
    return logs.streamed(logs.kept_alive(_to_the_end(seen, teller, notes)), leave)


def _to_the_end(seen: Iterator[Build | LogLine | None], teller: _Teller, notes: Sequence[str]) -> Iterator[bytes]:
    """Yield the messages of a build; the last one always gives the result, or the reason why the stream ends."""
    yield from _noted(notes)
    try:
        for new in seen:
            yield teller.tell(new)
            if isinstance(new, Build) and teller.over(new):
                return
    except EngineError as error:
        yield _failed(problem_of(error))
    except Exception:
        log.exception("A build's stream broke off")
        yield _failed(Problem(500, "Internal error. See Kiln's log."))
    else:
        yield _failed(Problem(503, GOES_ON))


class _Teller:
    """Make messages from the observed states of a build, each with an id from which a client can resume."""

    def __init__(self, viewed: Viewed, records: Records) -> None:
        self.records = records
        self._cause = viewed.cause
        self._name = viewed.build.name
        self._position = viewed.position
        self._phase = PHASES["fetch"]
        self._waiting: str | None = None

    def over(self, build: Build) -> bool:
        """Return whether the build has ended and this request has its answer."""
        asked = self._cause
        return build.state.ended and not (asked and any(cause.stands_for(asked) for cause in build.unanswered))

    def tell(self, seen: Build | LogLine | None) -> bytes:
        """Yield nothing without news."""
        match seen:
            case LogLine():
                self._position = (seen.attempt, seen.number)
                self._phase = PHASES.get(seen.phase or "", self._phase)
                return _message(self._phase, f"{seen.text}\n", id=self._id)
            case Build() if self.over(seen):
                return self._end(seen)
            case Build() if seen.state is not State.RUNNING:
                return self._wait(seen)
        return b""

    def _wait(self, build: Build) -> bytes:
        """Return why the build waits, if the reason has changed."""
        why = build.status.waiting or "Waiting for build to start..."
        if build.state.ended:
            why = "Looking up the image in the registry..."
        if why == self._waiting:
            return b""
        self._waiting = why
        return _message("waiting", f"{why}{self._others()}\n", id=self._id)

    def _others(self) -> str:
        """Return how many other builds wait. The order is left out, because it changes with each request."""
        page = self.records.list(state=State.QUEUED, limit=MOST_COUNTED)
        others = sum(build.name != self._name for build in page.builds)
        if not others:
            return ""
        number = f"More than {others}" if page.cursor else str(others)
        return f" {number} other {'builds wait' if others > 1 else 'build waits'}, too."

    def _end(self, build: Build) -> bytes:
        image = build.status.image
        if build.state is State.SUCCEEDED and image:
            return _ready(image.repository, image.tag, image.digest, "Done! Image built", id=self._id)
        why = build.status.message or f"The build is {build.state}, and its record has no reason."
        return _message("failed", f"{why}\n", id=self._id)

    @property
    def _id(self) -> str:
        return f"{self._name}:{self._position[0]}:{self._position[1]}"


def _noted(notes: Sequence[str]) -> Iterator[bytes]:
    return (_message("waiting", f"{note}\n") for note in notes)


def _ready(image: str, tag: str, digest: str, message: str, id: str | None = None) -> bytes:  # noqa: A002
    return _message("ready", f"{message}\n", id=id, imageName=f"{image}:{tag}", imageDigest=digest)


def _failed(problem: Problem) -> bytes:
    return _message("failed", f"{problem.detail}\n", status_code=problem.status)


def _message(phase: str, message: str, *, id: str | None = None, **more: object) -> bytes:  # noqa: A002
    return logs.frame({"phase": phase, "message": message, **more}, id=id)


def _said(value: object, status: int = HTTPStatus.OK) -> Response:
    return Response(logs.spaced(value), status, content_type="application/json")
