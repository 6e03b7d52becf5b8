"""Which Git hosts are told of a build, and by what name: the commit statuses that its causes ask for.

A status has a name at its host, one for each trigger. So a build has as many statuses as triggers have asked for it,
and whoever asks again changes those that are there. What a person asks for makes none: what stands at a commit is said
for the host's own pushes, and for those whom the operator trusts with a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import msgspec

from builds.build import Build, Cause, is_person
from builds.errors import RepositoryError
from builds.repository import HostKind, Repository, canonical, of_host
from eventing.statuses import APIS, HostSink, Login, context_of, number_of

MAX_NAMES = 20
"""Statuses of one build; further triggers' are left out: a record keeps how each event stands at each of them."""
STATUSES, COMMENTS = "statuses", "comments"
COMMENTED = frozenset({"succeeded", "failed"})
"""The events that a pull request's comment tells of: it says what is there, not what may come."""

Logins = Callable[[str, Repository], Login | None]
"""What lets in at a host (as it is configured) for a repository there, asked at each send."""


class HostRule(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is told."""

    statuses: bool = False
    comment: bool = False

    def tells(self, kind: str) -> bool:
        return {STATUSES: self.statuses, COMMENTS: self.comment}.get(kind, False)

    @property
    def words(self) -> tuple[str, ...]:
        """As the configuration names it."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name))


class Statuses:
    """The sinks at Git hosts. `hosts` are all that are configured, `rules` those that are told something."""

    def __init__(
        self,
        *,
        hosts: Mapping[str, HostKind],
        rules: Mapping[str, HostRule],
        logins: Logins,
        pages: str,
        ca: str | None = None,
    ) -> None:
        """`pages` is the address that a build's name follows; `ca` certificates to trust as well."""
        self._hosts = hosts
        self._rules = rules
        self._logins = logins
        self._pages = pages
        self._ca = ca

    def wanted(self, build: Build, word: str, cause: Cause | None) -> tuple[str, ...]:
        """The names of the sinks that are told of an event of the build (its word), or of one that answers that cause
        alone."""
        host, _ = self._place(build)
        if host is None:
            return ()
        rule = self._rules[host]
        asked = [one for one in ((cause,) if cause else build.causes) if not is_person(one.by)]
        names = [f"{STATUSES}/{host}/{context_of(one.trigger)}" for one in asked if rule.statuses]
        comments = [
            f"{COMMENTS}/{host}/{number}/{context_of(one.trigger)}"
            for one in asked
            if rule.comment and word in COMMENTED and not one.withdrawn and (number := number_of(one.ref))
        ]
        return (*[*dict.fromkeys(names)][:MAX_NAMES], *[*dict.fromkeys(comments)][:MAX_NAMES])

    def sink(self, name: str, build: Build) -> HostSink | None:
        """The sink of that name, for a build's events; `None` where its host is not told such a thing any more."""
        host, repository = self._place(build)
        kind, _, rest = name.partition("/")
        named, _, rest = rest.partition("/")
        if host is None or repository is None or named != host or not self._rules[host].tells(kind):
            return None
        number, _, context = rest.partition("/") if kind == COMMENTS else (None, None, rest)
        return HostSink(
            name=name,
            host=host,
            api=APIS[str(repository.kind)],
            context=context,
            number=number,
            page=f"{self._pages}{build.name}",
            login=self._logins(host, repository),
            discreet=any(cause.credentials for cause in build.causes),
            ca=self._ca,
        )

    def _place(self, build: Build) -> tuple[str | None, Repository | None]:
        """The host of a build's repository, as it is configured, and the repository; `None` where it is not told."""
        try:
            repository = canonical(build.request.repository, self._hosts)
        except RepositoryError:  # of a record that other rules made
            return None, None
        host = of_host(repository, {name: name for name in self._rules})
        return (host, repository) if host else (None, None)


def page_address(public_url: str, base_path: str) -> str:
    """Where the pages of builds are, seen from outside: what a build's name follows.

    The public URL may end in the base path, or leave it to be added.
    """
    url = public_url.rstrip("/")
    if not urlsplit(url).path:
        url += base_path.rstrip("/")
    return f"{url}/builds/"
