"""Commit statuses: the Git hosts that receive the events of a build, and the statuses' names.

A status has a name at its host, one for each trigger. So a build has one status for each trigger that requested it, and
a repeated request updates the existing ones. A person's request makes no status: statuses describe the host's own
pushes, and the requests of clients that the operator trusts with a token.
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
"""Statuses of one build. Further triggers get none, because the record stores each event's delivery to each status."""
STATUSES, COMMENTS = "statuses", "comments"
COMMENTED = frozenset({"succeeded", "failed"})
"""The events that update a pull request's comment, which describes finished results only."""

Logins = Callable[[str, Repository], Login | None]
"""Finds the login for a repository at a host (in the configured spelling); called at each delivery."""


class HostRule(msgspec.Struct, frozen=True, kw_only=True):
    """The information that a host receives."""

    statuses: bool = False
    comment: bool = False

    def tells(self, kind: str) -> bool:
        return {STATUSES: self.statuses, COMMENTS: self.comment}.get(kind, False)

    @property
    def words(self) -> tuple[str, ...]:
        """The enabled options by their names in the configuration."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name))


class Statuses:
    """The sinks at Git hosts. `hosts` are all configured hosts, `rules` those of hosts that receive something."""

    def __init__(
        self,
        *,
        hosts: Mapping[str, HostKind],
        rules: Mapping[str, HostRule],
        logins: Logins,
        pages: str,
        ca: str | None = None,
    ) -> None:
        """A build's name is appended to `pages`; `ca` are additional certificates to trust."""
        self._hosts = hosts
        self._rules = rules
        self._logins = logins
        self._pages = pages
        self._ca = ca

    def wanted(self, build: Build, word: str, cause: Cause | None) -> tuple[str, ...]:
        """The names of the sinks for an event of the build (its word). With `cause`, the event answers that cause
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
        """The sink of that name for a build's events; `None` if its host no longer receives such events."""
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
        """The configured host of a build's repository, and the repository; `None` if the host receives nothing."""
        try:
            repository = canonical(build.request.repository, self._hosts)
        except RepositoryError:  # the record was made under other rules
            return None, None
        host = of_host(repository, {name: name for name in self._rules})
        return (host, repository) if host else (None, None)


def page_address(public_url: str, base_path: str) -> str:
    """The external address of the builds' pages, to which a build's name is appended.

    The public URL may end in the base path, or omit it.
    """
    url = public_url.rstrip("/")
    if not urlsplit(url).path:
        url += base_path.rstrip("/")
    return f"{url}/builds/"
