"""Who may use a stored Git credential, and so who may see what was built with one.

A credential shows what its host shows to nobody else. It is used for those whom the operator has named for a
repository (`private`), and where nobody is named for webhooks alone: the repository's own host has sent them. Whoever
else asks for a repository that has a credential is let in as far as its host lets them in without.

What a build has fetched is in its log, so the same words say who sees it. And it may hold submodules: a build uses no
credential of a repository that is not for everybody who may have the build.
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
"""Who somebody is, as `use_by` says it."""


class PrivateRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`match` is a pattern of repositories; `use_by` are `webhooks`, `user:…`, `group:…`, `token:…`, `service:…`."""

    match: str
    use_by: tuple[str, ...] = (WEBHOOKS,)


def words_of(by: str | None, groups: Iterable[str] = ()) -> Words:
    """Of an asker (`Cause.by`) and the groups that a Hub says they are in. What Kiln asks of itself is for the same
    push that a webhook would have told of."""
    if by is not None and (by == SYNC or by.startswith("webhook:")):
        return BY_DEFAULT
    return frozenset([*([by] if by else []), *(f"group:{group}" for group in groups)])


class Scope(Protocol):
    """What a stored credential is for: repositories of one host, below a path."""

    @property
    def origin(self) -> str: ...

    def fits(self, repository: Repository) -> bool: ...


class Private:
    """The rules. `stored` says whether there is a credential for a repository; without it there is none."""

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
        """Whether they have it built with the stored credentials; if not, as one whom nobody knows.

        Raises Forbidden for a repository that is for others.
        """
        may, named = self._may(repository)
        if words & may:
            return named or self.stored(repository)
        if named:
            raise Forbidden("This repository is not for everybody, and you are not among those whom `private` names.")
        return False

    def shows(self, build: Build, words: Words, *, admin: bool) -> bool:
        """Whether they may see a build: its page, its log, and that there is one.

        Where nobody is named, an admin may. And what somebody got without a credential is no secret.
        """
        try:
            repository = canonical(build.request.repository, self._hosts)
        except RepositoryError:  # of a record that other rules made
            return admin
        may, named = self._may(repository)
        if words & may:
            return True
        if named:
            return False
        return admin or any(not cause.credentials for cause in build.causes) or not self.stored(repository)

    def lends(self, build: Repository, other: Repository) -> bool:
        """Whether a build of one repository may use the credential of another: all who may have it may have that."""
        return self._may(build)[0] <= self._may(other)[0]

    def names(self, repository: Repository) -> bool:
        """Whether a rule names it. Then its images are for the same people, and lie apart from all others."""
        return self._may(repository)[1]

    def may_lend(self, build: Repository, credential: Scope) -> bool:
        """Whether there could be a repository that a credential fits and whose credential a build may use.

        Says yes where it cannot tell: only the builder knows which repositories a build fetches, and it asks `lends`.
        """
        if credential.fits(build):
            return True
        ours = self._may(build)[0]
        near = [words for pattern, words in self._rules if _on_host(pattern, credential.origin)]
        return ours <= BY_DEFAULT.union(*near)

    def _may(self, repository: Repository) -> tuple[Words, bool]:
        """Who may use its credential, and whether anybody has said so."""
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
        raise RuleError(f"'{text}' is nobody: use_by takes whole names, without *.")
    if text != WEBHOOKS and not re.fullmatch(r"(?:user|group|token|service|oidc):[^\s]+(?: [^\s]+)*", text):
        raise RuleError(
            f"'{text}' is nobody: use_by takes webhooks, user:<name>, group:<name>, token:<name>, "
            "service:<name> and oidc:<subject>."
        )
    return text
