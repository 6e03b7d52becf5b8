"""The form for a new build: the fields of the JSON API, with each error beside its field.

Only users who may choose how Kiln builds see the fields for image, tags and build arguments. The intake refuses these
values from others.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping

from flask import Response, request, url_for

from builds.build import Kind
from builds.engines import QueueFull
from builds.errors import Malformed, RequestError, TryAgain
from builds.triggers import REQUESTED, BuildRequestBody, from_body
from eventing.event import Event
from handlers import html, problems, submissions
from handlers.auth import Identity
from handlers.services import services

FIELDS = ("repository", "ref", "subdir", "image", "tags", "build_args", "force")
_ARGUMENT = re.compile(r"\s*([^=\s]+)\s*=(.*)")


def new_build() -> Response:
    """Show the form, filled in from the query."""
    identity = services().auth.admit(request)
    return _form(identity, {name: request.args.get(name, "") for name in FIELDS})


def request_build() -> Response:
    """Request the build and redirect to its page, or show the form again with the error."""
    identity = services().auth.admit(request)
    html.check_form(identity)
    values = {name: request.form.get(name, "").strip() for name in FIELDS}
    # The event's id comes from the form, so a form that is sent twice is one request.
    event = Event(source=url_for("pages.request_build"), id=_event_id(), type=REQUESTED)
    try:
        requested = from_body(_body(values))
        (build,) = submissions.accept(
            [submissions.check(requested, event, identity=identity, kind=Kind.PERSON)], via="pages"
        )
    except (RequestError, QueueFull) as error:
        return _form(identity, values, error)
    return html.see_other(url_for("pages.build", name=build.name))


def _form(identity: Identity, values: Mapping[str, str], error: RequestError | QueueFull | None = None) -> Response:
    problem = None if error is None else problems.problem_of(error)
    field = error.field if isinstance(error, RequestError) and not isinstance(error, TryAgain) else None
    return html.page(
        "new.html",
        identity,
        status=problem.status if problem else 200,
        headers=problem.headers if problem else None,
        values=values,
        event_id=str(uuid.uuid4()),
        chooses=identity.chooses,
        problem=problem,
        invalid_field=field if field in FIELDS else "ref" if field == "commit" else None,
    )


def _event_id() -> str:
    try:
        return str(uuid.UUID(request.form.get("event_id", "")))
    except ValueError:
        return str(uuid.uuid4())


def _body(values: Mapping[str, str]) -> BuildRequestBody:
    """Raises Malformed."""
    return BuildRequestBody(
        repository=values["repository"],
        ref=values["ref"] or None,
        subdir=values["subdir"] or None,
        image=values["image"] or None,
        tags=tuple(re.split(r"[\s,]+", values["tags"])) if values["tags"] else None,
        build_args=dict(_arguments(values["build_args"])) or None,
        force=bool(values["force"]),
    )


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values. Raises Malformed."""
    for line in filter(str.strip, text.splitlines()):
        found = _ARGUMENT.fullmatch(line)
        if found is None:
            error = Malformed("Write each build argument on a line of its own, as NAME=value.")
            error.field = "build_args"
            raise error
        yield found[1], found[2].strip()
