"""The builder's input from an engine: one JSON file, the same for a pod and for a local process."""

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
"""Labels of an image: the build's name, `<uid>.<number>` of the attempt that pushed it, and `Options.label`."""

DaemonKind = Literal["docker", "podman"]
"""The kind of the building daemon."""
DAEMON_NAMES: Mapping[DaemonKind, str] = {"docker": "Docker daemon", "podman": "Podman service"}
"""Names of the kinds in sentences."""

DAEMON_TIMEOUT = timedelta(seconds=30)
"""How long to wait for a daemon that does not answer: it may be restarting."""
NEW_NODE_DAEMON_TIMEOUT = timedelta(minutes=10)
"""How long to wait for the daemon of a node that the attempt itself has brought: its image may still have to be
pulled."""
MAX_EVENTS = 10
"""Events in a provenance statement: the first ones."""
REPLICATION = timedelta(minutes=5)
"""How long after a push a missing commit is retried: the host's replicas may lag."""


class Tags(msgspec.Struct, frozen=True, kw_only=True):
    """Further tags. They are set only while `ref` (if any) still points at the commit."""

    ref: str | None
    names: tuple[str, ...]


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of an installation for all its builds. Paths are the builder's, not the engine's."""

    allowed_repositories: tuple[str, ...] = ()
    banned_repositories: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    registry_config: str | None = None
    """A docker `config.json`."""
    private_image_prefix: str | None = None
    """Images under this prefix are accessed with the next credential alone, which the build's steps do not have."""
    private_registry_config: str | None = None
    daemon: DaemonKind = "docker"
    docker_host: str | None = None
    """Its address, as in DOCKER_HOST; `None` is the machine's default."""
    git_credentials: str | None = None
    """A file in git's store format, or a folder of them."""
    private: tuple[PrivateRule, ...] = ()
    """The access rules for these credentials."""
    timeout: float = 3600.0
    """Seconds for the complete attempt."""
    options: Options = Options()
    provenance: bool = True
    """Whether a provenance statement is attached to the image."""
    signing_key: str | None = None
    """The file of a private key in PEM form, which signs the statement."""
    builder: Builder = Builder(id="https://kiln.dev/builder/local")
    build_cache: bool = True
    """Whether images contain BuildKit's cache metadata, and builds reuse the layers of such images."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt. `attempt_label` is `<uid>.<number>`, the value of the image's label `dev.kiln.attempt`."""

    name: str
    attempt: int
    attempt_label: str
    request: Request
    tags: tuple[Tags, ...] = ()
    refs: tuple[str, ...] = ()
    """Refs that lead to the commit and that no clone contains, such as those of pull requests. Some hosts serve a
    commit only by such a ref."""
    apart: str | None = None
    """For a pull request from a fork (`Build.apart`): its builds share cache mounts with no others."""
    events: tuple[CausingEvent, ...] = ()
    """The events that requested the build and are still unanswered."""
    force: bool = False
    cache_from: tuple[str, ...] = ()
    """References by digest of earlier images of the repository, whose layers the build may reuse."""
    just_pushed: bool = False
    """Whether a push named the commit less than `REPLICATION` ago."""
    daemon_patience: float = DAEMON_TIMEOUT.total_seconds()
    """Seconds to wait for a daemon that does not answer."""
    surroundings: Surroundings = Surroundings()
    refused: str | None = None
    """Why the attempt is refused, as a sentence."""

    @property
    def private(self) -> bool:
        """Whether its image belongs to a private repository."""
        prefix = self.surroundings.private_image_prefix
        return prefix is not None and self.request.image.startswith(prefix)

    @property
    def cached(self) -> bool:
        """Whether other daemons may reuse its layers, through the registry.

        A private repository's layers are excluded, because BuildKit would read them with the credential that also
        serves each `FROM`. So are the layers of an image that is not pushed.
        """
        return self.surroundings.build_cache and not self.private and not self.request.stays


def attempt_label(build: Build, attempt: Attempt) -> str:
    """The label of an attempt. It is unique, even if the record is deleted and created again."""
    return f"{build.uid}.{attempt.number}"


def spec_for(build: Build, attempt: Attempt, surroundings: Surroundings, refused: str | None = None) -> Spec:
    """The spec of an attempt: a pure function of the record, so that a second leader writes the same.

    It contains stored Git credentials only if a waiting requester may use them (`builds.private`). Otherwise any
    requester could build a private repository.
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
