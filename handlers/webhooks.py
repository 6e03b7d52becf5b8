"""Webhooks of Git hosts. Only the signature authenticates: neither token, cookie nor address matter.

Hosts disable a hook whose deliveries fail, and show the answer to the repository's owner. A verified delivery without a
build is therefore a 200 with the reason, even if a policy of Kiln refuses it. A secret is valid only for hosts of its
own kind; a delivery about another repository is answered 403. If policy refuses the build of one trigger, the builds of
other triggers go ahead: GitHub does not repeat the delivery.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus

from flask import Blueprint, Response

from builds.build import Kind
from builds.engines import EngineError, Submission
from builds.errors import Forbidden, Malformed, RequestError
from builds.intake import Intake
from builds.triggers import RequestedBuild, reason, requested_builds
from eventing.errors import EventError
from eventing.event import Event
from eventing.hosts import DIALECTS, Dialect, Ignored
from handlers import bodies, metrics, submissions
from handlers.auth import Identity
from handlers.builds import json_response, location
from handlers.problems import Problem
from handlers.services import Services, services, this_request

routes = Blueprint("webhooks", __name__)

MAX_BODY = 25 << 20
"""Bytes of the largest delivery of GitHub. https://docs.github.com/en/webhooks/webhook-events-and-payloads#payload-cap
"""
OWN = "Kiln's own account (configured in `hosts:`) pushed this."

REFUSED = (403, 422)
"""Statuses for policy refusals: valid requests that this installation does not allow."""


@routes.post("/webhooks/<word>")
def receive(word: str) -> Response:
    via = word if word in DIALECTS else "unknown"
    try:
        response = _receive(word)
    except (Problem, RequestError, EngineError, EventError):
        metrics.EVENTS.labels(via, "refused").inc()
        raise
    metrics.EVENTS.labels(via, "accepted" if response.status_code == HTTPStatus.ACCEPTED else "ignored").inc()
    return response


def _receive(word: str) -> Response:
    held, dialect = services(), DIALECTS.get(word)
    secrets = held.webhook_secrets(word) if dialect else ()
    if dialect is None or not secrets:
        raise Problem(403, "No secret is configured for webhooks of this host.")
    submitted, reasons = _delivered(held, dialect, secrets)
    if not submitted:
        return _nothing(" ".join(dict.fromkeys(reasons)))
    built = submissions.accept(submitted, via=word)
    builds = [{"name": build.name, "location": location(build.name)} for build in built]
    return json_response({"builds": builds}, 202)


def _delivered(held: Services, dialect: Dialect, secrets: Sequence[bytes]) -> tuple[list[Submission], list[str]]:
    """Return the builds that a delivery requests, and the reasons for those that it does not. Frees the body.

    Raises Problem, RequestError, EventError.
    """
    headers = {name: value for name, value in this_request().headers}  # noqa: C416 (`dict` looks each up again)
    with bodies.held(MAX_BODY, held.max_body, held.large) as body:
        dialect.verify(headers, body, secrets, held.now())
        delivered = dialect.parse(headers, body)
        if isinstance(delivered, Ignored):
            return [], [delivered.reason]
        submissions.add_to_log(event_id=" ".join(event.id for event in delivered))
        return _asks(held, delivered, dialect.word)


def _asks(held: Services, events: Sequence[Event], word: str) -> tuple[list[Submission], list[str]]:
    submitted: list[Submission] = []
    refusals: list[str] = []
    for event in events:
        with _collected(refusals):
            if held.intake.is_own(event):
                refusals.append(OWN)
                continue
            _check_same_host_kind(held.intake, word, event, ())  # before any field is trusted, or its host queried
            if closed := submissions.withdraw(event):
                refusals.append(closed)
            for each in _wanted(held, event, word):
                with _collected(refusals):
                    submitted.append(submissions.check(each, event, identity=Identity(by=_by(word)), kind=Kind.PUSH))
    if refusals:
        submissions.add_to_log(refused=" ".join(refusals))
    return submitted, refusals if submitted or refusals else [reason(event) for event in events]


@contextmanager
def _collected(refusals: list[str]) -> Iterator[None]:
    """Collect builds; continue if policy refuses one."""
    try:
        yield
    except RequestError as error:
        if error.status not in REFUSED and not isinstance(error, Malformed):  # the host allows names that Kiln does not
            raise
        refusals.append(str(error))


def _wanted(held: Services, event: Event, word: str) -> list[RequestedBuild]:
    """Return the builds that a delivery requests. Raises Problem 403 for a repository on a host of another kind;
    RequestError.
    """
    by, intake = _by(word), held.intake
    found = requested_builds(
        held.triggers,
        event,
        lambda push: intake.default_branch(push, by),
        lambda request: intake.changed(request, by),
    )
    _check_same_host_kind(held.intake, word, event, found)
    return found


def _check_same_host_kind(intake: Intake, word: str, event: Event, found: Sequence[RequestedBuild]) -> None:
    try:
        intake.check_same_host_kind(word, event, found)
    except Forbidden as error:
        raise Problem(error.status, str(error)) from None


def _by(word: str) -> str:
    """Return the `by` of causes from a host's webhook."""
    return f"webhook:{word}"


def _nothing(reason: str) -> Response:
    return json_response({"builds": [], "reason": reason}, 200)
