"""Puts the parts together: from what was configured to the application of web and the loop of the controller.

The only place that knows all of them. Each function imports what it builds when it builds it, so web never pays for the
HTTP client of the controller, nor the controller for Flask, and both listen before either is imported.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from builds.errors import RuleError
from builds.image import ImagePolicy
from builds.repository import Policy
from eventing.delivery import sinks_from_environment
from eventing.errors import SinkError
from eventing.hosts import DIALECTS
from eventing.sinks import Sink
from kiln import config, logs, settings
from kiln.config import Config
from kiln.errors import CommandError, KilnError
from kiln.ops import Ops
from kiln.secrets import Secrets
from kiln.settings import Process, Settings

if TYPE_CHECKING:
    from flask import Flask

    from builds.build import Build, Cause
    from builds.builder.spec import Surroundings
    from builds.confirm import Confirmer
    from builds.engines.local import LocalEngine
    from builds.intake import Intake, Resolver
    from builds.plan import Limits, Word
    from eventing.event import Event

log = logging.getLogger(__name__)

T = TypeVar("T")


class Kiln(msgspec.Struct, frozen=True, kw_only=True):
    """One installation, as it was configured and found to be in order. `sinks` are those of the file and `k-sink`."""

    settings: Settings
    config: Config
    secrets: Secrets
    policy: Policy
    images: ImagePolicy
    sinks: tuple[Sink, ...]
    docker_host: str | None
    registry_config: str | None


def load(environ: Mapping[str, str]) -> Kiln:
    """Reads the environment, then file and secrets. Raises KilnError with all that is wrong in it, or else in them."""
    found = settings.read(environ)
    problems: list[str] = []
    configured = _or_note(problems, lambda: config.read(found.config)) or Config()
    injected = _or_note(problems, lambda: sinks_from_environment(found.sink_binding)) or []
    policy = _or_note(problems, lambda: Policy(found.allowed_repositories, found.banned_repositories))
    images = _or_note(problems, lambda: ImagePolicy(found.image_prefix, configured.allowed_images))
    secrets = Secrets(found.secrets_dir)
    sinks = (*injected, *configured.sinks)
    names = [sink.name for sink in sinks]
    if names.count("k-sink") > 1:
        problems.append("sinks: k-sink is the name of the one that K_SINK injects")
    _or_note(problems, lambda: secrets.check(words=DIALECTS, sinks=names))
    if found.registry_config is not None and not found.registry_config.is_file():
        problems.append(f"KILN_REGISTRY_CONFIG: {found.registry_config} is not a file")
    if problems or policy is None or images is None:
        raise KilnError(problems)
    return Kiln(
        settings=found,
        config=configured,
        secrets=secrets,
        policy=policy,
        images=images,
        sinks=sinks,
        docker_host=found.docker_host or environ.get("DOCKER_HOST") or None,
        registry_config=_registry_config(found, environ),
    )


def _or_note(problems: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except KilnError as error:
        problems += error.problems
    except (RuleError, SinkError) as error:
        problems.append(str(error))
    return None


def _registry_config(found: Settings, environ: Mapping[str, str]) -> str | None:
    """The docker configuration that was named, or else the one that `docker login` writes, where it is."""
    if found.registry_config is not None:
        return str(found.registry_config)
    usual = Path(environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()) / "config.json"
    return str(usual.absolute()) if usual.is_file() else None


def ops(kiln: Kiln, process: Process) -> Ops:
    """The ops port, listening. Raises CommandError."""
    host, port = kiln.settings.host, kiln.settings.ops_port_of(process)
    try:
        return Ops(host, port)
    except OSError as error:
        raise CommandError(f"KILN_OPS_PORT: {host} port {port} cannot be had: {error.strerror}") from None


# Web ---------------------------------------------------------------------------------------------------------------


def app(kiln: Kiln, stopping: threading.Event) -> Flask:
    """The WSGI application; its streams end when `stopping` is set. Raises EngineError without records."""
    from builds.clients.git import Resolver  # noqa: PLC0415
    from builds.clients.images import LIMIT, Images  # noqa: PLC0415
    from builds.clients.registry import Registry  # noqa: PLC0415
    from handlers.app import Services, create_app  # noqa: PLC0415
    from handlers.auth import gate  # noqa: PLC0415

    found = kiln.settings
    registry = functools.partial(Registry, kiln.registry_config, kiln.config.insecure_registries, (LIMIT, LIMIT))
    images = Images(registry)
    gate_for = functools.partial(gate, tokens=kiln.secrets.api_tokens)
    return create_app(
        Services(
            records=engine(kiln),
            # Without stored credentials: those serve verified webhooks, which bring their commit.
            intake=intake(kiln, Resolver(kiln.policy)),
            triggers=kiln.config.triggers,
            webhook_secrets=kiln.secrets.webhooks,
            tokens=kiln.secrets.api_tokens,
            auth=gate_for(found.auth, pages=True),
            events_auth=gate_for(found.events_auth),
            find_image=images.digest,
            registry_answers=lambda: images.answers(kiln.images.prefix),
            builder_info=_builder_info(found),
            version=metadata.version("kiln-images"),
            loopback_only=found.loopback_only,
            base_path=found.base_path,
            public_url=found.public_url,
            max_body=found.max_body,
            max_viewers=found.max_viewers,
            stopping=stopping,
        )
    )


def _builder_info(found: Settings) -> Mapping[str, str]:
    """What builds, as BinderHub's `/versions` says it."""
    if found.builder_image:
        return {"build_image": found.builder_image}
    return {"repo2docker-version": metadata.version("jupyter-repo2docker")}


def intake(kiln: Kiln, resolver: Resolver) -> Intake:
    """The way in."""
    from builds.intake import Intake  # noqa: PLC0415

    return Intake(
        instance=kiln.settings.instance,
        policy=kiln.policy,
        hosts=kiln.config.hosts,
        images=kiln.images,
        resolver=resolver,
    )


def engine(kiln: Kiln) -> LocalEngine:
    """Raises EngineError."""
    from builds.engines.local import LocalEngine  # noqa: PLC0415

    return LocalEngine(
        kiln.settings.state_dir,
        surroundings=surroundings(kiln),
        max_queued=kiln.settings.max_queued,
        max_queued_per_user=kiln.settings.max_queued_per_user,
    )


def surroundings(kiln: Kiln) -> Surroundings:
    from builds.builder.spec import Surroundings  # noqa: PLC0415

    found, credentials = kiln.settings, kiln.secrets.git_credentials
    return Surroundings(
        allowed_repositories=found.allowed_repositories,
        banned_repositories=found.banned_repositories,
        insecure_registries=kiln.config.insecure_registries,
        registry_config=kiln.registry_config,
        docker_host=kiln.docker_host,
        git_credentials=None if credentials is None else str(credentials),
        timeout=found.build_timeout,
    )


# The controller ----------------------------------------------------------------------------------------------------


def run_controller(kiln: Kiln) -> None:
    """Runs until SIGTERM or SIGINT. Builds that run then go on, and the next controller adopts them."""
    logs.configure(kiln.settings.log_level)
    port = ops(kiln, "controller")
    port.serve()
    stop = threading.Event()
    wakers = [stop.set]

    def end(*_: object) -> None:
        # On a thread: a signal handler that takes a lock may be interrupting the one who holds it.
        threading.Thread(target=lambda: [wake() for wake in wakers], daemon=True).start()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)

    from builds.controller import Controller  # noqa: PLC0415
    from eventing.delivery import Courier  # noqa: PLC0415

    records = engine(kiln)
    wakers.append(records.wake)
    courier = Courier(kiln.secrets.headers)
    controller = Controller(
        records,
        limits=limits(kiln.settings),
        sinks=kiln.sinks,
        courier=courier,
        confirmer=_confirmer(kiln),
        events=_events(kiln.settings),
    )
    port.waiting_for = None
    try:
        with _the_only_one(kiln.settings.state_dir, stop):
            controller.run(stop)
    except Exception:
        log.critical("The controller failed; started again, it goes on from the records", exc_info=True)
        raise
    finally:
        courier.close()
        records.close()
    log.info("Stopped; builds that run go on")


def limits(found: Settings) -> Limits:
    from builds.plan import Limits, Supersede  # noqa: PLC0415

    return Limits(
        builds_per_node=found.builds_per_node,
        max_attempts=found.max_attempts,
        build_timeout=timedelta(seconds=found.build_timeout),
        supersede=Supersede(found.supersede),
        pending_grace=timedelta(seconds=found.pending_grace),
        delivery_period=timedelta(seconds=found.delivery_period),
        log_history=timedelta(seconds=found.log_history),
        history=timedelta(seconds=found.history),
    )


def _confirmer(kiln: Kiln) -> Confirmer:
    from builds.clients.git import Resolver, credentials  # noqa: PLC0415
    from builds.clients.registry import Registry  # noqa: PLC0415
    from builds.confirm import Confirmer  # noqa: PLC0415

    return Confirmer(
        registry=lambda: Registry(kiln.registry_config, kiln.config.insecure_registries),
        resolver=Resolver(kiln.policy, lambda: credentials(kiln.secrets.git_credentials)),
        hosts=kiln.config.hosts,
    )


def _events(found: Settings) -> Callable[[Build, Word, int, datetime, Cause | None], Event]:
    from builds import report  # noqa: PLC0415

    def make(build: Build, word: Word, attempt: int, now: datetime, cause: Cause | None) -> Event:
        return report.event(build, word, attempt, source=found.event_source, now=now, base=found.base_path, cause=cause)

    return make


@contextmanager
def _the_only_one(state_dir: Path, stop: threading.Event) -> Iterator[None]:
    """Waits until no other controller has this folder, or until `stop`."""
    with (state_dir / "controller.lock").open("wb") as file:
        told = False
        while not stop.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                log.info("This is now the controller of %s", state_dir)
                break
            except BlockingIOError:
                if not told:
                    log.warning("Another controller runs in %s; this one waits for its end", state_dir)
                told = True
                stop.wait(0.2)
        yield
