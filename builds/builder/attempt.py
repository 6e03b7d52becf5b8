"""One attempt, from the spec to a digest: query the registry, fetch, build, push, confirm, tag.

The registry is queried first, because an existing image needs no build. The repository's addresses are checked before
anything is cloned. Each step either succeeds or raises the classified `Failure`.
"""

from __future__ import annotations

import os
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import msgspec

from builds.build import Image, Reason, Result, State, Timings
from builds.builder import processes, tool
from builds.builder.attest import attest, labels
from builds.builder.daemons import Daemon, connect
from builds.builder.daemons.images import DaemonImages
from builds.builder.log import Log
from builds.builder.outcome import INFRASTRUCTURE, AttemptStage, Failure, refusal
from builds.builder.redact import Redactor
from builds.builder.result import message_of
from builds.builder.source import Source
from builds.builder.spec import LABEL_ATTEMPT, LABEL_BUILD, LABEL_OPTIONS, Spec
from builds.clients import docker_config
from builds.clients.docker_config import NO_LOGIN
from builds.clients.git import Git, credentials
from builds.clients.git.process import PROXIES
from builds.clients.registry import Registry, RegistryError, RegistryRefused, RegistryUnreachable
from builds.clients.store import ImageStore
from builds.clients.tagging import with_tags
from builds.errors import BuildsError, CannotBuild, RequestError, UnknownRef
from builds.faults import Fault, crash_if_armed
from builds.image import legal_tag, tag_for, tag_owner
from builds.private import Private
from builds.removal import remove
from builds.repository import Policy, canonical, is_cloned, short_name
from eventing.tracing import trace_of

UNTAG_TIMEOUT = 4.0
"""Seconds: a stopped builder has ten for everything."""


def attempted(spec: Path, log: Log, inside: str | None = None) -> Result:
    """The result in every case. On return, all processes that were started have ended, and all files are deleted.

    Temporary files are in a folder made in `inside`.
    """
    folder = Path(tempfile.mkdtemp(prefix="kiln-", dir=inside))
    attempt = None
    try:
        try:
            known = msgspec.json.decode(spec.read_bytes(), type=Spec)
            processes.limit(known.surroundings.timeout)
            if trace := trace_of({"traceparent": os.environ.get("TRACEPARENT")}):
                log.say(f"Trace {trace.id}.")
            attempt = AttemptRun(known, log, folder)
            result = attempt.run()
        except Failure as failure:
            result = _failed(failure)
        except Exception as error:  # noqa: BLE001 (any error is reported, and the attempt retried)
            log.say(traceback.format_exc())
            result = _failed(Failure(INFRASTRUCTURE, f"The builder itself failed: {type(error).__name__}."))
        processes.stop_listening()
    except processes.Cancelled:
        result = Result(state=State.CANCELLED, message="The build was stopped.")
    except processes.TimedOut:
        sentence = f"The build exceeded its time limit of {known.surroundings.timeout:.0f} s."
        result = Result(state=State.FAILED, reason=Reason.TIMEOUT, message=sentence)
    ended = time.monotonic()
    processes.end_session()
    if attempt:
        attempt.untag()
    with suppress(OSError):
        remove(folder)
    if result.message:
        log.say(result.message)
    log.close()
    return msgspec.structs.replace(
        result,
        message=message_of(log.redact(result.message or ""), log.redact(attempt.moved if attempt else "")),
        log_tail=log.tail,
        timings=attempt.progress.timings(ended) if attempt else Timings(),
        commit=attempt.spec.request.commit if attempt else None,
    )


def _failed(failure: Failure) -> Result:
    return Result(
        state=State.FAILED,
        reason=failure.reason,
        message=failure.message,
        counted=failure.counted,
        out_of_memory=failure.out_of_memory,
        unserved=failure.unserved,
    )


class AttemptRun:
    """The state of one attempt. `folder` is private and empty; its creator deletes it."""

    def __init__(self, spec: Spec, log: Log, folder: Path) -> None:
        """Raises Failure."""
        around = spec.surroundings
        self.spec, self.log, self.folder = spec, log, folder
        self.progress = tool.ToolProgress(AttemptStage.READY, time.monotonic())
        if spec.refused:
            raise Failure(Reason.REPOSITORY, spec.refused)
        with blamed():
            self._daemon = connect(around, around.registry_config, folder / "docker")
            login = (around.private_registry_config or NO_LOGIN) if spec.private else around.registry_config
            self._registry = Registry(login, around.insecure_registries, pushes=True)
            self._store: ImageStore = DaemonImages(self._daemon) if spec.request.stays else self._registry
            known = credentials(around.git_credentials)
            passwords = (one.password for one in known)
            logins = (*docker_config.secrets(around.registry_config), *docker_config.secrets(login))
            arguments = {**around.options.build_args, **spec.request.build_args}
            log.redact = Redactor((*passwords, *logins), arguments)
            policy = Policy(around.allowed_repositories, around.banned_repositories)
            private, own = Private(around.private), canonical(spec.request.clone_url)
            self._git = Git(policy, known, lent=lambda other: private.lends(own, other), folder=folder, stdin=None)
        self._started = datetime.now(UTC)
        self._committed_at: datetime | None = None
        self._tags: tuple[str, ...] = ()  # possible names of the image in the daemon
        self.tag = tag_for(spec.request.commit, spec.request.subdir, spec.request.build_args)

    @property
    def moved(self) -> str:
        """A sentence for each followed redirect."""
        return " ".join(self._git.moved)

    def run(self) -> Result:
        """Raises Failure."""
        with self._git, blamed():
            found = self._found()
            if not found:
                self._fetch()
                self._wait_for_daemon()
                self._build()
            image = Image(repository=self.spec.request.image, tag=self.tag, digest=self._digest())
            self.log.say(image.reference)
            crash_if_armed(Fault.BUILDER_PUSHED)
            # An image that another build pushed has unknown provenance, and one of this machine has no registry.
            if not found and not self.spec.request.stays:
                attest(self._registry, image, self.spec, self._started, self.log.say)
                crash_if_armed(Fault.BUILDER_ATTESTED)
            image = with_tags(self._store, image, self._wanted_tags())
            self._tell_tags(image)
            crash_if_armed(Fault.BUILDER_TAGGED)
        return Result(state=State.SUCCEEDED, image=image)

    def _found(self) -> bool:
        """Whether the registry has this build's image, built with the same options, according to its labels."""
        request = self.spec.request
        if self.spec.force:
            return False
        try:
            labels = self._store.labels(request.image, self.tag)
        except RegistryUnreachable as error:
            if not request.stays:
                raise
            self.log.say(str(error))  # it is awaited next
            return False
        except RegistryRefused as error:
            self.log.say(f"The registry does not say whether the image exists; the push will tell. {error}")
            return False
        known = labels is not None and (labels.get(LABEL_BUILD), labels.get(LABEL_OPTIONS, ""))
        if known != (self.spec.name, self.spec.surroundings.options.label):
            return False
        where = "on this machine" if request.stays else "in the registry"
        self.log.say(f"{request.image}:{self.tag} is {where}: nothing to build.")
        return True

    def _wait_for_daemon(self) -> None:
        daemon, patience = self._daemon, self.spec.daemon_patience
        deadline = time.monotonic() + patience
        logged = False
        while (trouble := daemon.trouble()) is not None:
            if time.monotonic() > deadline:
                raise Failure(INFRASTRUCTURE, f"The {daemon.idiom.daemon} does not answer: {trouble}", counted=False)
            if not logged:
                self.log.say(f"The {daemon.idiom.daemon} does not answer; waiting up to {patience:.0f} s. {trouble}")
            logged = True
            time.sleep(0.5)

    def _fetch(self) -> None:
        request = self.spec.request
        self._start_fetching()
        self._git.permit(request.clone_url)  # before the log shows the address, which may contain a secret
        self.log.say(f"Fetching {request.clone_url} at {request.commit}.")
        try:
            source = Source(self._git, self.log.say, self.spec.refs)
            source.look_through(request.clone_url, request.commit)
        except UnknownRef as error:
            raise self._unserved(error) from None
        self._committed_at = source.committed_at
        crash_if_armed(Fault.BUILDER_FETCHED)

    def _start_fetching(self) -> None:
        self.progress = tool.ToolProgress(
            *(AttemptStage.FETCH, time.monotonic()),
            registry=self.spec.request.image.partition("/")[0],
            login=self._registry.login_file,
            progress_parser=self._daemon.progress_parser(),
            idiom=self._daemon.idiom,
        )
        self.log.phase = "fetch"

    def _unserved(self, error: UnknownRef) -> Failure:
        """A host may announce a push before all of its servers have it."""
        if not self.spec.just_pushed:
            return Failure(Reason.REPOSITORY, str(error), unserved=True)
        sentence = f"The Git host does not serve the push yet. {error}"
        return Failure(INFRASTRUCTURE, sentence, counted=False, unserved=True)

    def _build(self) -> None:
        """Builds once more if reused layers, or an index that answers again, may have caused the failure.

        Earlier images must not break a build, and an outage that has just ended is not the repository's fault.
        """
        spec = self.spec
        reused = spec.cache_from if spec.cached and self._daemon.reuses else ()
        try:
            self._build_with(reused, self.folder)
        except Failure as failure:
            layers = bool(reused) and failure.reason is Reason.REPOSITORY and self.progress.unexplained
            if not layers and not failure.doubtful:
                raise
            why = "without the layers of earlier images" if layers else "because a package index may have failed"
            self.log.say(f"{failure.message} Building again {why}.")
            again = self.folder / "again"
            again.mkdir()
            self._start_fetching()
            self._build_with(() if layers else reused, again)

    def _build_with(self, reused: Sequence[str], folder: Path) -> None:
        """Builds in `folder`, which must be empty, with the layers of `reused`. Raises Failure."""
        spec = self.spec
        options = spec.surroundings.options
        image_labels = {LABEL_BUILD: spec.name, LABEL_ATTEMPT: spec.attempt_label}
        image_labels |= {LABEL_OPTIONS: options.label} if options.label else {}
        image_labels |= labels(spec, self.tag, self._committed_at)
        image = f"{spec.request.image}:{self.tag}"
        stays = spec.request.stays
        apart = not stays and (spec.private or spec.force or not self._daemon.pushes)
        built = f"kiln-{uuid.uuid4().hex}:private" if apart else image
        env = {**self._git.environment, **self._daemon.variables}
        outside = _outside(env)
        command = tool.command(
            *(spec.request, built, image_labels, folder, outside),
            engine=self._daemon.engine,
            options=options,
            refs=spec.refs,
            apart=spec.apart,
            cache_from=reused if spec.cached else None,
            push=not apart and not stays,
        )
        self._tags = () if stays else (built, image) if self._daemon.pushes else (built,)
        self._git.trouble()  # discards errors from before
        try:
            tool.build(self._daemon, command, folder=folder, env=env, progress=self.progress, log=self.log)
        except Failure:
            self._raise_refused()
            raise
        if apart:
            self._push(built, image)
        self.progress.end(time.monotonic())
        self.log.phase = None
        self.untag()

    def untag(self) -> None:
        """Removes the image's names from the daemon. A later `FROM` would use them without asking the registry."""
        if not self._tags:
            return
        with suppress(OSError):
            self._daemon.untag(*dict.fromkeys(self._tags), timeout=UNTAG_TIMEOUT)
        self._tags = ()

    def _raise_refused(self) -> None:
        """Raises the Failure for a refused connection, if the tool can have failed because of it."""
        error = self._git.trouble() if self.progress.stage in (AttemptStage.FETCH, AttemptStage.BUILD) else None
        if error and self.progress.stage is AttemptStage.FETCH:
            raise refusal(error) from None
        if error:  # not a URL of the repository, but one in repo2docker's own code
            raise Failure(INFRASTRUCTURE, f"A download that repo2docker needs for this language failed. {error}")

    def _push(self, built: str, image: str) -> None:
        """Pushes an image that was built under an unguessable name: a `FROM` uses the daemon's images without asking
        the registry. A private repository's image is pushed with a credential that the build's steps do not have.

        With `force`, an image that already exists in the registry is not pushed again, so it keeps its digest.
        """
        if self.spec.force and self._is_there(built):
            self.log.say(f"The registry has this image already as {image}: nothing to push.")
        else:
            tool.push(self._pusher(), built, image, self.progress, self.log)

    def _pusher(self) -> Daemon:
        around = self.spec.surroundings
        if not self.spec.private:
            return self._daemon
        return connect(around, around.private_registry_config or NO_LOGIN, self.folder / "private")

    def _is_there(self, built: str) -> bool:
        """Whether the registry's image differs from the new one only in the label of its attempt.

        False if the registry denies access.
        """
        with suppress(RegistryRefused):
            there = self._registry.configuration(self.spec.request.image, self.tag)
            here = self._daemon.inspected(built) if there else None
            return there is not None and here is not None and there.describes(here, but_for=LABEL_ATTEMPT)
        return False

    def _digest(self) -> str:
        try:
            manifest = self._store.manifest(self.spec.request.image, self.tag)
        except RegistryRefused as error:
            sentence = f"The image was pushed, but the credential cannot pull it. Allow it to pull as well. {error}"
            raise Failure(INFRASTRUCTURE, sentence) from None
        if manifest is None:
            if self.spec.request.stays:
                raise Failure(INFRASTRUCTURE, "The image was built, but the daemon does not have it.")
            raise Failure(INFRASTRUCTURE, "The image was pushed, but the registry does not have it.")
        return manifest.digest

    def _wanted_tags(self) -> Iterator[str]:
        """The further tags whose ref, if they have one, still points at the commit."""
        current = self._current_refs()
        for ref, name in ((tags.ref, name) for tags in self.spec.tags for name in tags.names):
            if ref is not None and ref not in current:
                self.log.say(f"The tag {name} is not set: {ref} is no longer at this commit.")
            elif ref is not None and (owner := self._owner(name, ref)) != ref:
                self.log.say(f"The tag {name} is not set: it belongs to {owner}, whose name makes the same tag.")
            elif name != self.tag:
                yield name

    def _owner(self, tag: str, ref: str) -> str:
        """The ref that owns a tag, if the tag was made of this ref's name."""
        return tag_owner(ref, self._branches_and_tags) if legal_tag(short_name(ref)) in tag else ref

    @cached_property
    def _branches_and_tags(self) -> tuple[str, ...]:
        """Empty if the repository has too many to read."""
        with suppress(CannotBuild):
            refs = self._git.all_refs(self.spec.request.clone_url)
            return tuple(name for name in refs if is_cloned(name) and not name.endswith("^{}"))
        return ()

    def _tell_tags(self, image: Image) -> None:
        for name in image.tags:
            self.log.say(f"The tag {name} is set.")
        for refused in image.refused_tags:
            self.log.say(f"The tag {refused.name} is not set: {refused.message}")

    def _current_refs(self) -> set[str]:
        """The tags' refs that point at the commit now."""
        request = self.spec.request
        refs = sorted({tags.ref for tags in self.spec.tags if tags.ref})
        if not refs:
            return set()
        self._git.permit(request.clone_url)
        found = self._git.refs(request.clone_url, *refs, *(f"{ref}^{{}}" for ref in refs))
        return {ref for ref in refs if found.get(f"{ref}^{{}}", found.get(ref)) == request.commit}


@contextmanager
def blamed() -> Iterator[None]:
    """Turns the clients' errors into classified failures."""
    try:
        yield
    except RequestError as error:
        raise refusal(error) from None
    except (RegistryError, BuildsError) as error:
        raise Failure(INFRASTRUCTURE, str(error)) from None


_GITS = ("HOME", "XDG_CONFIG", "GIT_")
"""Prefixes of git's own variables."""


def _outside(env: Mapping[str, str]) -> dict[str, str | None]:
    """The variables whose values for docker and its credential helpers differ from git's: `None` means unset.

    They reach the registry with the home and proxy of the user who runs Kiln, and not through the guard.
    """
    names = {name for name in {*env, *os.environ} if name.lower() in PROXIES or name.startswith(_GITS)}
    return {name: os.environ.get(name) for name in sorted(names)}
