"""`kiln check`: whether the configuration is valid, and what an event would build (`builds.dryrun`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from builds.dryrun import Offline, Who, dry_run
from builds.errors import BuildsError
from eventing import saved
from eventing.errors import EventError
from eventing.hosts import DIALECTS
from kiln import wiring
from kiln.checkreport import CheckReport, ConfigurationSummary, ListedRepository
from kiln.errors import KilnError
from kiln.settings import for_web
from kiln.wiring import Kiln

if TYPE_CHECKING:
    from kiln.doctor import Finding

change = msgspec.structs.replace


def check(
    environ: Mapping[str, str], event: bytes | None = None, *, host: str | None = None, online: bool = False
) -> CheckReport:
    """Check the configuration, evaluate `event`, and with `online` run the probes of `kiln doctor`.

    `event` is a saved request. `host` is the webhook's Git host if the request does not contain it.
    """
    try:
        kiln = _loaded(environ)
        report = _described(kiln) if event is None else _evaluated(kiln, event, host)
    except KilnError as error:
        return CheckReport(errors=error.problems)
    return change(report, findings=_findings(kiln)) if online else report


def _loaded(environ: Mapping[str, str]) -> Kiln:
    """Raises KilnError."""
    kiln = wiring.load(environ)
    if kiln.settings.pod_template is None:
        for_web(kiln.settings)
    else:  # the controller's, which authenticates no callers
        wiring.pod_template(kiln.settings)
    return kiln


def _described(kiln: Kiln) -> CheckReport:
    return CheckReport(configuration=_configuration(kiln), warnings=[*_warnings(kiln)], notes=[*_notes(kiln)])


def _configuration(kiln: Kiln) -> ConfigurationSummary:
    found = kiln.settings
    return ConfigurationSummary(
        auth=found.auth,
        loopback_only=found.loopback_only,
        events_auth=found.events_auth,
        triggers=[trigger.name for trigger in kiln.config.triggers],
        sinks=[sink.name for sink in kiln.sinks],
        webhooks=[word for word in DIALECTS if kiln.secrets.webhooks(word)],
        statuses={host: tuple(rule.words) for host, rule in kiln.config.statuses.items()},
        repositories=[ListedRepository(url=one.url, poll=one.poll) for one in kiln.config.repositories],
    )


def _warnings(kiln: Kiln) -> Iterator[str]:
    found, secrets = kiln.settings, kiln.secrets
    for host in kiln.config.statuses:
        if secrets.statuses(host) is None:
            yield f"no credential in statuses/{host}, so no status can be set there"
    if "token" in found.auth + found.events_auth and not secrets.api_tokens():
        yield "no token in api-tokens/, so no client can sign in"
    if found.oidc_client_id and secrets.oidc_client() is None:
        yield "no oidc/client-secret, so no user can sign in by KILN_OIDC_CLIENT_ID"


def _notes(kiln: Kiln) -> Iterator[str]:
    if "oidc" in kiln.settings.events_auth and not kiln.settings.oidc_subjects:
        yield "KILN_OIDC_SUBJECTS is empty, so with oidc only requests for builds may be sent to /events"


def _findings(kiln: Kiln) -> list[Finding]:
    from kiln import doctor  # noqa: PLC0415

    return list(doctor.examine(list(doctor.probes(kiln))))


def _evaluated(kiln: Kiln, event: bytes, host: str | None) -> CheckReport:
    try:
        request = saved.parse(event, host)
        run = dry_run(request, kiln.config.triggers, wiring.intake(kiln, Offline()), Who(), datetime.now(UTC))
    except (EventError, BuildsError) as error:
        return CheckReport(errors=[str(error)])
    lacks = [verdict.lacks for outcome in run.outcomes for verdict in outcome.verdicts if verdict.lacks]
    return CheckReport(errors=lacks, request=run)
