"""CloudEvents over HTTP: binary, structured, batch, and the handshake of the webhook specification.

The answer to a delivery never has a body: Knative takes a body for a reply event, and repeats the delivery if it is not
one. `Location` names the requested builds.
"""

from __future__ import annotations

import time

from flask import Blueprint, Response, request

from builds.build import Kind
from builds.engines import EngineError, Submission
from builds.errors import RequestError, TryAgain
from builds.triggers import REQUESTED, requested_builds
from eventing.errors import EventError
from eventing.event import Event
from eventing.hops import is_spent
from eventing.http import decode
from handlers import bodies, metrics, submissions
from handlers.auth import Identity
from handlers.builds import location
from handlers.problems import Problem, problem_of
from handlers.services import services

routes = Blueprint("events", __name__)

CHECKING = 8.0
"""Seconds after which a batch starts no further event. Each event may look up a ref at a slow host, and a body can hold
thousands of them."""


@routes.post("/events", provide_automatic_options=False)
@routes.post("/", endpoint="root", provide_automatic_options=False)
def receive() -> Response:
    try:
        return _receive()
    except (Problem, RequestError, EngineError, EventError):
        metrics.EVENTS.labels("events", "refused").inc()
        raise


def _receive() -> Response:
    identity = services().events_auth.admit(request)
    events = decode(dict(request.headers), bodies.read(services().max_body))
    submissions.add_to_log(event_id=" ".join(event.id for event in events))
    if not identity.chooses and any(event.type != REQUESTED for event in events):
        raise Problem(
            403,
            f"You may send only {REQUESTED}. Other events need an admin, an API token, a service or a subject of "
            "KILN_OIDC_SUBJECTS.",
        )
    submitted: list[Submission] = []
    began = time.monotonic()
    for index, event in enumerate(events):
        try:
            if time.monotonic() - began > CHECKING:
                raise TryAgain("Looking up the refs of this batch takes too long. Send smaller batches.")
            submitted += _submissions(event, identity)
        except (RequestError, EventError) as error:
            if len(events) == 1:
                raise
            problem = problem_of(error)
            raise Problem(problem.status, f"event {index}: {problem.detail}", problem.headers) from error
    builds = submissions.accept(submitted, via="events") if submitted else []
    metrics.EVENTS.labels("events", "accepted" if builds else "ignored").inc(len(events))
    if not builds:
        return Response(status=204)
    return Response(status=202, headers={"Location": location(builds[0].name)})


def _submissions(event: Event, identity: Identity) -> list[Submission]:
    """Return the builds that an event requests. Raises RequestError, DecodeError."""
    for_people = event.type == REQUESTED or event.type.startswith("org.jupyterhub.")
    somebody_waits = for_people and not identity.sender
    kind = Kind.PERSON if somebody_waits else Kind.PUSH
    intake = services().intake
    if intake.is_own(event) or is_spent(event):
        return []
    submissions.withdraw(event)
    found = requested_builds(
        services().triggers,
        event,
        lambda push: intake.default_branch(push, identity.by, identity.groups),
        lambda request: intake.changed(request, identity.by, identity.groups),
    )
    return [submissions.check(each, event, identity=identity, kind=kind) for each in found]


@routes.route("/events", methods=["OPTIONS"], provide_automatic_options=False)
@routes.route("/", methods=["OPTIONS"], provide_automatic_options=False, endpoint="handshake_root")
def handshake() -> Response:
    """CloudEvents webhooks 1.0, §4: every authorized sender may send, at any rate."""
    allow = "POST, OPTIONS" if request.path.endswith("/events") else "GET, HEAD, POST, OPTIONS"
    return Response(headers={"Allow": allow, "WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "*"})
