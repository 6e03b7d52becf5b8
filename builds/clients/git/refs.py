"""Resolves a ref of a repository to a commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from builds.clients.changed import changed_paths
from builds.clients.commits import whole_commit
from builds.clients.git.credentials import Credential, credential_for
from builds.clients.git.process import Git
from builds.clients.githubapi import GitHubClient
from builds.clients.hostapi import HostApi, UnclearError
from builds.errors import CannotBuild, Malformed, UnknownRef, Unreachable
from builds.repository import COMMITS, Policy, Refs, Repository, checked_ref, full_names, is_abbreviated, is_commit

RESOLVE_TIMEOUT = 8.0
"""Seconds for the whole of a resolution, including all requests to a host: GitHub gives a webhook 10."""

LIST_TIMEOUT = 30.0
"""Seconds to list all refs of a repository, which may be many; no client waits for the list."""

LOOKUPS_PER_HOST = 4
"""Concurrent look-ups of one host by a `RefResolver`."""


class ResolvedRef(NamedTuple):
    """A commit, and the full name of its ref; `None` if the caller named the commit itself."""

    ref: str | None
    commit: str


class RefResolver:
    """Resolves refs to commits. Safe to use from many threads. Limits the concurrent requests to one host.

    For a repository on GitHub with a credential, its API is asked first.
    """

    def __init__(self, policy: Policy, credentials: Callable[[], Sequence[Credential]] = tuple) -> None:
        self._policy = policy
        self._credentials = credentials
        self._api = HostApi()
        self._github = GitHubClient(self._api)
        # Hosts that share a slot occasionally wait for each other. One slot per host would grow with the hosts that
        # strangers name.
        self._slots = [threading.BoundedSemaphore(LOOKUPS_PER_HOST) for _ in range(64)]

    def resolve(self, repository: Repository, ref: str | None) -> ResolvedRef:
        """`ref` is a full ref, one of its short names (`full_names`), a commit id, or `None` for HEAD.

        Raises UnknownRef, CannotBuild, RepositoryRefused, Unreachable, after at most `RESOLVE_TIMEOUT` seconds.
        """
        if ref and is_commit(ref):
            return ResolvedRef(None, ref.lower())
        with self._asking(repository, RESOLVE_TIMEOUT) as (git, deadline):
            try:
                return self._from_api(repository, ref, deadline) or look_up(git, repository.clone_url, ref, deadline)
            except UnknownRef as error:
                if ref is None or not is_abbreviated(ref):
                    raise
                return ResolvedRef(None, self._whole(repository, ref, deadline, f"{error} "))

    def commit(self, repository: Repository, digits: str) -> str:
        """The commit that begins with these digits (`is_abbreviated`). Raises as `resolve`."""
        with self._asking(repository, RESOLVE_TIMEOUT) as (_, deadline):
            return self._whole(repository, digits, deadline)

    def _whole(self, repository: Repository, digits: str, deadline: float, said: str = "") -> str:
        """The commit that begins with these digits. `said` is the beginning of the error message. Raises UnknownRef."""
        credential = credential_for(repository, self._credentials())
        token = credential.password if credential else None
        try:
            found = whole_commit(self._api, repository, digits.lower(), token, deadline)
        except UnclearError:
            raise UnknownRef(f"{said}{repository.host} does not say which commit {digits} is. {COMMITS}") from None
        if found is None:
            raise UnknownRef(f"{said}It has no commit, or more than one, that begins with {digits}. {COMMITS}")
        return found

    def _from_api(self, repository: Repository, ref: str | None, deadline: float) -> ResolvedRef | None:
        """The answer of GitHub's API; `None` without a credential or a clear answer."""
        credential = credential_for(repository, self._credentials())
        if credential is None:
            return None
        if ref is None or ref == "HEAD":
            ref = self._github.default_branch(repository, credential.password, deadline)
        found = ref and self._github.commit(repository, full_names(ref), credential.password, deadline)
        return ResolvedRef(_branch(found[0]), found[1]) if found else None

    def changed(self, repository: Repository, number: int) -> Sequence[str] | None:
        """The paths that a pull request changes; `None` if the host's API does not list them. Raises RepositoryRefused,
        Unreachable."""
        credential = credential_for(repository, self._credentials())
        token = credential.password if credential else None
        with self._asking(repository, RESOLVE_TIMEOUT) as (_, deadline):
            try:
                return changed_paths(self._api, repository, number, token, deadline)
            except UnclearError:
                return None

    def refs(self, repository: Repository) -> Refs:
        """All branches and tags. Raises CannotBuild, RepositoryRefused, Unreachable, after at most `LIST_TIMEOUT`
        seconds."""
        with self._asking(repository, LIST_TIMEOUT) as (git, deadline):
            found = git.all_refs(repository.clone_url, deadline)
        names = [name for name in found if name.startswith("refs/") and not name.endswith("^{}")]
        commits = {name: found.get(f"{name}^{{}}", found[name]) for name in names}
        default = found.get("HEAD:")
        return Refs(commits=commits, default=default if default in commits else None)

    @contextmanager
    def _asking(self, repository: Repository, seconds: float) -> Iterator[tuple[Git, float]]:
        """Waits for a slot of the host. Yields a git that may access this repository, and its deadline."""
        deadline = time.monotonic() + seconds
        slot = self._slots[hash(repository.host) % len(self._slots)]
        if not slot.acquire(timeout=seconds):
            raise Unreachable(f"Too much is being asked of {repository.host} at the moment.")
        try:
            with Git(self._policy, self._credentials()) as git:
                git.permit(repository.clone_url)
                yield git, deadline
        finally:
            slot.release()


def look_up(git: Git, url: str, ref: str | None, deadline: float | None = None) -> ResolvedRef:
    """The commit of a ref of a permitted repository. Raises UnknownRef and what `Git.run` raises."""
    if ref is None or ref == "HEAD":
        found = git.refs(url, "HEAD", deadline=deadline)
        if "HEAD" not in found:
            raise UnknownRef("The repository has no default branch: it may be empty.")
        return ResolvedRef(_branch(found.get("HEAD:")), found["HEAD"])
    names = full_names(ref)
    found = git.refs(url, *names, *(f"{name}^{{}}" for name in names), deadline=deadline)
    for name in names:
        if name in found:
            return ResolvedRef(name, found.get(f"{name}^{{}}", found[name]))
    raise UnknownRef(f"The repository has no branch or tag '{ref}'.")


def _branch(name: str | None) -> str | None:
    """The branch that a host reports as its HEAD, checked because git accepts any name. `None` if it is not valid
    UTF-8.

    Raises CannotBuild.
    """
    if name and any("\ud800" <= character <= "\udfff" for character in name):
        return None
    try:
        if name is None or checked_ref(name).startswith("refs/"):
            return name
    except Malformed:
        pass
    raise CannotBuild("The repository's default branch has a name that no branch can have.")
