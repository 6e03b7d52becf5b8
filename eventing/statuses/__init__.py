"""Commit statuses at Git hosts, as sinks: what an event is to a host, said through the host's own API.

A host is one module here and one row in `APIS`. Nothing here does I/O: a sink talks in requests and answers
(`eventing.statuses.exchange`), which `eventing.transport` carries. What is said is made of the event alone, which the
record keeps, so a status that is sent after a restart is the one that was decided on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from eventing.event import Event
from eventing.statuses.bitbucket import Bitbucket
from eventing.statuses.bitbucketserver import BitbucketServer
from eventing.statuses.comments import Thread, commented, number_of
from eventing.statuses.exchange import Answer, Conversation, Login, Request, redirected, refused
from eventing.statuses.gitea import Gitea
from eventing.statuses.github import GitHub
from eventing.statuses.gitlab import GitLab
from eventing.statuses.words import Said, build_of, context_of, said, section

__all__ = ["APIS", "Answer", "HostSink", "Login", "Request", "StatusApi", "context_of", "number_of", "redirected"]


class StatusApi(Protocol):
    """How one kind of host takes statuses."""

    word: str
    """As the route of its webhooks."""
    longest: int
    """Characters of a description."""

    def headers(self, login: Login) -> dict[str, str]:
        """What goes with each request."""

    def base(self, repository: str) -> str:
        """Where the API tells of a repository (its canonical URL). Raises ValueError where that is none of its."""

    def thread(self, repository: str, number: str) -> Thread:
        """The comments of a pull request. Raises ValueError as `base`."""

    def status(self, repository: str, host: str, said: Said) -> Conversation:
        """Sets one. `host` is as it is configured, for sentences."""


APIS: Mapping[str, StatusApi] = {
    api.word: api for api in (GitHub(), GitLab(), Gitea("gitea"), Gitea("forgejo"), Bitbucket(), BitbucketServer())
}


class HostSink(msgspec.Struct, frozen=True, kw_only=True):
    """One context of one host: `name` is `statuses/<host>/<context>`, or `comments/<host>/<number>/<context>` for the
    comment of a pull request. `host` is as in the configuration.

    `page` is the address of the build's page. `discreet`: nothing of what the build has said is told, because it had
    stored credentials, and what they let it read is not for all who see the commit.
    """

    name: str
    host: str
    api: StatusApi
    context: str
    page: str
    number: str | None = None
    login: Login | None
    discreet: bool
    ca: str | None = None
    """Certificates (PEM) to trust in addition to the system's."""

    @property
    def lane(self) -> str:
        """All that goes to a host goes through one lane: its limits are for all of it."""
        return f"statuses/{self.host}"

    @property
    def headers(self) -> Mapping[str, str]:
        return {} if self.login is None else self.api.headers(self.login)

    def talk(self, event: Event) -> Conversation:
        """Tells the host of an event."""
        repository = build_of(event).repository
        if self.login is None:
            return refused(f"there is no credential for this repository in statuses/{self.host}")
        try:
            self.api.base(repository)
        except ValueError:
            return refused("its API has no place for a repository with this address")
        if self.number is not None:
            return (yield from self._comment(event, repository, self.number))
        told = said(event, context=self.context, url=self.page, longest=self.api.longest, discreet=self.discreet)
        return (yield from self.api.status(repository, self.host, told))

    def _comment(self, event: Event, repository: str, number: str) -> Conversation:
        told = section(event, context=self.context, url=self.page, discreet=self.discreet)
        thread, commit = self.api.thread(repository, number), build_of(event).commit
        return (yield from commented(thread, context=self.context, section=told, commit=commit, host=self.host))
