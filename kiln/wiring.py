"""Assemble the parts: from the configuration to the application of web and the loop of the controller.

Only this module knows all parts. Each function imports its dependencies when it runs. Web therefore never imports the
HTTP client of the controller, nor the controller Flask, and both listen before these imports.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec

from builds.build import stays_with_daemon
from builds.errors import RepositoryError, RuleError
from builds.image import ImagePolicy
from builds.literals import refusals
from builds.private import Private
from builds.repository import Policy, canonical
from eventing.delivery import sinks_from_environment
from eventing.errors import SinkError
from eventing.hosts import DIALECTS
from eventing.pulse import Pulse
from eventing.sinks import Sink
from kiln import config, localtoken, logs, settings, vitals
from kiln.config import Config
from kiln.errors import CommandError, KilnError
from kiln.ops import Ops
from kiln.secrets import Secrets
from kiln.settings import Process, Settings

if TYPE_CHECKING:
    from flask import Flask

    from builds.build import Build, Cause
    from builds.builder.spec import Surroundings
    from builds.clients.oidc import Issuer
    from builds.clients.registry import Registry
    from builds.clients.store import ImageStore
    from builds.confirm import RegistryConfirmer
    from builds.engines import Engine, Records
    from builds.engines.kubernetes import Circuit, KubernetesEngine, KubernetesRecords
    from builds.engines.local import LocalEngine
    from builds.intake import Intake, Lookups, Resolver
    from builds.plan import Limits, Word
    from builds.prune import Pruner
    from builds.repository import Repository
    from builds.statuses import Statuses
    from builds.sync.reconciler import Sync
    from eventing.event import Event
    from eventing.spans import Spans
    from eventing.statuses import Login
    from handlers.auth import Authenticator
    from handlers.hub import HubService
    from handlers.services import Sessions

log = logging.getLogger(__name__)

LAST_LOOK = 5.0
"""Seconds for pending polls of repositories and registries when the controller stops."""

USE_NOTED = timedelta(days=1)
"""Interval at which a use of an existing image is recorded; shorter if `keep.for` is short."""

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""The files with a pod's identity in its cluster."""

MAX_RULES = 96 * 1024
"""Bytes, as JSON: an annotation of a build's pod holds them and its other parameters, and annotations are limited to
256 KiB.
"""

T = TypeVar("T")


class Kiln(msgspec.Struct, frozen=True, kw_only=True):
    """One installation with a valid configuration. `sinks` are those of the file and `k-sink`."""

    settings: Settings
    config: Config
    secrets: Secrets
    policy: Policy
    images: ImagePolicy
    sinks: tuple[Sink, ...]
    docker_host: str | None
    registry_config: str | None


def load(environ: Mapping[str, str]) -> Kiln:
    """Read the environment, then file and secrets. Raises KilnError with all faults of the environment, or else of the
    others.
    """
    found = settings.read(environ)
    problems: list[str] = []
    configured = _or_note(problems, lambda: config.read(found.config, found.config_sha256)) or Config()
    injected = _or_note(problems, lambda: sinks_from_environment(found.sink_binding, format=found.k_sink_format)) or []
    policy = _or_note(problems, lambda: Policy(found.allowed_repositories, found.banned_repositories))
    images = _or_note(problems, lambda: image_policy(found, configured))
    folder = Secrets(found.secrets_dir)
    sinks = (*injected, *configured.sinks)
    names = [sink.name for sink in sinks]
    if names.count("k-sink") > 1:
        problems.append("sinks: The name `k-sink` is reserved for K_SINK")
    _or_note(problems, lambda: folder.check(words=DIALECTS, sinks=names, hosts=configured.statuses))
    problems += _untold(found, configured, folder)
    problems += _wrong_registry_configs(found, _registry_config(found, environ))
    problems += _wrong_signing_key(found)
    problems += _too_much(found, configured)
    problems += _not_pushed(found, configured)
    if policy is not None and images is not None:
        problems += (f"{found.config}: {problem}" for problem in _refused(configured, policy, images))
    if problems or policy is None or images is None:
        raise KilnError(problems)
    return Kiln(
        settings=found,
        config=configured,
        secrets=folder,
        policy=policy,
        images=images,
        sinks=sinks,
        docker_host=_daemon_address(found, environ),
        registry_config=_registry_config(found, environ),
    )


def _not_pushed(found: Settings, configured: Config) -> Iterator[str]:
    """Return the image names that name no registry, although the nodes of a cluster pull from one."""
    if found.engine != "kubernetes":
        return
    named = {"private_image_prefix": configured.private_image_prefix or ""}
    named |= {f"allowed_images[{number}]": pattern for number, pattern in enumerate(configured.allowed_images)}
    for place, image in named.items():
        if stays_with_daemon(image):
            yield f"{place}: {image} names no registry, and with KILN_ENGINE kubernetes images must be pushed"


def _refused(configured: Config, policy: Policy, images: ImagePolicy) -> Iterator[str]:
    """Return the images in the file that no build may use."""
    for trigger in configured.triggers:
        for problem in refusals(trigger, policy=policy, images=images, hosts=configured.hosts):
            yield f"triggers: Trigger '{trigger.name}', {problem}"
    for index, listed in enumerate(configured.repositories):
        try:
            policy.check(canonical(listed.url, configured.hosts))
        except RepositoryError as error:
            yield f"repositories[{index}].url: {error}"


def _untold(found: Settings, configured: Config, folder: Secrets) -> Iterator[str]:
    """Return the faults of hosts with statuses."""
    from builds.clients.git import credentials_in  # noqa: PLC0415

    for name in configured.statuses:
        if found.public_url is None:
            yield f"hosts.{name}: statuses link to the build's page. Set KILN_PUBLIC_URL"
        for credential in credentials_in(folder.statuses(name) or ""):
            place = credential.origin.partition("://")[2]
            if name not in (place, place.rpartition(":")[0]):
                yield f"statuses/{name}: holds a credential for {place}, which has no `statuses` in `hosts`"


def image_policy(found: Settings, configured: Config) -> ImagePolicy:
    """Return the policy for images. Raises RuleError."""
    return ImagePolicy(
        found.image_prefix,
        configured.allowed_images,
        private_prefix=configured.private_image_prefix,
        private=Private(configured.private, hosts=configured.hosts).names,
    )


def _wrong_registry_configs(found: Settings, used: str | None) -> Iterator[str]:
    from builds.clients import docker_config  # noqa: PLC0415
    from builds.clients.errors import RegistryUnreachable  # noqa: PLC0415

    given = {
        "KILN_REGISTRY_CONFIG": found.registry_config,
        "KILN_PRIVATE_REGISTRY_CONFIG": found.private_registry_config,
    }
    files = [path for path in given.values() if path is not None]
    yield from (f"{name}: {path} is not a file" for name, path in given.items() if path in files and not path.is_file())
    if len(files) > 1 and all(path.is_file() for path in files) and files[0].samefile(files[1]):
        yield "KILN_PRIVATE_REGISTRY_CONFIG: must differ from KILN_REGISTRY_CONFIG, which all build steps can read"
    for name, path in {**given, "KILN_REGISTRY_CONFIG": used}.items():
        try:
            docker_config.read(path or docker_config.NO_LOGIN)
        except RegistryUnreachable as error:
            yield f"{name}: {error}"


def _wrong_signing_key(found: Settings) -> Iterator[str]:
    from builds.dsse import SigningKey  # noqa: PLC0415
    from builds.errors import ProvenanceError  # noqa: PLC0415

    if found.signing_key is None:
        return
    try:
        SigningKey.read(found.signing_key.read_bytes())
    except OSError as error:
        yield f"KILN_SIGNING_KEY: {found.signing_key} cannot be read ({error.strerror})"
    except ProvenanceError as error:
        yield f"KILN_SIGNING_KEY: {found.signing_key}: {error}"


def _too_much(found: Settings, configured: Config) -> Iterator[str]:
    """Each build carries the configuration in its pod, which limits the size."""
    given = {
        "KILN_ALLOWED_REPOSITORIES": found.allowed_repositories,
        "KILN_BANNED_REPOSITORIES": found.banned_repositories,
        "insecure_registries": configured.insecure_registries,
        "private": configured.private,
        "repo2docker": configured.repo2docker,
    }
    sizes = {name: len(msgspec.json.encode(value)) for name, value in given.items()}
    if sum(sizes.values()) > MAX_RULES:
        largest = max(sizes, key=lambda name: sizes[name])
        yield f"{', '.join(given)}: longer than {MAX_RULES >> 10} KiB together, most of it {largest}"


def _or_note(problems: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except KilnError as error:
        problems += error.problems
    except (RuleError, SinkError) as error:
        problems.append(str(error))
    return None


def _registry_config(found: Settings, environ: Mapping[str, str]) -> str | None:
    """Return the configured docker configuration, or else the file of `docker login` if it exists."""
    if found.registry_config is not None:
        return str(found.registry_config)
    usual = Path(environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()) / "config.json"
    return str(usual.absolute()) if usual.is_file() else None


def ops(kiln: Kiln, process: Process) -> Ops:
    """Open the ops port. Raises CommandError."""
    host, port = kiln.settings.host, kiln.settings.ops_port_of(process)
    try:
        return Ops(host, port)
    except OSError as error:
        raise CommandError(f"KILN_OPS_PORT: {host} port {port} is not available: {error.strerror}") from None


# Web ---------------------------------------------------------------------------------------------------------------


def app(kiln: Kiln, stopping: threading.Event) -> Flask:
    """Return the WSGI application; its streams end when `stopping` is set. Raises EngineError without records."""
    from builds.clients.git import LookupLimiter, RefResolver, credentials  # noqa: PLC0415
    from builds.clients.images import TIMEOUT, Images  # noqa: PLC0415
    from handlers.app import Services, create_app  # noqa: PLC0415
    from handlers.auth import gate  # noqa: PLC0415

    found = kiln.settings
    images = Images(store(kiln, (TIMEOUT, TIMEOUT)))
    private = _private(kiln)
    entitled = RefResolver(kiln.policy, lambda: credentials(kiln.secrets.git_credentials))
    in_url, hub = found.token_in_url, _hub_service(found)
    held = sessions(kiln)
    people, senders = _by_oidc(kiln, held.ended)
    ways = hub.ways(in_url=in_url) if hub else ()
    for_pages = hub.ways(in_url=in_url, ended=held.ended) if hub else ()
    tokens = _tokens(kiln)
    gate_for = functools.partial(gate, tokens=tokens, token_in_url=in_url)
    return create_app(
        Services(
            records=records(kiln),
            intake=intake(
                kiln,
                RefResolver(kiln.policy),
                entitled=entitled,
                private=private,
                lookups=LookupLimiter(found.max_lookups),
            ),
            private=private,
            triggers=kiln.config.triggers,
            webhook_secrets=kiln.secrets.webhooks,
            sessions=held,
            auth=gate_for(found.auth, ended=held.ended, oidc=people, hub=for_pages),
            events_auth=gate_for(found.events_auth, oidc=senders, hub=ways),
            find_image=images.digest,
            registry_answers=lambda: images.answers(kiln.images.prefix),
            builder_info=_builder_info(found),
            version=metadata.version("kiln-images"),
            cursor_keys=_cursor_keys(kiln, tokens),
            loopback_only=found.loopback_only,
            base_path=found.base_path,
            public_url=found.public_url,
            max_body=found.max_body,
            max_viewers=found.max_viewers,
            builds_per_node=found.builds_per_node,
            stopping=stopping,
            note_use_after=min(USE_NOTED, kiln.config.keep.period / 4) if kiln.config.keep else None,
            spans=spans(kiln, "web"),
        )
    )


def spans(kiln: Kiln, process: Process) -> Spans | None:
    """Return the exporter of spans; `None` without a collector."""
    if kiln.settings.traces == "off":
        return None
    from kiln.otel import OTelSpans  # noqa: PLC0415

    return OTelSpans(process, metadata.version("kiln-images"))


def _tokens(kiln: Kiln) -> Callable[[], Mapping[str, bytes]]:
    """Return the API tokens; or the token of this machine, read once. Raises CommandError."""
    if not kiln.settings.loopback_only:
        return kiln.secrets.api_tokens
    own = {localtoken.NAME: localtoken.ensured(kiln.settings.state_dir)}
    return lambda: own


def _cursor_keys(kiln: Kiln, tokens: Callable[[], Mapping[str, bytes]]) -> Callable[[], Sequence[bytes]]:
    """Return secrets that every replica has; those for people come first."""
    hub, client = kiln.settings.hub, kiln.secrets.oidc_client
    of_hub = [hub.api_token.encode()] if hub else []
    return lambda: [
        *of_hub,
        *(secret.encode() for secret in [client()] if secret),
        *(token for _, token in sorted(tokens().items())),
    ]


def sessions(kiln: Kiln) -> Sessions:
    """Return the store of ended sessions. Raises EngineError."""
    if kiln.settings.engine == "local":
        from builds.engines.local.sessions import LocalSessions  # noqa: PLC0415

        return LocalSessions(kiln.settings.state_dir / "signed-out")
    from builds.engines.kubernetes import KubernetesSessions  # noqa: PLC0415

    where = _where(kiln)
    return KubernetesSessions(where["api"], where["release"], anchor=where["anchor"])


def registry(kiln: Kiln, *limits: tuple[float, float], pushes: bool = False) -> Callable[[str], Registry]:
    """Return a function that makes a client for the registry of an image, with its credential."""
    from builds.clients.docker_config import NO_LOGIN  # noqa: PLC0415
    from builds.clients.registry import Registry  # noqa: PLC0415

    def make(image: str) -> Registry:
        own = kiln.settings.private_registry_config or NO_LOGIN
        login = own if kiln.images.is_private(image) else kiln.registry_config
        return Registry(login, kiln.config.insecure_registries, *limits, pushes=pushes)

    return make


def store(kiln: Kiln, *limits: tuple[float, float], pushes: bool = False) -> Callable[[str], ImageStore]:
    """Makes a client for where an image lies: its registry, or this machine's daemon."""
    in_registry = registry(kiln, *limits, pushes=pushes)

    def make(image: str) -> ImageStore:
        return on_this_machine(kiln) if stays_with_daemon(image) else in_registry(image)

    return make


def on_this_machine(kiln: Kiln) -> ImageStore:
    """The images that stay with this machine's daemon."""
    from builds.builder.daemons.images import DaemonImages  # noqa: PLC0415

    return DaemonImages.of(surroundings(kiln))


def _hub_service(found: Settings) -> HubService | None:
    """Return this service as its Hub knows it, if `KILN_AUTH` has `hub`."""
    if found.hub is None or "hub" not in found.auth + found.events_auth:
        return None
    from builds.clients.jupyterhub import HubClient  # noqa: PLC0415
    from handlers.auth import SESSION_SECONDS  # noqa: PLC0415
    from handlers.hub import HubService  # noqa: PLC0415

    hub = found.hub
    return HubService(
        hub=HubClient(hub.api_url, max_waiting=found.max_hub_calls),
        client_id=hub.client_id,
        secret=hub.api_token,
        access_scopes=hub.access_scopes,
        authorize_url=hub.authorize_url,
        callback_url=hub.callback_url or f"{found.base_path}oauth_callback",
        logout_url=hub.logout_url,
        session_seconds=SESSION_SECONDS,
    )


def _by_oidc(kiln: Kiln, ended: Callable[[str], bool]) -> tuple[Sequence[Authenticator], Sequence[Authenticator]]:
    """Return the authentication of people and senders by an issuer's tokens, if configured."""
    found = kiln.settings
    if not found.oidc_issuers:
        return (), ()
    from handlers.oidc import OidcSession, OidcSignIn, OidcToken, People, Senders  # noqa: PLC0415

    issuers = {url: issuer(url) for url in found.oidc_issuers}
    people = People(
        groups_claim=found.oidc_groups_claim, admin_group=found.oidc_admin_group, heeded=_groups(kiln.config)
    )
    senders = Senders(subjects=found.oidc_subjects, people=people if found.senders_are_people else None)

    def way(url: str | None, audiences: Sequence[str], who: People | Senders) -> list[Authenticator]:
        if url not in issuers:
            return []
        return [OidcToken(issuer=issuers[url], audiences=audiences, who=who, in_url=found.token_in_url)]

    ways = way(found.oidc_issuer, found.oidc_audience, people)
    if found.oidc_issuer in issuers and found.oidc_client_id is not None:
        site = OidcSignIn(
            issuer=issuers[found.oidc_issuer],
            client_id=found.oidc_client_id,
            secret=kiln.secrets.oidc_client,
            scopes=found.oidc_scopes,
            callback_url=urljoin(found.public_url or "", f"{found.base_path}oidc_callback"),
            people=people,
        )
        ways.append(OidcSession(site, ended))
    return ways, way(found.oidc_events_issuer, found.oidc_events_audience, senders)


def _groups(configured: Config) -> frozenset[str]:
    """Return the groups in `private`."""
    words = (word.partition(":") for rule in configured.private for word in rule.use_by)
    return frozenset(name for kind, _, name in words if kind == "group")


def issuer(url: str) -> Issuer:
    """Return a client of the issuer. The cluster's own needs the pod's credential; others need none."""
    from builds.clients.oidc import Issuer, OwnCluster, is_own_cluster  # noqa: PLC0415

    ca, token = (ACCOUNT / name for name in ("ca.crt", "token"))
    own = OwnCluster(ca=ca, token=token) if is_own_cluster(url) and ca.is_file() else None
    return Issuer(url, own_cluster=own, max_waiting=Settings.max_oidc_calls)


def _builder_info(found: Settings) -> Mapping[str, str]:
    """Return the builder's version for BinderHub's `/versions`."""
    if found.builder_image:
        return {"build_image": found.builder_image}
    return {"repo2docker-version": metadata.version("jupyter-repo2docker")}


def _private(kiln: Kiln) -> Private:
    from builds.clients.git import Stored  # noqa: PLC0415

    stored = Stored(kiln.secrets.git_credentials)
    return Private(kiln.config.private, hosts=kiln.config.hosts, stored=stored.fits)


def intake(
    kiln: Kiln,
    resolver: Resolver,
    *,
    entitled: Resolver | None = None,
    private: Private | None = None,
    lookups: Lookups | None = None,
) -> Intake:
    """Return the intake; `entitled` has the stored credentials, for senders that `private` admits."""
    from builds.intake import Intake  # noqa: PLC0415

    return Intake(
        instance=kiln.settings.instance,
        policy=kiln.policy,
        hosts=kiln.config.hosts,
        accounts=kiln.config.accounts,
        event_source=kiln.settings.event_source,
        images=kiln.images,
        resolver=resolver,
        entitled=entitled,
        private=private,
        lookups=lookups,
    )


def sync(kiln: Kiln, records: Records) -> Sync:
    """Return the poller of listed repositories, with the stored credentials, because the operator has listed them."""
    from builds.clients.git import RefResolver, credentials  # noqa: PLC0415
    from builds.sync.reconciler import Sync  # noqa: PLC0415

    resolver = RefResolver(kiln.policy, lambda: credentials(kiln.secrets.git_credentials))
    return Sync(
        records=records,
        intake=intake(kiln, resolver, private=_private(kiln)),
        lister=resolver,
        triggers=kiln.config.triggers,
        max_waiting=max(1, kiln.settings.max_queued // 2),
    )


def pruner(kiln: Kiln, records: Records) -> Pruner:
    """Return the pruner, which deletes images that `keep` does not retain. One thread at a time."""
    from builds.prune import NO_RULE, Pruner  # noqa: PLC0415

    return Pruner(
        records=records,
        registry=registry(kiln, pushes=True),
        allowed=kiln.images.patterns,
        rule=kiln.config.keep or NO_RULE,
    )


def records(kiln: Kiln) -> Records:
    """Return the records for requests of builds. Raises EngineError."""
    return _local(kiln) if kiln.settings.engine == "local" else _in_cluster(kiln)


def _local(kiln: Kiln, pulse: Pulse | None = None) -> LocalEngine:
    from builds.engines.local import LocalEngine  # noqa: PLC0415

    return LocalEngine(
        kiln.settings.state_dir,
        surroundings=surroundings(kiln),
        max_queued=kiln.settings.max_queued,
        max_queued_per_user=kiln.settings.max_queued_per_user,
        pulse=pulse,
    )


def _in_cluster(kiln: Kiln) -> KubernetesRecords:
    from builds.engines.kubernetes import Circuit, KubernetesRecords  # noqa: PLC0415

    return KubernetesRecords(**_where(kiln, Circuit()))


def pod_template(found: Settings) -> Mapping[str, Any]:
    """Return the template of build pods. Raises KilnError."""
    from builds.engines.kubernetes import TemplateError, checked  # noqa: PLC0415

    if found.builder_image is None or found.pod_template is None:
        raise CommandError("KILN_BUILDER_IMAGE and KILN_POD_TEMPLATE must be set for the controller")
    try:
        return checked(config.pod_template(found.pod_template, found.pod_template_sha256))
    except TemplateError as error:
        raise CommandError(f"KILN_POD_TEMPLATE: {found.pod_template}: {error}") from None


def _daemon_address(found: Settings, environ: Mapping[str, str]) -> str | None:
    """Return the address as the daemon's own client finds it; `None` is the default of `docker`.

    https://docs.podman.io/en/v5.4.2/markdown/podman-system-service.1.html
    """
    if found.daemon == "docker":
        return found.docker_host or environ.get("DOCKER_HOST") or None
    folder = environ.get("XDG_RUNTIME_DIR") if os.geteuid() else None
    own = f"unix://{folder or '/run'}/podman/podman.sock"
    return found.docker_host or environ.get("CONTAINER_HOST") or own


def _controlling(kiln: Kiln, pulse: Pulse) -> KubernetesEngine:
    """Raises EngineError, KilnError."""
    from builds.clients.git import RefResolver  # noqa: PLC0415
    from builds.engines.kubernetes import KubernetesEngine, mounted  # noqa: PLC0415

    found, template = kiln.settings, pod_template(kiln.settings)
    return KubernetesEngine(
        **_where(kiln),
        template=template,
        image=str(found.builder_image),
        surroundings=mounted(surroundings(kiln), template, docker_host=found.docker_host),
        lease=str(found.anchor),
        refusal=intake(kiln, RefResolver(kiln.policy)).refusal,
        git_keys=_git_keys(kiln),
        identity=f"{socket.gethostname()}-{secrets.token_hex(4)}",
        pulse=pulse,
    )


def _git_keys(kiln: Kiln) -> Callable[[Build], Sequence[str]]:
    """Return the files of the Git credentials that a build's pod mounts."""
    from builds.clients.lent import lent_files  # noqa: PLC0415

    private, folder = _private(kiln), kiln.secrets.git_credentials

    def lent(build: Build) -> Sequence[str]:
        repository = canonical(build.request.clone_url, kiln.config.hosts)
        return lent_files(folder, lambda credential: private.may_lend(repository, credential))

    return lent


def _where(kiln: Kiln, circuit: Circuit | None = None) -> dict[str, Any]:
    """Return the names that web and controller share. Raises Unavailable without a cluster."""
    from builds.engines.kubernetes import Release, connect  # noqa: PLC0415

    found = kiln.settings
    return {
        "api": connect(found.namespace, circuit),
        "release": Release(name=found.instance.partition("/")[2]),
        "anchor": found.anchor,
        "max_queued": found.max_queued,
        "max_queued_per_user": found.max_queued_per_user,
    }


def surroundings(kiln: Kiln) -> Surroundings:
    """Return the environment of a builder on this machine."""
    from builds.builder.spec import Surroundings  # noqa: PLC0415
    from builds.provenance import Builder  # noqa: PLC0415

    found, credentials = kiln.settings, kiln.secrets.git_credentials
    return Surroundings(
        allowed_repositories=found.allowed_repositories,
        banned_repositories=found.banned_repositories,
        insecure_registries=kiln.config.insecure_registries,
        registry_config=kiln.registry_config,
        private_image_prefix=kiln.config.private_image_prefix,
        private_registry_config=_text(found.private_registry_config),
        daemon=kiln.settings.daemon,
        docker_host=kiln.docker_host,
        git_credentials=_text(credentials),
        private=kiln.config.private,
        timeout=found.build_timeout,
        options=kiln.config.repo2docker,
        provenance=found.provenance,
        signing_key=_text(found.signing_key),
        builder=Builder(id=_builder_id(found), image=found.builder_image),
        build_cache=found.build_cache == "registry",
    )


def _builder_id(found: Settings) -> str:
    """Return the URI of this installation in provenance statements: its public URL, or else its instance."""
    absolute = bool(urlsplit(found.event_source).scheme)
    return found.event_source if absolute else f"https://kiln.dev/builder/{found.instance}"


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


# The controller ----------------------------------------------------------------------------------------------------


def run_controller(kiln: Kiln) -> None:
    """Run until SIGTERM or SIGINT. Active builds continue, and the next controller adopts them."""
    logs.configure(kiln.settings.log_level)
    port = ops(kiln, "controller")
    vitals.end_with_any_thread()
    port.serve()
    stop = StopSignal()

    def end(*_: object) -> None:
        # On a thread: a signal handler that takes a lock may interrupt the holder of that lock.
        threading.Thread(target=stop, daemon=True).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)

    def begun(pulses: Sequence[Pulse]) -> None:
        port.pulses = pulses
        vitals.watch_over(pulses)
        port.ready()

    try:
        control(kiln, stop, begun)
    except Exception:
        log.critical("The controller failed; started again, it goes on from the records", exc_info=True)
        raise
    log.info("Stopped; builds that run go on")


class StopSignal(threading.Event):
    """Stop a controller, from any thread: set the event, and wake the waiting threads."""

    def __init__(self) -> None:
        super().__init__()
        self.wakers: list[Callable[[], None]] = []

    def __call__(self) -> None:
        self.set()
        for wake in self.wakers:
            wake()


def control(kiln: Kiln, stop: StopSignal, begun: Callable[[Sequence[Pulse]], None]) -> None:
    """Does a controller's work until `stop`, while no other process does. `begun` is given the pulses of its threads.

    Raises EngineError, KilnError.
    """
    from builds.controller import Controller  # noqa: PLC0415
    from eventing.delivery import EventSender  # noqa: PLC0415

    loop, exporter = Pulse("controller"), spans(kiln, "controller")
    sender, confirmer = EventSender(kiln.secrets.headers, exporter), _confirmer(kiln)
    try:
        with _engine(kiln, stop, loop) as (engine, leading, pulses):
            stop.wakers.append(engine.wake)
            begun((*pulses, sender.pulse))
            while not stop.is_set():
                with leading() as over, _polling(kiln, engine, over), _pruning(kiln, engine, over):
                    # A new one for each term, because another controller may have changed the state meanwhile.
                    Controller(
                        engine,
                        limits=limits(kiln.settings, ledger=kiln.config.keep is not None),
                        sinks=kiln.sinks,
                        statuses=statuses(kiln),
                        spans=exporter,
                        sender=sender,
                        confirmer=confirmer,
                        inspector=confirmer.inspect,
                        events=_events(kiln.settings),
                        pulse=loop,
                    ).run(over)
    finally:
        loop.rest()
        sender.close()


Over = Callable[[], bool]
"""Return whether this controller must stop: by a signal, or because another one leads."""


@contextmanager
def _engine(
    kiln: Kiln, stop: threading.Event, loop: Pulse
) -> Iterator[tuple[Engine, Callable[[], AbstractContextManager[Over]], Sequence[Pulse]]]:
    """The engine, what waits until this is the one controller that acts, and the pulses of all that must come round."""
    if kiln.settings.engine == "local":
        local = _local(kiln, loop)
        with closing(local):
            yield local, lambda: _the_only_one(kiln.settings.state_dir, stop, loop), (loop,)
    else:
        cluster = _controlling(kiln, loop)
        with closing(cluster):
            cluster.begin()
            yield cluster, lambda: cluster.leading(stop), cluster.pulses


def statuses(kiln: Kiln) -> Statuses | None:
    """Return the Git hosts that receive statuses, if any."""
    found, configured = kiln.settings, kiln.config
    if not configured.statuses or found.public_url is None:
        return None
    from builds.clients.git import trusted_certificates  # noqa: PLC0415
    from builds.statuses import Statuses, page_address  # noqa: PLC0415

    return Statuses(
        hosts=configured.hosts,
        rules=configured.statuses,
        logins=functools.partial(login_at, kiln),
        pages=page_address(found.public_url, found.base_path),
        ca=trusted_certificates(),
    )


def login_at(kiln: Kiln, host: str, repository: Repository) -> Login | None:
    """Return the credential in `statuses/<host>` for a repository: the token, or the line with the longest matching
    path.
    """
    from builds.clients.git import credential_for, credentials_in  # noqa: PLC0415
    from eventing.statuses import Login  # noqa: PLC0415

    secret = kiln.secrets.statuses(host)
    if secret is None:
        return None
    if "://" not in secret:
        return Login(secret=secret)
    fitting = credential_for(repository, credentials_in(secret))
    return fitting and Login(user=fitting.user, secret=fitting.password)


def limits(found: Settings, *, ledger: bool = False) -> Limits:
    from builds.builder.spec import DAEMON_NAMES  # noqa: PLC0415
    from builds.plan import Limits, Supersede  # noqa: PLC0415

    return Limits(
        builds_per_node=found.builds_per_node,
        max_attempts=found.max_attempts,
        build_timeout=timedelta(seconds=found.build_timeout),
        supersede=Supersede(found.supersede),
        pending_grace=timedelta(seconds=found.pending_grace),
        scale_up_after=timedelta(seconds=found.scale_up_after),
        delivery_period=timedelta(seconds=found.delivery_period),
        log_history=timedelta(seconds=found.log_history),
        history=timedelta(seconds=found.history),
        ledger=ledger,
        daemon=DAEMON_NAMES[found.daemon],
    )


def _confirmer(kiln: Kiln) -> RegistryConfirmer:
    from builds.clients.git import RefResolver, credentials  # noqa: PLC0415
    from builds.confirm import RegistryConfirmer  # noqa: PLC0415

    return RegistryConfirmer(
        store=store(kiln, pushes=True),
        resolver=RefResolver(kiln.policy, lambda: credentials(kiln.secrets.git_credentials)),
        hosts=kiln.config.hosts,
    )


def _events(found: Settings) -> Callable[[Build, Word, int, datetime, Cause | None], Event]:
    from builds import report  # noqa: PLC0415

    def make(build: Build, word: Word, attempt: int, now: datetime, cause: Cause | None) -> Event:
        return report.event(
            build,
            word,
            attempt,
            source=found.event_source,
            now=now,
            base=found.base_path,
            public_url=found.public_url,
            cause=cause,
        )

    return make


def _polling(kiln: Kiln, records: Records, over: Over) -> AbstractContextManager[None]:
    """Looks at the repositories that want it while this process leads."""
    if all(listed.poll is None for listed in kiln.config.repositories):
        return nullcontext()
    from builds.sync.poller import Poller  # noqa: PLC0415

    poller = Poller(sync(kiln, records).reconcile, kiln.config.repositories, leading=lambda: not over())
    return _beside("poll", poller.run)


def _pruning(kiln: Kiln, engine: Engine, over: Over) -> AbstractContextManager[None]:
    """Deletes images that `keep` does not need any more while this process leads."""
    if kiln.config.keep is None:
        return nullcontext()
    from builds.prune import Retention  # noqa: PLC0415

    retention = Retention(
        pruner(kiln, engine),
        records=engine,
        forget=engine.forget,
        history=timedelta(seconds=kiln.settings.history),
        leading=lambda: not over(),
    )
    return _beside("prune", retention.run)


@contextmanager
def _beside(name: str, run: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs on a thread of its own as long as the context lasts."""
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LAST_LOOK)  # one that waits for a host may be broken off: it is made again


@contextmanager
def _the_only_one(state_dir: Path, stop: threading.Event, pulse: Pulse) -> Iterator[Over]:
    """Waits until no other controller has this folder, or until `stop`."""
    with (state_dir / "controller.lock").open("wb") as file:
        logged = False
        while not stop.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                log.info("This is now the controller of %s", state_dir)
                break
            except BlockingIOError:
                if not logged:
                    log.info("Another controller runs in %s; this one waits for its end", state_dir)
                logged = True
                pulse.beat()
                stop.wait(0.2)
        yield stop.is_set
