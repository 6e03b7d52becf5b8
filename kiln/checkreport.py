"""The result of `kiln check`, as lines of text or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from builds.dryrun import UNKNOWN, DryRun, EventEvaluation, Planned
from builds.engines import Submission
from builds.triggers import Verdict

if TYPE_CHECKING:
    from kiln.doctor.findings import Finding


class ListedRepository(msgspec.Struct, frozen=True, kw_only=True):
    """A repository of the configuration. `poll` is the interval in seconds; `None` if only `kiln sync` polls it."""

    url: str
    poll: float | None


class ConfigurationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a valid configuration that decide which requests Kiln accepts, and whom it informs.

    `triggers` and `sinks` are names, `webhooks` the Git hosts that have a secret. `statuses` maps the Git hosts that
    receive statuses to the reported states.
    """

    auth: Sequence[str]
    loopback_only: bool
    events_auth: Sequence[str]
    triggers: Sequence[str]
    sinks: Sequence[str]
    webhooks: Sequence[str]
    statuses: Mapping[str, Sequence[str]]
    repositories: Sequence[ListedRepository]

    def lines(self) -> Iterator[str]:
        alone = ", from this machine only" if self.loopback_only else ""
        yield f"auth: {', '.join(self.auth)}{alone}; events: {', '.join(self.events_auth)}"
        yield f"triggers: {', '.join(self.triggers) or 'none'}"
        yield f"sinks: {', '.join(self.sinks) or 'none'}"
        yield f"webhooks: {', '.join(self.webhooks) or 'none has a secret'}"
        for host, states in self.statuses.items():
            yield f"statuses: {host}, {', '.join(states)}"
        for one in self.repositories:
            how = "polled by `kiln sync` only" if one.poll is None else f"polled every {one.poll:g} s"
            yield f"repository: {one.url}, {how}"


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """`configuration` is `None` with `--event` and after an error, `request` without `--event`, `findings` without
    `--online`."""

    errors: Sequence[str] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    configuration: ConfigurationSummary | None = None
    request: DryRun | None = None
    findings: Sequence[Finding] | None = None

    @property
    def valid(self) -> bool:
        return not self.errors and not any(one.state == "failed" for one in self.findings or ())

    def lines(self) -> Iterator[str]:
        if self.configuration:
            yield from self.configuration.lines()
        yield from (f"warning: {one}" for one in self.warnings)
        yield from (f"note: {one}" for one in self.notes)
        if self.request:
            yield from _request_lines(self.request)
        for one in self.findings or ():
            yield " ".join(filter(None, (f"{one.state}: {one.probe}: {one.found}", one.cure)))
        yield from (f"error: {one}" for one in self.errors)
        if self.valid and self.configuration:
            yield "Configuration is valid"

    def as_json(self) -> str:
        members = msgspec.to_builtins(msgspec.structs.replace(self, request=None))
        shape = {"valid": self.valid, **members, "request": self.request and _request_shape(self.request)}
        return msgspec.json.format(msgspec.json.encode(shape), indent=2).decode()


# Text -----------------------------------------------------------------------------------------------------------------


def _request_lines(run: DryRun) -> Iterator[str]:
    if run.ignored:
        yield f"The webhook contains no event: nothing would be built. {run.ignored}"
    for outcome in run.outcomes:
        event = outcome.event
        yield f"event {event.id}: {event.type} of {event.source}" + (f", {event.subject}" if event.subject else "")
        yield from (f"  {line}" for line in _outcome_lines(outcome))


def _outcome_lines(outcome: EventEvaluation) -> Iterator[str]:
    yield from outcome.notes
    if outcome.why:
        yield f"nothing would be built. {outcome.why}"
        return
    for verdict in outcome.verdicts:
        yield from _mismatch_lines(verdict)
    if not outcome.builds and not any(verdict.lacks for verdict in outcome.verdicts):
        yield "no trigger matches it: nothing would be built"
    for planned in outcome.builds:
        yield from _build_lines(planned)


def _mismatch_lines(verdict: Verdict) -> Iterator[str]:
    for check in verdict.checks:
        if check.why:
            yield f"the trigger {verdict.trigger} does not match, {check.place}: {check.why}"


def _build_lines(planned: Planned) -> Iterator[str]:
    yield f"by the trigger {planned.trigger}" if planned.trigger else "requested by the event itself"
    if planned.refused:
        yield f"  refused ({planned.refused.status}): {planned.refused}"
    yield from (f"  {name}: {value}" for name, value in planned.facts.items())


# JSON -----------------------------------------------------------------------------------------------------------------


def _request_shape(run: DryRun) -> dict[str, object]:
    return {"ignored": run.ignored, "events": [_outcome_shape(outcome) for outcome in run.outcomes]}


def _outcome_shape(outcome: EventEvaluation) -> dict[str, object]:
    event = outcome.event
    return {
        "id": event.id,
        "type": event.type,
        "source": event.source,
        "subject": event.subject,
        "why": outcome.why,
        "notes": outcome.notes,
        "triggers": [_verdict_shape(verdict) for verdict in outcome.verdicts],
        "builds": [_build_shape(planned) for planned in outcome.builds],
    }


def _verdict_shape(verdict: Verdict) -> dict[str, object]:
    failed = [{"condition": check.place, "why": check.why} for check in verdict.checks if check.why]
    return {"name": verdict.trigger, "matches": verdict.matches, "mismatches": failed, "lacks": verdict.lacks}


def _build_shape(planned: Planned) -> dict[str, object]:
    refused = planned.refused and {"status": planned.refused.status, "message": str(planned.refused)}
    return {
        "trigger": planned.trigger,
        "refused": refused,
        **(_facts(planned, planned.submission) if planned.submission else {}),
    }


def _facts(planned: Planned, submission: Submission) -> dict[str, object]:
    """The values of a build. `name` and `commit` are null if only the Git host knows the commit."""
    request = submission.request
    return {
        "name": planned.facts.get("build"),
        "repository": request.repository,
        "ref": submission.cause.ref,
        "commit": None if request.commit == UNKNOWN else request.commit,
        "subdir": request.subdir or None,
        "build_args": request.build_args,
        "image": planned.facts["image"],
        "tags": submission.cause.tags,
    }
