"""One attempt, from the spec to a digest: look, fetch, build, push, confirm, tag.

The registry comes first, because an image that is there needs no build; what git may reach comes before anything is
cloned. Each step either goes on or raises the `Failure` that says whose fault it was.
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
"""Seconds: a builder that is told to stop has ten for everything."""


def attempted(spec: Path, log: Log, inside: str | None = None) -> Result:
    """The result, whatever became of it. When this returns, nothing that was started is left: no process, no file.

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
        except Exception as error:  # noqa: BLE001 (whatever it is, it is told, and tried again)
            log.say(traceback.format_exc())
            result = _failed(Failure(INFRASTRUCTURE, f"The builder itself failed: {type(error).__name__}."))
        processes.stop_listening()
    except processes.Cancelled:
        result = Result(state=State.CANCELLED, message="The build was told to stop.")
    except processes.TimedOut:
        sentence = f"The build took longer than the {known.surroundings.timeout:.0f} s that it may take."
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
    """Everything one attempt needs. `folder` is private and empty, and is removed by whoever made it."""

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
        self._tags: tuple[str, ...] = ()  # names that the daemon may have for the image
        self.tag = tag_for(spec.request.commit, spec.request.subdir, spec.request.build_args)

    @property
    def moved(self) -> str:
        """A sentence for each redirect that was followed."""
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
            if not found and not self.spec.request.stays:  # nobody can say what somebody else has built
                attest(self._registry, image, self.spec, self._started, self.log.say)
                crash_if_armed(Fault.BUILDER_ATTESTED)
            image = with_tags(self._store, image, self._wanted_tags())
            self._tell_tags(image)
            crash_if_armed(Fault.BUILDER_TAGGED)
        return Result(state=State.SUCCEEDED, image=image)

    def _found(self) -> bool:
        """Whether this build's image is there, built with the same options, as its labels say."""
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
            self.log.say(f"Whether the image is there cannot be known; the push will show. {error}")
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
        told = False
        while (trouble := daemon.trouble()) is not None:
            if time.monotonic() > deadline:
                raise Failure(INFRASTRUCTURE, f"The {daemon.idiom.daemon} does not answer: {trouble}", counted=False)
            if not told:
                self.log.say(f"The {daemon.idiom.daemon} does not answer; waiting up to {patience:.0f} s. {trouble}")
            told = True
            time.sleep(0.5)

    def _fetch(self) -> None:
        request = self.spec.request
        self._start_fetching()
        self._git.permit(request.clone_url)  # before the address is repeated: it may hold what it should not
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
        """A host may tell of a push before all of its servers have it."""
        if not self.spec.just_pushed:
            return Failure(Reason.REPOSITORY, str(error), unserved=True)
        sentence = f"The Git host does not serve the push yet. {error}"
        return Failure(INFRASTRUCTURE, sentence, counted=False, unserved=True)

    def _build(self) -> None:
        """Once more without the layers of earlier images where they may be what failed: no image may break a build."""
        spec = self.spec
        reused = spec.cache_from if spec.cached and self._daemon.reuses else ()
        try:
            self._build_with(reused, self.folder)
        except Failure as failure:
            if not reused or failure.reason is not Reason.REPOSITORY or not self.progress.unexplained:
                raise
            self.log.say(f"{failure.message} Building again without the layers of earlier images.")
            again = self.folder / "again"
            again.mkdir()
            self._start_fetching()
            self._build_with((), again)

    def _build_with(self, reused: Sequence[str], folder: Path) -> None:
        """Builds in `folder`, which holds nothing of another run, with the layers of `reused`. Raises Failure."""
        spec = self.spec
        options = spec.surroundings.options
        told = {LABEL_BUILD: spec.name, LABEL_ATTEMPT: spec.attempt_label}
        told |= {LABEL_OPTIONS: options.label} if options.label else {}
        told |= labels(spec, self.tag, self._committed_at)
        image = f"{spec.request.image}:{self.tag}"
        stays = spec.request.stays
        apart = not stays and (spec.private or spec.force or not self._daemon.pushes)
        built = f"kiln-{uuid.uuid4().hex}:private" if apart else image
        env = {**self._git.environment, **self._daemon.variables}
        outside = _outside(env)
        command = tool.command(
            *(spec.request, built, told, folder, outside),
            engine=self._daemon.engine,
            options=options,
            refs=spec.refs,
            apart=spec.apart,
            cache_from=reused if spec.cached else None,
            push=not apart and not stays,
        )
        self._tags = () if stays else (built, image) if self._daemon.pushes else (built,)
        self._git.trouble()  # what was told, or overcome, before
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
        """Takes the image's names from the daemon, or a `FROM` would find it there without the registry being asked."""
        if not self._tags:
            return
        with suppress(OSError):
            self._daemon.untag(*dict.fromkeys(self._tags), timeout=UNTAG_TIMEOUT)
        self._tags = ()

    def _raise_refused(self) -> None:
        """Raises the Failure that a connection which was not made stands for, if the tool can have failed by it."""
        error = self._git.trouble() if self.progress.stage in (AttemptStage.FETCH, AttemptStage.BUILD) else None
        if error and self.progress.stage is AttemptStage.FETCH:
            raise refusal(error) from None
        if error:  # no URL of the repository's, but one that repo2docker has in its code
            raise Failure(INFRASTRUCTURE, f"What repo2docker needs for this language could not be fetched. {error}")

    def _push(self, built: str, image: str) -> None:
        """Pushes what was built under a name that nobody can guess: a `FROM` takes what the daemon holds without asking
        the registry. A private repository's image goes with the credential that no build's steps have.

        Nothing is pushed by `force` where the registry has that very image: it keeps its digest.
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
        """Whether the registry's image differs from the one that was built by nothing but the attempt that it names.

        It does not count where the registry does not let us know.
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
            sentence = f"The image was pushed, but the credential must allow to pull it as well. {error}"
            raise Failure(INFRASTRUCTURE, sentence) from None
        if manifest is None:
            if self.spec.request.stays:
                raise Failure(INFRASTRUCTURE, "The image was built, but the daemon does not have it.")
            raise Failure(INFRASTRUCTURE, "The image was pushed, but the registry does not have it.")
        return manifest.digest

    def _wanted_tags(self) -> Iterator[str]:
        """Those further tags whose ref, if they have one, still points at the commit."""
        current = self._current_refs()
        for ref, name in ((tags.ref, name) for tags in self.spec.tags for name in tags.names):
            if ref is not None and ref not in current:
                self.log.say(f"The tag {name} is not set: {ref} is no longer at this commit.")
            elif ref is not None and (owner := self._owner(name, ref)) != ref:
                self.log.say(f"The tag {name} is not set: it belongs to {owner}, whose name makes the same tag.")
            elif name != self.tag:
                yield name

    def _owner(self, tag: str, ref: str) -> str:
        """The ref that a tag belongs to, if its name was made of this ref's."""
        return tag_owner(ref, self._branches_and_tags) if legal_tag(short_name(ref)) in tag else ref

    @cached_property
    def _branches_and_tags(self) -> tuple[str, ...]:
        """None where there are too many to read."""
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
        """Those of the tags' refs that point at the commit now."""
        request = self.spec.request
        refs = sorted({tags.ref for tags in self.spec.tags if tags.ref})
        if not refs:
            return set()
        self._git.permit(request.clone_url)
        found = self._git.refs(request.clone_url, *refs, *(f"{ref}^{{}}" for ref in refs))
        return {ref for ref in refs if found.get(f"{ref}^{{}}", found.get(ref)) == request.commit}


@contextmanager
def blamed() -> Iterator[None]:
    """Turns the clients' errors into the failures that they stand for."""
    try:
        yield
    except RequestError as error:
        raise refusal(error) from None
    except (RegistryError, BuildsError) as error:
        raise Failure(INFRASTRUCTURE, str(error)) from None


_GITS = ("HOME", "XDG_CONFIG", "GIT_")
"""How the variables begin that git has of its own."""


def _outside(env: Mapping[str, str]) -> dict[str, str | None]:
    """What docker and its credential helpers have otherwise than git: `None` is not set.

    They reach the registry as the person who runs Kiln does, with their home and proxy, and not through the guard.
    """
    names = {name for name in {*env, *os.environ} if name.lower() in PROXIES or name.startswith(_GITS)}
    return {name: os.environ.get(name) for name in sorted(names)}
