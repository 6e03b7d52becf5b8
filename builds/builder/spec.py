"""What an engine hands to the builder: one JSON file, the same for a pod and for a local process."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Literal

import msgspec

from builds.build import Attempt, Build, Request
from builds.options import Options
from builds.private import PrivateRule
from builds.provenance import Builder, CausingEvent
from builds.repository import is_cloned

LABEL_BUILD = "dev.kiln.build"
LABEL_ATTEMPT = "dev.kiln.attempt"
LABEL_OPTIONS = "dev.kiln.options"
"""Of an image: the build's name, `<uid>.<number>` of the attempt that pushed it, and `Options.label`."""

DaemonKind = Literal["docker", "podman"]
"""Of the daemon that builds."""
DAEMON_NAMES: Mapping[DaemonKind, str] = {"docker": "Docker daemon", "podman": "Podman service"}
"""As they are called in sentences."""

DAEMON_TIMEOUT = timedelta(seconds=30)
"""With a daemon that does not answer: it may be restarting."""
NEW_NODE_DAEMON_TIMEOUT = timedelta(minutes=10)
"""With that of a node which the attempt itself has brought: its image may still have to be pulled."""
MAX_EVENTS = 10
"""Events that are named in a provenance statement: those that came first."""
REPLICATION = timedelta(minutes=5)
"""For so long after a push, a host that does not serve the commit is asked again: its replicas may lag."""


class Tags(msgspec.Struct, frozen=True, kw_only=True):
    """Further tags, set only while `ref` (if there is one) still points at the commit."""

    ref: str | None
    names: tuple[str, ...]


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for every build of an installation. Paths are the builder's, not the engine's."""

    allowed_repositories: tuple[str, ...] = ()
    banned_repositories: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    registry_config: str | None = None
    """A docker `config.json`."""
    private_image_prefix: str | None = None
    """Images under it are pushed and looked at with the next one alone, and no build's steps have that."""
    private_registry_config: str | None = None
    daemon: DaemonKind = "docker"
    docker_host: str | None = None
    """Its address, as in DOCKER_HOST; `None` is the machine's own."""
    git_credentials: str | None = None
    """A file in git's store format, or a folder of them."""
    private: tuple[PrivateRule, ...] = ()
    """Who may use which of them."""
    timeout: float = 3600.0
    """Seconds that the whole attempt may take."""
    options: Options = Options()
    provenance: bool = True
    """Whether a statement of what was built from what is attached to the image."""
    signing_key: str | None = None
    """A private key in PEM form, by which the statement is signed."""
    builder: Builder = Builder(id="https://kiln.dev/builder/local")
    build_cache: bool = True
    """Whether images carry BuildKit's cache metadata, and builds reuse the layers of those that do."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. `attempt_label` is `<uid>.<number>`, as the image's label `dev.kiln.attempt` has it."""

    name: str
    attempt: int
    attempt_label: str
    request: Request
    tags: tuple[Tags, ...] = ()
    refs: tuple[str, ...] = ()
    """Refs that have led to the commit and that no clone has, as those of pull requests. A host that gives no commit by
    itself gives it by one of them."""
    apart: str | None = None
    """Of a pull request from a fork (`Build.apart`): the steps of its builds share cache mounts with nothing else."""
    events: tuple[CausingEvent, ...] = ()
    """Those that asked for the build and have had no answer yet."""
    force: bool = False
    cache_from: tuple[str, ...] = ()
    """References by digest of earlier images of the repository, whose layers the build may reuse."""
    just_pushed: bool = False
    """Whether a push named the commit less than `REPLICATION` ago."""
    daemon_patience: float = DAEMON_TIMEOUT.total_seconds()
    """Seconds to wait for a daemon that does not answer."""
    surroundings: Surroundings = Surroundings()
    refused: str | None = None
    """Why nothing of it may be done, in a sentence."""

    @property
    def private(self) -> bool:
        """Whether its image is one of a private repository."""
        prefix = self.surroundings.private_image_prefix
        return prefix is not None and self.request.image.startswith(prefix)

    @property
    def cached(self) -> bool:
        """Whether its layers are for other daemons to reuse, by way of the registry.

        Not a private repository's: BuildKit would read them with the credential that also serves each `FROM`. Nor those
        of an image that is pushed nowhere.
        """
        return self.surroundings.build_cache and not self.private and not self.request.stays


def attempt_label(build: Build, attempt: Attempt) -> str:
    """No other attempt ever has it, whatever becomes of the record."""
    return f"{build.uid}.{attempt.number}"


def spec_for(build: Build, attempt: Attempt, surroundings: Surroundings, refused: str | None = None) -> Spec:
    """The spec of an attempt: a pure function of the record, so that a second leader writes the same.

    Stored Git credentials go along only if somebody who may use them (`builds.private`) is among those who ask. Anybody
    else could name a private repository that they may not see.
    """
    if refused or not any(cause.credentials for cause in build.unanswered):
        surroundings = msgspec.structs.replace(surroundings, git_credentials=None)
    tags: dict[str | None, dict[str, None]] = {}
    for cause in build.causes:
        if cause.tags:
            tags.setdefault(cause.tagged_by, {}).update(dict.fromkeys(cause.tags))
    return Spec(
        name=build.name,
        attempt=attempt.number,
        attempt_label=attempt_label(build, attempt),
        request=build.request,
        tags=tuple(Tags(ref=ref, names=tuple(names)) for ref, names in tags.items()),
        refs=tuple(sorted({cause.ref for cause in build.causes if cause.ref and not is_cloned(cause.ref)})),
        apart=build.apart(build.unanswered),
        events=tuple(
            CausingEvent(source=cause.source, id=cause.id, type=cause.type, ref=cause.ref)
            for cause in build.unanswered[:MAX_EVENTS]
        ),
        force=any(cause.force for cause in build.unanswered),
        cache_from=tuple(f"{build.request.image}@{digest}" for digest in attempt.cache_from),
        just_pushed=any(cause.push and attempt.written_at - cause.at < REPLICATION for cause in build.unanswered),
        daemon_patience=_daemon_patience(attempt, surroundings.timeout),
        surroundings=surroundings,
        refused=refused,
    )


def _daemon_patience(attempt: Attempt, timeout: float) -> float:
    """Leaves half of the attempt's time for the build itself."""
    patience = DAEMON_TIMEOUT if attempt.node else NEW_NODE_DAEMON_TIMEOUT
    return min(patience.total_seconds(), timeout / 2)
