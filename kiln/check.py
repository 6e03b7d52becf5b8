"""`kiln check`: whether the configuration is valid, and what an event would build (`builds.dryrun`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from builds.dryrun import EventEvaluation, Offline, Planned, Who, dry_run
from builds.errors import BuildsError, CannotBuild
from builds.triggers import Verdict
from eventing import saved
from eventing.errors import EventError
from eventing.hosts import DIALECTS
from kiln import wiring
from kiln.errors import KilnError
from kiln.settings import for_web
from kiln.wiring import Kiln

Say = Callable[[str], object]


def check(
    environ: Mapping[str, str], event: bytes | None, say: Say, *, host: str | None = None, online: bool = False
) -> int:
    """Says what is wrong, or what `event` would build, and with `online` what answers outside.

    `event` is a saved request, of `host` where it does not say so itself. Returns the exit status.
    """
    try:
        kiln = wiring.load(environ)
        if kiln.settings.pod_template is None:
            for_web(kiln.settings)
        else:  # the controller's, which authenticates no callers
            wiring.pod_template(kiln.settings)
        if event is None:
            _describe(kiln, say)
        else:
            _dry_run(kiln, saved.parse(event, host), say)
        if online and not _outside(kiln, say):
            return 1
        if event is None:
            say("Configuration is valid")
    except KilnError as error:
        for problem in error.problems:
            say(f"error: {problem}")
        return 1
    except (EventError, BuildsError) as error:
        say(f"error: {error}")
        return 1
    return 0


def _describe(kiln: Kiln, say: Say) -> None:
    found, secrets = kiln.settings, kiln.secrets
    alone = ", from this machine only" if found.loopback_only else ""
    say(f"auth: {', '.join(found.auth)}{alone}; events: {', '.join(found.events_auth)}")
    say(f"triggers: {', '.join(trigger.name for trigger in kiln.config.triggers) or 'none'}")
    say(f"sinks: {', '.join(sink.name for sink in kiln.sinks) or 'none'}")
    say(f"webhooks: {', '.join(word for word in DIALECTS if secrets.webhooks(word)) or 'none has a secret'}")
    for host, rule in kiln.config.statuses.items():
        say(f"statuses: {host}, {', '.join(rule.words)}")
        if secrets.statuses(host) is None:
            say(f"warning: no credential in statuses/{host}, so no status can be set there")
    for listed in kiln.config.repositories:
        every = "looked at by `kiln sync` only" if listed.poll is None else f"looked at every {listed.poll:g} s"
        say(f"repository: {listed.url}, {every}")
    if "token" in found.auth + found.events_auth and not secrets.api_tokens():
        say("warning: no token in api-tokens/, so no client can sign in")
    if found.oidc_client_id and secrets.oidc_client() is None:
        say("warning: no oidc/client-secret, so no user can sign in by KILN_OIDC_CLIENT_ID")
    if "oidc" in found.events_auth and not found.oidc_subjects:
        say("note: KILN_OIDC_SUBJECTS is empty, so with oidc only requests for builds may be sent to /events")


def _outside(kiln: Kiln, say: Say) -> bool:
    """Whether none of the probes of `kiln doctor` failed."""
    from kiln import doctor  # noqa: PLC0415

    found = list(doctor.examine(list(doctor.probes(kiln))))
    for one in found:
        say(" ".join(filter(None, (f"{one.state}: {one.probe}: {one.found}", one.cure))))
    return not any(one.state is doctor.FindingState.FAILED for one in found)


def _dry_run(kiln: Kiln, request: saved.Saved, say: Say) -> None:
    intake = wiring.intake(kiln, Offline())
    run = dry_run(request, kiln.config.triggers, intake, Who(), datetime.now(UTC))
    if run.ignored:
        say(f"{request.word} webhook: nothing would be built. {run.ignored}")
    for outcome in run.outcomes:
        event = outcome.event
        say(f"event {event.id}: {event.type} of {event.source}" + (f", {event.subject}" if event.subject else ""))
        _tell(outcome, say)


def _tell(outcome: EventEvaluation, say: Say) -> None:
    """Raises CannotBuild for an event that lacks what a trigger needs."""
    for note in outcome.notes:
        say(f"  {note}")
    if outcome.why:
        say(f"  nothing would be built. {outcome.why}")
        return
    for verdict in outcome.verdicts:
        _tell_verdict(verdict, say)
    if not outcome.builds:
        say("  no trigger matches it: nothing would be built")
    for planned in outcome.builds:
        _tell_build(planned, say)


def _tell_verdict(verdict: Verdict, say: Say) -> None:
    """Says why a trigger does not match. `_tell_build` describes the builds of those that match."""
    for check in verdict.checks:
        if check.why:
            say(f"  the trigger {verdict.trigger} does not match, {check.place}: {check.why}")
    if verdict.lacks:
        raise CannotBuild(verdict.lacks)


def _tell_build(planned: Planned, say: Say) -> None:
    say(f"  by the trigger {planned.trigger}" if planned.trigger else "  as it asks itself")
    if planned.refused:
        say(f"    refused ({planned.refused.status}): {planned.refused}")
    for name, value in planned.facts.items():
        say(f"    {name}: {value}")
