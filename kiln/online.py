"""`kiln check --online`: whether what Kiln needs outside answers, and lets it in.

Each look goes the way that Kiln itself goes, with the same clients and credentials. Nothing is built, and no event is
sent: one that says what never was would start whatever a sink starts. Looks are made side by side, each within a limit,
and end in a sentence.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from builds.clients.errors import RegistryError
from builds.errors import AskError, CannotBuild, RepositoryError, UnknownRef
from builds.repository import HostKind, Repository, canonical
from eventing.errors import EventError
from eventing.sinks import Sink, judge
from kiln import wiring
from kiln.wiring import Kiln

if TYPE_CHECKING:
    from builds.clients.git import Resolver
    from eventing.statuses import StatusApi

Say = Callable[[str], object]

LIMIT = 45.0
"""Seconds for all looks together: the longest is a registry that is asked for leave and takes its time."""
AT_ONCE = 16

NOT_LET_IN = (401, 407)
NO_SUCH_METHOD = (501, 505)


class Failed(Exception):
    """A look that shows that something will not work, and why."""


class _Look(NamedTuple):
    name: str
    look: Callable[[], str]
    """What was seen, in a few words. Raises Failed, or an error of ours whose message says why."""


def check(kiln: Kiln, say: Say) -> bool:
    """Says of each thing that Kiln needs whether it is in order, and returns whether all are."""
    looks = [*_machine(kiln), *_registries(kiln), *_git(kiln), *_sinks(kiln)]
    looks += [*_hosts(kiln), *_hub(kiln), *_issuers(kiln), *_cluster(kiln)]
    deadline, places = time.monotonic() + LIMIT, threading.BoundedSemaphore(AT_ONCE)
    outcomes = [_begun(each, places) for each in looks]
    found = [_told(each, outcome, deadline, say) for each, outcome in zip(looks, outcomes, strict=True)]
    return all(found)


def _begun(each: _Look, places: threading.BoundedSemaphore) -> Future[str]:
    """On a thread that nobody waits for at the end: one that hangs must not keep the command."""
    outcome: Future[str] = Future()

    def run() -> None:
        with places:
            try:
                outcome.set_result(each.look())
            except Exception as error:  # noqa: BLE001  # told in the caller's thread
                outcome.set_exception(error)

    threading.Thread(target=run, name=each.name, daemon=True).start()
    return outcome


def _told(each: _Look, outcome: Future[str], deadline: float, say: Say) -> bool:
    try:
        seen = outcome.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        why = f"no end of it within {LIMIT:g} s"
    except (Failed, AskError, RegistryError, EventError) as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001  # whatever a client lets through, its message may hold a secret
        why = f"it could not be looked at ({type(error).__name__})"
    else:
        say(f"ok: {each.name}: {_printable(seen)}")
        return True
    say(f"failed: {each.name}: {_printable(why)}")
    return False


def _printable(text: str) -> str:
    """What others have said is in it."""
    return "".join(character if character.isprintable() else " " for character in text)


# This machine ------------------------------------------------------------------------------------------------------


def _machine(kiln: Kiln) -> Iterator[_Look]:
    """On Kubernetes all of it is in other pods, whose readiness says the same."""
    if kiln.settings.engine != "local":
        return
    from builds.clients.tools import ToolError, podman_client, version  # noqa: PLC0415
    from builds.engines.local.daemon import Daemon  # noqa: PLC0415

    kind = kiln.settings.daemon

    def daemon() -> str:
        if trouble := Daemon(kiln.docker_host, kind).trouble():
            raise Failed(trouble)
        return "answers"

    def tool(*command: str) -> str:
        try:
            return version(*command)
        except ToolError as error:
            raise Failed(str(error)) from None

    yield _Look(f"{kind} daemon", daemon)
    if kind == "docker":
        yield _Look("docker buildx", partial(tool, "docker", "buildx", "version"))
    else:
        yield _Look("podman client", partial(tool, podman_client(), "--version"))
    yield _Look("git", partial(tool, "git", "--version"))
    yield _Look("repo2docker", partial(tool, "jupyter-repo2docker", "--version"))


# Registries --------------------------------------------------------------------------------------------------------


def _registries(kiln: Kiln) -> Iterator[_Look]:
    from builds.clients.trial import NAME, push_and_pull  # noqa: PLC0415

    def trial(image: str) -> str:
        pushes, pulls = wiring.registry(kiln, pushes=True)(image), wiring.registry(kiln)(image)
        removed = push_and_pull(pushes, pulls, image)
        left = "and removed again" if removed else "and left there, as it may not be removed with this credential"
        return f"{image} was pushed and pulled, {left}"

    for prefix in filter(None, (kiln.images.prefix, kiln.images.private_prefix)):
        yield _Look(f"registry {prefix}", partial(trial, f"{prefix}{NAME}"))


# Git hosts ---------------------------------------------------------------------------------------------------------


def _git(kiln: Kiln) -> Iterator[_Look]:
    """The repositories that the file names, and for each credential and host that is none of theirs, one that is not
    there: who is let in is told so, and who is not is told that."""
    from builds.clients.git import Resolver, credentials  # noqa: PLC0415

    stored = credentials(kiln.secrets.git_credentials)
    resolver = Resolver(kiln.policy, lambda: stored)
    named = {each.url: each for each in _named(kiln)}
    for repository in named.values():
        yield _Look(f"repository {repository.url}", partial(_head, resolver, repository))
    for credential in stored:
        if not any(map(credential.fits, named.values())):
            place = f"{credential.origin}/{credential.path}"
            tried = next(filter(credential.fits, _below(kiln, place)), None)
            yield _Look(f"credential for {place}", partial(_let_in, resolver, tried))
    known = {repository.host for repository in named.values()}
    known |= {urlsplit(credential.origin).hostname or "" for credential in stored}
    for name in kiln.config.hosts:
        tried = next(_below(kiln, f"https://{name}"), None)
        if tried is not None and tried.host not in known:
            yield _Look(f"Git host {name}", partial(_answers, resolver, tried))


def _head(resolver: Resolver, repository: Repository) -> str:
    try:
        found = resolver.resolve(repository, None)
    except UnknownRef as error:  # of an empty one
        return str(error)
    return f"HEAD is {found.ref or found.commit}"


def _let_in(resolver: Resolver, tried: Repository | None) -> str:
    from builds.clients.git.messages import NoSuchRepository  # noqa: PLC0415

    if tried is None:
        raise Failed("no repository that may be built is below it (KILN_ALLOWED_REPOSITORIES)")
    with suppress(NoSuchRepository, UnknownRef):
        resolver.resolve(tried, None)
    return "the host lets it in"


def _answers(resolver: Resolver, tried: Repository) -> str:
    with suppress(CannotBuild):  # the host has answered
        resolver.resolve(tried, None)
    return "answers"


def _named(kiln: Kiln) -> Iterator[Repository]:
    """The listed repositories, and those that triggers name literally."""
    for listed in kiln.config.repositories:
        yield canonical(listed.url, kiln.config.hosts)
    for trigger in kiln.config.triggers:
        if trigger.repository is not None and not trigger.repository.fields:
            yield canonical(trigger.repository.text(), kiln.config.hosts)


def _below(kiln: Kiln, place: str) -> Iterator[Repository]:
    """Repositories below an address that may be built, and that nobody has."""
    made = "kiln-check-of-nobody"
    below = [f"{place.rstrip('/')}{path}" for path in ("", f"/{made}", f"/{made}/{made}")]
    allowed = [pattern.replace("**", f"{made}/{made}").replace("*", made) for pattern in kiln.policy.allowed]
    for url in (*below, *allowed):
        try:
            found = canonical(url, kiln.config.hosts)
            kiln.policy.check(found)
        except RepositoryError:
            continue
        if urlsplit(found.url).hostname == urlsplit(place).hostname:
            yield found


# Sinks -------------------------------------------------------------------------------------------------------------


def _sinks(kiln: Kiln) -> Iterator[_Look]:
    from eventing.delivery import reach  # noqa: PLC0415

    origin = urlsplit(kiln.settings.event_source).hostname or "kiln"

    def look(sink: Sink) -> str:
        status = reach(sink, kiln.secrets.headers, origin)
        answered = f"{judge(status).error or f'answered {status}'} to OPTIONS"
        if status in NOT_LET_IN:
            raise Failed(f"{answered}: it does not accept what headers/{sink.name} holds")
        if status // 100 == 3 or (status >= 500 and status not in NO_SUCH_METHOD):  # noqa: PLR2004
            raise Failed(answered)
        return f"{answered}; no event was sent"

    for sink in kiln.sinks:
        yield _Look(f"sink {sink.name}", partial(look, sink))


# Git hosts that are told of builds ------------------------------------------------------------------------------------


def _hosts(kiln: Kiln) -> Iterator[_Look]:
    """Each credential in `statuses/`: who is let in may not always ask who they are, but is not told 401."""
    from builds.clients.git import credentials_in, trusted_certificates  # noqa: PLC0415
    from eventing.delivery import reach_host  # noqa: PLC0415
    from eventing.statuses import APIS  # noqa: PLC0415

    def look(name: str, place: str) -> str:
        api = APIS[kiln.config.hosts[name]]
        tried, url = next(_asked_about(api, _below(kiln, place)), (None, ""))
        login = None if tried is None else wiring.login_at(kiln, name, tried)
        if login is None:
            raise Failed("there is no credential, or no repository below it may be built")
        status = reach_host(url, api.headers(login), trusted_certificates())
        answered = judge(status).error or f"answered {status}"
        if status in NOT_LET_IN:
            raise Failed(f"{answered}: it does not accept the credential in statuses/{name}")
        if status // 100 == 3 or status >= 500:  # noqa: PLR2004
            raise Failed(answered)
        return f"{answered}; nothing was set"

    for name in kiln.config.statuses:
        below = "scm" if kiln.config.hosts.get(name) is HostKind.BITBUCKET_SERVER else ""
        stored = credentials_in(kiln.secrets.statuses(name) or "")
        places = [f"{credential.origin}/{credential.path or below}" for credential in stored]
        for place in places or [f"{_root(kiln, name)}/{below}"]:
            yield _Look(f"statuses at {place}", partial(look, name, place))


def _asked_about(api: StatusApi, below: Iterator[Repository]) -> Iterator[tuple[Repository, str]]:
    """What an API is asked about each repository that can be one of its."""
    for tried in below:
        with suppress(ValueError):
            yield tried, api.thread(tried.url, "1").account or api.base(tried.url)


def _root(kiln: Kiln, name: str) -> str:
    """The host's address, over HTTP where only that is allowed."""
    plain = f"http://{name}"
    return plain if next(_below(kiln, plain), None) else f"https://{name}"


# Hub and cluster ---------------------------------------------------------------------------------------------------


def _hub(kiln: Kiln) -> Iterator[_Look]:
    found = kiln.settings
    if found.hub is None or "hub" not in found.auth + found.events_auth:
        return
    told = found.hub

    def look() -> str:
        from builds.clients.hub import Hub  # noqa: PLC0415

        holder = Hub(told.api_url).holder(told.api_token)
        if holder is None:
            raise Failed("it does not know JUPYTERHUB_API_TOKEN")
        return f"knows this service as {holder.kind} {holder.name}"

    yield _Look(f"JupyterHub {told.api_url}", look)


def _issuers(kiln: Kiln) -> Iterator[_Look]:
    for url in sorted(kiln.settings.oidc_issuers):
        yield _Look(f"OIDC issuer {url}", partial(_keys, url))


def _keys(url: str) -> str:
    return f"publishes its keys ({wiring.issuer(url).reach()} that sign tokens)"


def _cluster(kiln: Kiln) -> Iterator[_Look]:
    if kiln.settings.engine == "local":
        return

    def look() -> str:
        from builds.engines import EngineError  # noqa: PLC0415

        try:
            wiring.records(kiln).list(limit=1)
        except EngineError as error:
            raise Failed(str(error)) from None
        return "lists the records"

    yield _Look("Kubernetes API", look)
