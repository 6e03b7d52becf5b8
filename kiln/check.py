"""`kiln check`: whether the configuration is valid, and what an event would build.

A dry run goes the way of a real request as far as it can without asking anybody: decode or webhook dialect, triggers,
policy, names. Signatures and tokens are not checked, refs are not looked up, nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial

from builds.build import Kind
from builds.clients.git import ResolvedRef
from builds.engines import Submission
from builds.errors import BuildsError, RequestError
from builds.image import tag_for
from builds.intake import Intake
from builds.repository import Repository, short_name
from builds.triggers import RequestedBuild, requested_builds
from eventing import saved
from eventing.errors import EventError
from eventing.event import Event
from eventing.hops import is_spent
from eventing.hosts import DIALECTS, Ignored, PushFacts
from eventing.http import decode
from kiln import wiring
from kiln.errors import KilnError
from kiln.settings import for_web
from kiln.wiring import Kiln

Say = Callable[[str], object]

UNKNOWN = "0" * 40
"""Stands for a commit that only a look-up would tell."""


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
        else:  # which the controller alone has, and it asks nobody who they are
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
        say(f"told of builds: {host}, {', '.join(rule.words)}")
        if secrets.statuses(host) is None:
            say(f"warning: there is no credential in statuses/{host}, so nothing can be said there")
    for listed in kiln.config.repositories:
        every = "looked at by `kiln sync` only" if listed.poll is None else f"looked at every {listed.poll:g} s"
        say(f"repository: {listed.url}, {every}")
    if "token" in found.auth + found.events_auth and not secrets.api_tokens():
        say("warning: there is no token in api-tokens/, so nobody can come in")
    if found.oidc_client_id and secrets.oidc_client() is None:
        say("warning: there is no oidc/client-secret, so nobody can sign in by KILN_OIDC_CLIENT_ID")
    if "oidc" in found.events_auth and not found.oidc_subjects:
        say("note: KILN_OIDC_SUBJECTS names nobody, so with oidc only requests for builds may be sent to /events")


def _outside(kiln: Kiln, say: Say) -> bool:
    """Whether none of the probes of `kiln doctor` failed."""
    from kiln import doctor  # noqa: PLC0415

    found = list(doctor.examine(list(doctor.probes(kiln))))
    for one in found:
        say(" ".join(filter(None, (f"{one.state}: {one.probe}: {one.found}", one.cure))))
    return not any(one.state is doctor.State.FAILED for one in found)


def _dry_run(kiln: Kiln, request: saved.Saved, say: Say) -> None:
    word = request.word
    events = decode(request.headers, request.body) if word is None else _delivered(word, request, say)
    intake = wiring.intake(kiln, _Nobody())
    for event in events:
        say(f"event {event.id}: {event.type} of {event.source}" + (f", {event.subject}" if event.subject else ""))
        wants = requested_builds(kiln.config.triggers, event, partial(_default_branch, say))
        if word is not None:
            intake.check_same_host_kind(word, event, wants)
        if intake.is_own(event):
            say("  Kiln's own account has pushed it, or this Kiln has sent it: nothing would be built")
            continue
        if is_spent(event):
            say("  it has passed as many brokers as it may (knativebrokerttl): nothing would be built")
            continue
        if not wants:
            say("  no trigger wants it: nothing would be built")
        for want in wants:
            _tell(_ask(intake, want, event), want, say)


def _default_branch(say: Say, push: PushFacts) -> str | None:
    """What the push says, or else the branch that it is of: the host is not asked."""
    if push.default_branch is None:
        say("  which branch is the default one would be looked up; this one is taken for it")
    return push.default_branch or short_name(push.ref)


def _delivered(word: str, request: saved.Saved, say: Say) -> list[Event]:
    found = DIALECTS[word].parse(request.headers, request.body)
    if isinstance(found, Ignored):
        say(f"{word} webhook: nothing would be built. {found.reason}")
        return []
    return found


def _ask(intake: Intake, want: RequestedBuild, event: Event) -> Submission | RequestError:
    try:
        return intake.submission(
            want,
            source=event.source,
            id=event.id,
            type=event.type,
            by=None,
            chooses=True,
            kind=Kind.PUSH,
            now=datetime.now(UTC),
        )
    except RequestError as error:
        return error


def _tell(ask: Submission | RequestError, want: RequestedBuild, say: Say) -> None:
    say(f"  by the trigger {want.trigger}" if want.trigger else "  as it asks itself")
    if isinstance(ask, RequestError):
        say(f"    refused ({ask.status}): {ask}")
        return
    request, unknown = ask.request, ask.request.commit == UNKNOWN
    told = {
        "build": None if unknown else ask.name,
        "repository": request.repository,
        "ref": ask.cause.ref,
        "commit": "to be looked up" if unknown else request.commit,
        "subdir": request.subdir,
        "build_args": ", ".join(f"{name}={value}" for name, value in request.build_args.items()),
        "image": request.image
        if unknown
        else f"{request.image}:{tag_for(request.commit, request.subdir, request.build_args)}",
        "tags": ", ".join(ask.cause.tags),
    }
    for name, value in told.items():
        if value:
            say(f"    {name}: {value}")


class _Nobody:
    """Resolves without asking: a full ref is taken for what it says, the rest for a branch."""

    def resolve(self, repository: Repository, ref: str | None) -> ResolvedRef:  # noqa: ARG002
        full = ref if ref is None or ref.startswith("refs/") else f"refs/heads/{ref}"
        return ResolvedRef(full, UNKNOWN)

    def commit(self, repository: Repository, digits: str) -> str:  # noqa: ARG002
        return UNKNOWN

    def changed(self, repository: Repository, number: int) -> None:  # noqa: ARG002
        return None
