"""Validate a requested build and derive its name.

Webhooks, CloudEvents, the API and the command line all use this module, so they share one policy and name the same
build. All checks that need no network run before the first network access.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Protocol

import msgspec
from msgspec.structs import replace

from builds.arguments import checked_arguments
from builds.build import Build, Cause, Kind, Request, build_name
from builds.engines import Submission
from builds.errors import Forbidden, Malformed, RequestError, about
from builds.image import ImagePolicy, is_reserved, legal_tag, slug_for, tag_for
from builds.private import Private, words_of
from builds.repository import (
    COMMITS,
    HostKind,
    Policy,
    Repository,
    canonical,
    checked_ref,
    commit_id,
    is_abbreviated,
    is_commit,
    of_host,
    of_kind,
    short_name,
    subdirectory,
)
from builds.triggers import REQUESTED, RequestedBuild, Template, plain
from eventing.event import Event
from eventing.hosts import PushFacts, RequestFacts, push_of, request_of
from eventing.tracing import Trace

MAX_TAGS = 20
MAX_VALUE = 4096
"""Bytes, as JSON, of an event's source, id and type, which the record stores."""


class Resolved(Protocol):
    """The target of a ref: its full name (`None` for a detached HEAD), and the commit."""

    @property
    def ref(self) -> str | None: ...

    @property
    def commit(self) -> str: ...


class Resolver(Protocol):
    """Looks up refs at a Git host."""

    def resolve(self, repository: Repository, ref: str | None) -> Resolved:
        """Looks up a full ref, a branch, a tag (a branch wins), an abbreviated commit, or `None` for HEAD; peels tags.

        Raises builds.errors.UnknownRef, CannotBuild, Unreachable, RepositoryRefused.
        """

    def commit(self, repository: Repository, digits: str) -> str:
        """The full id of the commit that begins with these digits. Raises as `resolve`."""

    def changed(self, repository: Repository, number: int) -> Sequence[str] | None:
        """The paths that a pull request changes; `None` if its host does not list them. Raises as `resolve`."""


class Lookups(Protocol):
    """Limits how many threads wait for Git hosts at the same time."""

    def place(self, by: str | None) -> AbstractContextManager[None]:
        """Reserves a place for a requester while the host is queried. Raises builds.errors.TryAgain without one."""


class _Unlimited:
    def place(self, by: str | None) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    subdir: str
    build_args: Mapping[str, str]
    image: str
    tags: tuple[str, ...]


class Intake:
    """`instance` is `KILN_INSTANCE`. `hosts` are the configured Git hosts, by `host` or `host:port`; `accounts` are
    Kiln's own account names there. `event_source` is the source of Kiln's own events.

    `resolver` has no credentials. `entitled` (default: the same) uses the stored credentials, for requesters who may
    use them. `lookups` limits how many threads wait for Git hosts at the same time.
    """

    def __init__(
        self,
        *,
        instance: str,
        policy: Policy,
        hosts: Mapping[str, HostKind],
        images: ImagePolicy,
        resolver: Resolver,
        entitled: Resolver | None = None,
        private: Private | None = None,
        lookups: Lookups | None = None,
        accounts: Mapping[str, str] | None = None,
        event_source: str | None = None,
    ) -> None:
        self._accounts = accounts or {}
        self._event_source = event_source
        self._instance = instance
        self._policy = policy
        self._hosts = hosts
        self._images = images
        self._resolver = resolver
        self._entitled = entitled or resolver
        self._private = private or Private()
        self._lookups = lookups or _Unlimited()

    def with_resolver(self, resolver: Resolver) -> Intake:
        """Return an intake with the same policy that resolves refs with `resolver` for all requesters."""
        other = copy.copy(self)
        other._resolver = other._entitled = resolver
        other._lookups = _Unlimited()
        return other

    def repository(self, url: str) -> Repository:
        """The repository by its canonical URL, even if the policy refuses it. Raises RepositoryError."""
        return canonical(url, self._hosts)

    def check_same_host_kind(self, word: str, event: Event, found: Sequence[RequestedBuild]) -> None:
        """Checks that the repositories which an event and its requested builds name are on hosts of the route's kind.

        Raises Forbidden for a repository on a host of another kind, RepositoryError.
        """
        facts = push_of(event) or request_of(event)
        for url in {*(each.repository for each in found), *([facts.repository] if facts else [])}:
            if not of_kind(self.repository(url), word):
                raise Forbidden(f"The repository is not on a known {word} host. Configure its host under `hosts:`.")

    def is_own(self, event: Event) -> bool:
        """Whether Kiln's own account made this push, or Kiln itself sent the event, in any format. Such events request
        nothing, because a build must not cause another.

        Raises eventing.errors.DecodeError, RepositoryError.
        """
        if event.source == self._event_source and event.type != REQUESTED:
            return True
        push = push_of(event) if self._accounts else None
        if push is None or push.pusher is None:
            return False
        account = of_host(self.repository(push.repository), self._accounts)
        return account is not None and account.casefold() == push.pusher.casefold()

    def default_branch(self, push: PushFacts, by: str | None, groups: Iterable[str] = ()) -> str | None:
        """The short name of the default branch. Queries the host if the push does not contain it.

        `by` and `groups` as in `submission`. Raises any RequestError of `builds.errors`.
        """
        if push.default_branch is not None:
            return push.default_branch
        repository = self.repository(push.repository)
        self._policy.check(repository)
        credentials = self._private.admit(repository, words_of(by, groups))
        with self._lookups.place(by):
            ref = (self._entitled if credentials else self._resolver).resolve(repository, None).ref
        return None if ref is None else short_name(ref)

    def changed(self, request: RequestFacts, by: str | None, groups: Iterable[str] = ()) -> Sequence[str] | None:
        """The paths that a pull request changes; `None` if they cannot be found out now. For a fork, no credential is
        used.

        `by` and `groups` as in `submission`. Raises Forbidden, RepositoryError.
        """
        repository = self.repository(request.repository)
        self._policy.check(repository)
        credentials = not request.fork and self._private.admit(repository, words_of(by, groups))
        try:
            with self._lookups.place(by):
                return (self._entitled if credentials else self._resolver).changed(repository, request.number)
        except RequestError:
            return None

    def submission(
        self,
        wanted: RequestedBuild,
        *,
        source: str,
        id: str,  # noqa: A002  (CloudEvents' word)
        type: str,  # noqa: A002
        by: str | None,
        groups: Iterable[str] = (),
        chooses: bool = False,
        kind: Kind,
        now: datetime,
        trace: Trace | None = None,
        hops_left: int | None = None,
    ) -> Submission:
        """The value for `Records.accept`. `groups` are the requester's; the other arguments belong to the event, as in
        `builds.build.Cause`.

        A requester who neither `chooses` nor comes by a trigger may decide which commit to build, but not how. Image,
        tags and build arguments are refused, and `force` is ignored.

        Raises any RequestError of `builds.errors`. Looks up the ref only if the event names no commit, or if the
        requester still has to prove access at the host.
        """
        if max(map(_bytes, (source, id, type))) > MAX_VALUE:
            raise Malformed(f"The event's source, id or type is longer than {MAX_VALUE} bytes. Send shorter ones.")
        chooses = chooses or wanted.trigger is not None
        if not chooses:
            _check_given(wanted)
        with about("repository"):
            repository = self.repository(wanted.repository)
            self._policy.check(repository)
            credentials = False if wanted.foreign else self._private.admit(repository, words_of(by, groups))
            if wanted.foreign:
                self._check_foreign(repository)
        ref, commit = self._where(repository, wanted, by, credentials=credentials)
        options = self._options(wanted, repository, ref, commit)
        request = Request(
            repository=repository.url,
            clone_url=repository.clone_url,
            commit=commit,
            image=options.image,
            subdir=options.subdir,
            build_args=options.build_args,
        )
        cause = Cause(
            source=source,
            id=id,
            type=type,
            by=by,
            at=now,
            kind=kind,
            trigger=wanted.trigger,
            ref=ref,
            tags=options.tags,
            push=wanted.push,
            head=wanted.head,
            foreign=wanted.foreign,
            default=wanted.default or (ref is not None and wanted.ref in (None, "HEAD")),
            force=wanted.force and chooses,
            trace=trace,
            hops_left=hops_left,
            credentials=credentials,
        )
        return Submission(name=build_name(self._instance, request), request=request, cause=cause)

    def _check_foreign(self, repository: Repository) -> None:
        """Raises Forbidden for a fork of a repository that `private` names."""
        if self._private.names(repository):
            raise Forbidden("Forks may not build this repository: `private` restricts it to named users.")

    def again(self, build: Build, *, chooses: bool) -> list[RequestedBuild]:
        """The requested builds that repeat a build: the same image of the same commit.

        Each ref of its causes gives one `RequestedBuild`, because a tag belongs to its ref. Tags are omitted for
        requesters who may not choose them; the image is the same without. Raises RepositoryError.
        """
        request = build.request
        image = None if request.image == self._images.own(self.repository(request.clone_url)) else request.image
        wanted = RequestedBuild(
            repository=request.clone_url,
            commit=request.commit,
            subdir=plain(request.subdir),
            build_args={name: plain(value) for name, value in request.build_args.items()},
            image=None if image is None else plain(image),
            force=True,
        )
        tags: dict[tuple[str | None, str | None, bool, bool], dict[str, None]] = {}
        for cause in build.causes:
            about = (cause.ref, cause.head, cause.foreign, cause.default)
            tags.setdefault(about, {}).update(dict.fromkeys(cause.tags if chooses else ()))
        return [
            replace(wanted, ref=ref, head=head, foreign=foreign, default=default, tags=tuple(map(plain, names)))
            for (ref, head, foreign, default), names in tags.items()
        ] or [wanted]

    def refusal(self, build: Build) -> str | None:
        """Why a stored record must not be built, as a sentence; `None` if it may be.

        A client with write access to records could have changed it. Its name is a hash of the original request, which
        such a client cannot forge.
        """
        request = build.request
        try:
            repository = self.repository(request.clone_url)
            self._policy.check(repository)
            commit_id(request.commit)
            subdirectory(request.subdir)
            checked_arguments(request.build_args)
            self._images.check(request.image, repository)
        except RequestError as error:
            return str(error)
        if (build.name, request.repository) != (build_name(self._instance, request), repository.url):
            return "The record's name does not match its request. The record was changed; it is not built."
        return None

    def _where(
        self, repository: Repository, wanted: RequestedBuild, by: str | None, *, credentials: bool
    ) -> tuple[str | None, str]:
        with about("ref"):
            ref = None if wanted.ref is None else checked_ref(wanted.ref)
        with about("commit"):
            commit = None if wanted.commit is None else _commit_digits(wanted.commit)
        if ref is not None and is_commit(ref):
            if commit is not None and not commit_id(ref).startswith(commit):
                raise Malformed("The ref and the commit are two different commits. Give one of them.")
            commit, ref = commit_id(ref), None
        known = commit if ref is None or ref.startswith("refs/") else None
        if known and is_commit(known) and (credentials or not self._private.stored(repository)):
            return ref, known
        # Check everything else before using the network, with stand-ins for the values that only the look-up can give.
        self._options(wanted, repository, "refs/heads/main", "0" * 40)
        resolver = self._entitled if credentials else self._resolver
        with about("repository" if ref is None and commit is None else "ref"), self._lookups.place(by):
            if commit is not None and not is_commit(commit):
                commit = resolver.commit(repository, commit)
                if known:
                    return ref, commit
            found = resolver.resolve(repository, None if known or ref == "HEAD" else ref)
        return (ref, known) if known else (found.ref, commit or found.commit)

    def _options(self, wanted: RequestedBuild, repository: Repository, ref: str | None, commit: str) -> _Options:
        values = {
            "repository": repository.url,
            "commit": commit,
            "slug": slug_for(repository),
        }
        if ref is not None:
            values |= {"ref": ref, "ref_name": short_name(ref)}

        def text(template: Template) -> str:
            return template.fill(values.get).text()

        with about("subdir"):
            subdir = subdirectory(text(wanted.subdir))
        with about("build_args"):
            build_args = checked_arguments({name: text(value) for name, value in wanted.build_args.items()})
        images = self._images
        with about("image"):
            image = images.own(repository) if wanted.image is None else images.check(text(wanted.image), repository)
        with about("tags"):
            tags = checked_tags(
                [text(tag) for tag in wanted.tags],
                own=tag_for(commit, subdir, build_args),
                templated=wanted.trigger is not None,
            )
        return _Options(subdir=subdir, build_args=build_args, image=image, tags=tags)


def merge(asks: Sequence[Submission]) -> list[Submission]:
    """Merges the submissions of one event for one request: the first, with the tags of all."""
    merged: dict[tuple[str, str, str], Submission] = {}
    for ask in asks:
        key = (ask.name, ask.cause.source, ask.cause.id)
        first = merged.setdefault(key, ask).cause
        cause = msgspec.structs.replace(
            first,
            tags=tuple(dict.fromkeys((*first.tags, *ask.cause.tags))),
            force=first.force or ask.cause.force,
        )
        merged[key] = msgspec.structs.replace(merged[key], cause=cause)
    return list(merged.values())


def _commit_digits(text: str) -> str:
    """A full or abbreviated commit in lower case. Raises Malformed."""
    if is_abbreviated(text):
        return text.lower()
    try:
        return commit_id(text)
    except Malformed:
        raise Malformed(f"Not a commit. {COMMITS}") from None


def _bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) - len('""')


def _check_given(wanted: RequestedBuild) -> None:
    """Checks that a person who is not an admin does not choose how to build. Raises Forbidden."""
    given = {"image": wanted.image, "tags": wanted.tags, "build_args": wanted.build_args}
    if named := [name for name, value in given.items() if value]:
        raise Forbidden(
            f"Not permitted: {' and '.join(named)}. You may give repository, ref, commit and subdir; the rest is for "
            "admins, API tokens and services of the Hub."
        )


def checked_tags(tags: Sequence[str], *, own: str, templated: bool) -> tuple[str, ...]:
    """The tags in legal form, without the image's own tag.

    A template that inserts a ref named like a commit produces a reserved tag, which gets a `_` in front. Raises
    Malformed.
    """
    if len(tags) > MAX_TAGS:
        raise Malformed(f"Too many tags. Give at most {MAX_TAGS}.")
    legal = tuple(dict.fromkeys(tag for tag in map(legal_tag, tags) if tag != own))
    if templated:
        legal = tuple(f"_{tag}" if is_reserved(tag) else tag for tag in legal)
    if any(map(is_reserved, legal)):
        raise Malformed("A tag in the form of a commit is reserved for that commit's image. Choose another tag.")
    return legal
