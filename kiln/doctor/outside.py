"""Probes of the services that Kiln uses: whether each answers, and accepts Kiln's credentials.

Each probe uses the clients and credentials that Kiln itself uses. Nothing is built, and no event is sent: a sink would
act on an event about a build that never existed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from builds.clients.errors import Denied, RegistryError, RegistryRefused, RegistryUnreachable, Unauthorized
from builds.errors import CannotBuild, RepositoryError, RequestError, TryAgain, UnknownRef
from builds.repository import HostKind, Repository, canonical
from eventing.errors import EventError
from eventing.sinks import Sink, judge
from kiln import wiring
from kiln.doctor import cures
from kiln.doctor.cures import Cure
from kiln.doctor.findings import Probe, Symptom
from kiln.wiring import Kiln

if TYPE_CHECKING:
    from builds.clients.git import RefResolver
    from eventing.statuses import StatusApi

NOT_LET_IN = (401, 407)
NO_SUCH_METHOD = (501, 505)
QUICK = (5.0, 5.0)
"""Seconds to connect, and between two bytes, where only the protocol is in question."""


def probes(kiln: Kiln) -> Iterator[Probe]:
    for part in (_registries, _git, _sinks, _hosts, _hub, _issuers):
        yield from part(kiln)


# Registries --------------------------------------------------------------------------------------------------------


def _registries(kiln: Kiln) -> Iterator[Probe]:
    from builds.clients.trial import NAME  # noqa: PLC0415

    for prefix in kiln.images.pushed_prefixes:
        yield Probe(f"registry {prefix}", partial(_trial, kiln, prefix, f"{prefix}{NAME}"))


def _trial(kiln: Kiln, prefix: str, image: str) -> str:
    from builds.clients.trial import push_and_pull  # noqa: PLC0415

    pushes, pulls = wiring.registry(kiln, pushes=True)(image), wiring.registry(kiln)(image)
    try:
        removed = push_and_pull(pushes, pulls, image)
    except RegistryError as error:
        raise Symptom(_refusal(error, image), error, registry=image.partition("/")[0], prefix=prefix) from None
    left = "and removed again" if removed else "and left there, as it may not be removed with this credential"
    return f"{image} was pushed and pulled, {left}"


def _refusal(error: RegistryError, image: str) -> Cure:
    match error:
        case Denied():
            return cures.REGISTRY_DENIED
        case Unauthorized():
            return cures.REGISTRY_NO_LOGIN if "has none for it" in str(error) else cures.REGISTRY_LOGIN
        case RegistryRefused():
            return cures.REGISTRY_REFUSES
    if re.search(r"(?i)certificate", str(error)):
        return cures.REGISTRY_CERTIFICATE
    return cures.REGISTRY_PLAIN if _speaks_plain_http(image) else cures.REGISTRY_UNREACHABLE


def _speaks_plain_http(image: str) -> bool:
    """Reports whether the registry speaks plain HTTP. The request contains no credential."""
    from builds.clients.docker_config import NO_LOGIN  # noqa: PLC0415
    from builds.clients.registry import Registry, origin  # noqa: PLC0415

    host = image.partition("/")[0]
    with suppress(RegistryUnreachable):
        return origin(image).startswith("https:") and Registry(NO_LOGIN, [host], QUICK).answers(image)
    return False


# Git hosts ---------------------------------------------------------------------------------------------------------


def _git(kiln: Kiln) -> Iterator[Probe]:
    """Probes the repositories that the configuration names. For each other credential or host, the probe requests a
    repository that does not exist: a host reports that only to a client whose credential it accepts."""
    from builds.clients.git import RefResolver, credentials  # noqa: PLC0415

    stored = credentials(kiln.secrets.git_credentials)
    resolver = RefResolver(kiln.policy, lambda: stored)
    named = {each.url: each for each in _named(kiln)}
    for repository in named.values():
        yield Probe(f"repository {repository.url}", partial(_head, resolver, repository))
    for credential in stored:
        if not any(map(credential.fits, named.values())):
            place = f"{credential.origin}/{credential.path}"
            tried = next(filter(credential.fits, _below(kiln, place)), None)
            yield Probe(f"credential for {place}", partial(_let_in, resolver, tried))
    known = {repository.host for repository in named.values()}
    known |= {urlsplit(credential.origin).hostname or "" for credential in stored}
    for name in kiln.config.hosts:
        tried = next(_below(kiln, f"https://{name}"), None)
        if tried is not None and tried.host not in known:
            yield Probe(f"Git host {name}", partial(_answers, resolver, tried))


def _head(resolver: RefResolver, repository: Repository) -> str:
    from builds.clients.git.messages import NoSuchRepository, NotShown  # noqa: PLC0415

    try:
        found = resolver.resolve(repository, None)
    except UnknownRef as error:  # of an empty one
        return str(error)
    except (NoSuchRepository, NotShown) as error:
        raise Symptom(cures.REPOSITORY_HIDDEN, error) from None
    except TryAgain as error:
        raise Symptom(cures.GIT_HOST, error) from None
    return f"HEAD is {found.ref or found.commit}"


def _let_in(resolver: RefResolver, tried: Repository | None) -> str:
    from builds.clients.git.messages import NoSuchRepository, NotShown  # noqa: PLC0415

    if tried is None:
        found = "no repository that may be built is below it (KILN_ALLOWED_REPOSITORIES)"
        raise Symptom(cures.GIT_CREDENTIAL_UNUSED, found)
    try:
        with suppress(NoSuchRepository, UnknownRef):
            resolver.resolve(tried, None)
    except NotShown as error:
        raise Symptom(cures.GIT_CREDENTIAL, error) from None
    except TryAgain as error:
        raise Symptom(cures.GIT_HOST, error) from None
    return "the host accepts it"


def _answers(resolver: RefResolver, tried: Repository) -> str:
    try:
        with suppress(CannotBuild):  # the host has answered
            resolver.resolve(tried, None)
    except TryAgain as error:
        raise Symptom(cures.GIT_HOST, error) from None
    return "answers"


def _named(kiln: Kiln) -> Iterator[Repository]:
    """Yields the listed repositories, and those that triggers name literally."""
    for listed in kiln.config.repositories:
        yield canonical(listed.url, kiln.config.hosts)
    for trigger in kiln.config.triggers:
        if trigger.repository is not None and not trigger.repository.fields:
            yield canonical(trigger.repository.text(), kiln.config.hosts)


def _below(kiln: Kiln, place: str) -> Iterator[Repository]:
    """Yields URLs of repositories that do not exist, below an origin or folder, and that the policy allows."""
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


def _sinks(kiln: Kiln) -> Iterator[Probe]:
    from eventing.delivery import reach  # noqa: PLC0415

    origin = urlsplit(kiln.settings.event_source).hostname or "kiln"

    def run(sink: Sink) -> str:
        try:
            status = reach(sink, kiln.secrets.headers, origin)
        except EventError as error:
            raise Symptom(cures.SINK_DOWN, error) from None
        answered = f"{judge(status).error or f'answered {status}'} to OPTIONS"
        if status in NOT_LET_IN:
            found = f"{answered}: it does not accept what headers/{sink.name} holds"
            raise Symptom(cures.SINK_DENIED, found, sink=sink.name)
        if status // 100 == 3:  # noqa: PLR2004
            raise Symptom(cures.SINK_ADDRESS, answered)
        if status >= 500 and status not in NO_SUCH_METHOD:  # noqa: PLR2004
            raise Symptom(cures.SINK_DOWN, answered)
        return f"{answered}; no event was sent"

    for sink in kiln.sinks:
        yield Probe(f"sink {sink.name}", partial(run, sink))


# Git hosts that receive statuses --------------------------------------------------------------------------------------


def _hosts(kiln: Kiln) -> Iterator[Probe]:
    """Probes each credential in `statuses/`. A valid one may lack the right to read its account, but gets no 401."""
    from builds.clients.git import credentials_in, trusted_certificates  # noqa: PLC0415
    from eventing.delivery import reach_host  # noqa: PLC0415
    from eventing.statuses import APIS  # noqa: PLC0415

    def run(name: str, place: str) -> str:
        api = APIS[kiln.config.hosts[name]]
        tried, url = next(_asked_about(api, _below(kiln, place)), (None, ""))
        login = None if tried is None else wiring.login_at(kiln, name, tried)
        if login is None:
            found = "there is no credential, or no repository below it may be built"
            raise Symptom(cures.STATUS_NO_LOGIN, found, host=name)
        try:
            status = reach_host(url, api.headers(login), trusted_certificates())
        except EventError as error:
            raise Symptom(cures.STATUS_HOST, error) from None
        answered = judge(status).error or f"answered {status}"
        if status in NOT_LET_IN:
            found = f"{answered}: it does not accept the credential in statuses/{name}"
            raise Symptom(cures.STATUS_LOGIN, found, host=name)
        if status // 100 == 3 or status >= 500:  # noqa: PLR2004
            raise Symptom(cures.STATUS_HOST, answered)
        return f"{answered}; nothing was set"

    for name in kiln.config.statuses:
        below = "scm" if kiln.config.hosts.get(name) is HostKind.BITBUCKET_SERVER else ""
        stored = credentials_in(kiln.secrets.statuses(name) or "")
        places = [f"{credential.origin}/{credential.path or below}" for credential in stored]
        for place in places or [f"{_root(kiln, name)}/{below}"]:
            yield Probe(f"statuses at {place}", partial(run, name, place))


def _asked_about(api: StatusApi, below: Iterator[Repository]) -> Iterator[tuple[Repository, str]]:
    """Yields the URL that returns the account of a credential, for each repository that can be on its host."""
    for tried in below:
        with suppress(ValueError):
            yield tried, api.thread(tried.url, "1").account or api.base(tried.url)


def _root(kiln: Kiln, name: str) -> str:
    """Returns the host's origin, with HTTP if only that is allowed."""
    plain = f"http://{name}"
    return plain if next(_below(kiln, plain), None) else f"https://{name}"


# JupyterHub and issuers ----------------------------------------------------------------------------------------------


def _hub(kiln: Kiln) -> Iterator[Probe]:
    found = kiln.settings
    if found.hub is None or "hub" not in found.auth + found.events_auth:
        return
    hub = found.hub

    def run() -> str:
        from builds.clients.jupyterhub import HubClient  # noqa: PLC0415

        try:
            holder = HubClient(hub.api_url).holder(hub.api_token)
        except RequestError as error:
            raise Symptom(cures.HUB_DOWN, error) from None
        if holder is None:
            raise Symptom(cures.HUB_TOKEN, "it does not know JUPYTERHUB_API_TOKEN")
        return f"knows this service as {holder.kind} {holder.name}"

    yield Probe(f"JupyterHub {hub.api_url}", run)


def _issuers(kiln: Kiln) -> Iterator[Probe]:
    for url in sorted(kiln.settings.oidc_issuers):
        yield Probe(f"OIDC issuer {url}", partial(_keys, url))


def _keys(url: str) -> str:
    try:
        return f"publishes its keys ({wiring.issuer(url).reach()} that sign tokens)"
    except RequestError as error:
        raise Symptom(cures.ISSUER, error) from None
