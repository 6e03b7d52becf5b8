"""The triggers page, for admins: a dry run of an event or a webhook.

It shows which trigger matches, why the others do not, and the resulting builds. The evaluation is that of `kiln check
--event` (`builds.dryrun`): it writes nothing and contacts no host.
"""

from __future__ import annotations

from http import HTTPStatus

from flask import Response, request

from builds.dryrun import DryRun, Who, dry_run
from builds.errors import RequestError
from eventing import saved
from eventing.errors import EventError
from eventing.hosts import DIALECTS
from handlers import html
from handlers.auth import Identity
from handlers.problems import Problem
from handlers.services import services


def triggers() -> Response:
    return _page(html.admit_admin())


def try_event() -> Response:
    """Show the page with the result for the pasted event, or with the error beside the field."""
    identity = html.admit_admin()
    html.check_form(identity)
    text, host = request.form.get("event", ""), request.form.get("host") or None
    try:
        if host is not None and host not in DIALECTS:
            raise Problem(400, f"The host must be one of {', '.join(DIALECTS)}.")
        return _page(identity, text, host, run=_run(identity, text, host))
    except (EventError, RequestError) as error:
        return _page(identity, text, host, error_message=str(error), status=error.status)


def _run(identity: Identity, text: str, host: str | None) -> DryRun:
    held = services()
    who = Who(by=identity.by, groups=identity.groups, chooses=identity.chooses)
    return dry_run(saved.parse(text.encode(errors="replace"), host), held.triggers, held.intake, who, held.now())


def _page(
    identity: Identity,
    text: str = "",
    host: str | None = None,
    *,
    run: DryRun | None = None,
    error_message: str | None = None,
    status: int = HTTPStatus.OK,
) -> Response:
    return html.page(
        "triggers.html",
        identity,
        status=status,
        triggers=[trigger.name for trigger in services().triggers],
        hosts=[*DIALECTS],
        text=text,
        host=host,
        run=run,
        error_message=error_message,
    )
