"""Commit statuses at Git hosts, as sinks: an event becomes calls of the host's own API.

A host is one module here and one row in `APIS`. Nothing here does I/O: a sink converses in requests and answers
(`eventing.statuses.exchange`), which `eventing.transport` carries. A status depends on the event alone, which the
record keeps. A status that is sent after a restart is therefore the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from eventing.event import Event
from eventing.statuses.bitbucket import BitbucketStatusApi
from eventing.statuses.bitbucketserver import BitbucketServerStatusApi
from eventing.statuses.comments import Thread, commented, number_of
from eventing.statuses.exchange import Conversation, HostRequest, HostResponse, Login, redirected, refused
from eventing.statuses.gitea import GiteaStatusApi
from eventing.statuses.github import GitHubStatusApi
from eventing.statuses.gitlab import GitLabStatusApi
from eventing.statuses.words import Said, build_of, context_of, said, section

__all__ = [
    "APIS",
    "HostRequest",
    "HostResponse",
    "HostSink",
    "Login",
    "StatusApi",
    "context_of",
    "number_of",
    "redirected",
]


class StatusApi(Protocol):
    """The status API of one kind of host."""

    word: str
    """The kind of host, as in the route of its webhooks."""
    longest: int
    """Maximum characters of a description."""

    def headers(self, login: Login) -> dict[str, str]:
        """Return the headers of each request."""

    def base(self, repository: str) -> str:
        """Return the API's URL of a repository (its canonical URL). Raises ValueError if the host cannot have it."""

    def thread(self, repository: str, number: str) -> Thread:
        """The comments of a pull request. Raises ValueError as `base`."""

    def status(self, repository: str, host: str, said: Said) -> Conversation:
        """Set a status. `host` is the configured name, for messages."""


APIS: Mapping[str, StatusApi] = {
    api.word: api
    for api in (
        GitHubStatusApi(),
        GitLabStatusApi(),
        GiteaStatusApi("gitea"),
        GiteaStatusApi("forgejo"),
        BitbucketStatusApi(),
        BitbucketServerStatusApi(),
    )
}


class HostSink(msgspec.Struct, frozen=True, kw_only=True):
    """One context of one host: `name` is `statuses/<host>/<context>`, or `comments/<host>/<number>/<context>` for the
    comment of a pull request. `host` is as configured.

    `page` is the URL of the build's page. `discreet` hides the messages of the build: it had stored credentials, and
    some readers of the commit must not see the data that they give access to.
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
    """Additional trusted certificates (PEM)."""

    @property
    def lane(self) -> str:
        """All requests to a host share one lane, because the host's limits apply to all of them."""
        return f"statuses/{self.host}"

    @property
    def headers(self) -> Mapping[str, str]:
        return {} if self.login is None else self.api.headers(self.login)

    def talk(self, event: Event) -> Conversation:
        """Report an event to the host."""
        repository = build_of(event).repository
        if self.login is None:
            return refused(f"no credential for this repository in statuses/{self.host}")
        try:
            self.api.base(repository)
        except ValueError:
            return refused("its API has no place for a repository with this address")
        if self.number is not None:
            return (yield from self._comment(event, repository, self.number))
        status = said(event, context=self.context, url=self.page, longest=self.api.longest, discreet=self.discreet)
        return (yield from self.api.status(repository, self.host, status))

    def _comment(self, event: Event, repository: str, number: str) -> Conversation:
        text = section(event, context=self.context, url=self.page, discreet=self.discreet)
        thread, commit = self.api.thread(repository, number), build_of(event).commit
        return (yield from commented(thread, context=self.context, section=text, commit=commit, host=self.host))
