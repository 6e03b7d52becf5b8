"""Access to stored Git credentials, and so to the builds that used one.

A stored credential reveals repositories that their host hides from strangers. The operator's rules (`private`) name its
permitted users for each repository. Without a rule only webhooks may use it, because the repository's own host has
sent them. All other requesters get the access that the host gives without a credential.

A build's log shows its sources, so the same rules decide who sees the build. A repository may have submodules: a build
uses the credential of another repository only if all users of the build may use that credential, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from builds.build import SYNC, Build
from builds.errors import Forbidden, RepositoryError, RuleError
from builds.repository import HostKind, Repository, canonical, forbids, glob_match, repository_pattern

WEBHOOKS = "webhooks"
BY_DEFAULT = frozenset({WEBHOOKS})

Words = frozenset[str]
"""The names of a requester in the form that `use_by` uses."""


class PrivateRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`match` is a pattern of repositories; `use_by` are `webhooks`, `user:…`, `group:…`, `token:…`, `service:…`."""

    match: str
    use_by: tuple[str, ...] = (WEBHOOKS,)


def words_of(by: str | None, groups: Iterable[str] = ()) -> Words:
    """The words for a requester (`Cause.by`) and their groups at the Hub. Kiln's own synchronisation counts as a
    webhook, because it replaces one."""
    if by is not None and (by == SYNC or by.startswith("webhook:")):
        return BY_DEFAULT
    return frozenset([*([by] if by else []), *(f"group:{group}" for group in groups)])


class Scope(Protocol):
    """The scope of a stored credential: repositories of one host, below a path."""

    @property
    def origin(self) -> str: ...

    def fits(self, repository: Repository) -> bool: ...


class Private:
    """The access rules. `stored` returns whether a repository has a credential; by default none has."""

    def __init__(
        self,
        rules: Sequence[PrivateRule] = (),
        *,
        hosts: Mapping[str, HostKind] | None = None,
        stored: Callable[[Repository], bool] = lambda _: False,
    ) -> None:
        """Raises RuleError."""
        self._rules = [(repository_pattern(rule.match), frozenset(map(_word, rule.use_by))) for rule in rules]
        self._hosts = hosts
        self.stored = stored

    def admit(self, repository: Repository, words: Words) -> bool:
        """Whether a requester may use the stored credentials. Without them, the build gets anonymous access.

        Raises Forbidden if a rule restricts the repository to others.
        """
        may, named = self._may(repository)
        if words & may:
            return named or self.stored(repository)
        if named:
            raise Forbidden("This repository is restricted. Ask its administrator to add you to `private`.")
        return False

    def shows(self, build: Build, words: Words, *, admin: bool) -> bool:
        """Whether a requester may see a build: its page, its log, and its existence.

        Without a rule for the repository, admins may see it. A build that used no credential is no secret.
        """
        try:
            repository = canonical(build.request.repository, self._hosts)
        except RepositoryError:  # the record was made under other rules
            return admin
        may, named = self._may(repository)
        if words & may:
            return True
        if named:
            return False
        return admin or any(not cause.credentials for cause in build.causes) or not self.stored(repository)

    def lends(self, build: Repository, other: Repository) -> bool:
        """Whether a build of one repository may use the credential of another: all its users may use that one, too."""
        return self._may(build)[0] <= self._may(other)[0]

    def names(self, repository: Repository) -> bool:
        """Whether a rule names the repository. Then its images are restricted as well, and kept apart from others."""
        return self._may(repository)[1]

    def may_lend(self, build: Repository, credential: Scope) -> bool:
        """Whether a build may use this credential for some repository that the credential fits.

        The answer is yes if unsure: only the builder knows which repositories a build fetches, and it calls `lends`.
        """
        if credential.fits(build):
            return True
        ours = self._may(build)[0]
        near = [words for pattern, words in self._rules if _on_host(pattern, credential.origin)]
        return ours <= BY_DEFAULT.union(*near)

    def _may(self, repository: Repository) -> tuple[Words, bool]:
        """The permitted users of the repository's credential, and whether a rule names them."""
        named = [words for pattern, words in self._rules if forbids(pattern, repository.url)]
        return (frozenset().union(*named) if named else BY_DEFAULT), bool(named)


def _on_host(pattern: str, origin: str) -> bool:
    """Whether a pattern of repositories could match one at that origin (`https://host:port`)."""
    scheme, _, host = origin.partition("://")
    usual = host.removesuffix({"https": ":443", "http": ":80"}.get(scheme, ""))
    named = pattern.partition("://")[2].partition("/")[0] or "**"
    return any(glob_match(named, text) for text in (host, usual))


def _word(text: str) -> str:
    """Raises RuleError."""
    if "*" in text:
        raise RuleError(f"'{text}' is not a user. use_by takes complete names, without *.")
    if text != WEBHOOKS and not re.fullmatch(r"(?:user|group|token|service|oidc):[^\s]+(?: [^\s]+)*", text):
        raise RuleError(
            f"'{text}' is not a user. use_by takes webhooks, user:<name>, group:<name>, token:<name>, "
            "service:<name> and oidc:<subject>."
        )
    return text
