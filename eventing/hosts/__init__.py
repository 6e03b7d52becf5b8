"""Git hosts: webhooks as events, pushes as facts. A host is one module here and one row in `DIALECTS`."""

from __future__ import annotations

from collections.abc import Mapping

from eventing.event import Event
from eventing.hosts.bitbucket import Bitbucket
from eventing.hosts.bitbucketserver import BitbucketServer
from eventing.hosts.dialect import Dialect, Ignored, PushFacts, RequestFacts
from eventing.hosts.forgejo import Forgejo
from eventing.hosts.gitea import Gitea
from eventing.hosts.github import GitHub
from eventing.hosts.gitlab import GitLab
from eventing.hosts.payload import facts_of

__all__ = ["DIALECTS", "Dialect", "Ignored", "PushFacts", "RequestFacts", "push_of", "pushed", "request_of", "word_of"]

DIALECTS: Mapping[str, Dialect] = {
    dialect.word: dialect for dialect in (Forgejo(), Gitea(), GitHub(), GitLab(), Bitbucket(), BitbucketServer())
}
"""By the kind of host in the route. A host that also sends another host's headers precedes that host."""
_REQUESTS = {kind: dialect for dialect in DIALECTS.values() for kind in dialect.requests}
"""Dialects by the types in `Dialect.requests`."""
USUAL = "github"
"""The dialect of a push whose host is of unknown kind."""


def word_of(headers: Mapping[str, str]) -> str | None:
    """Return the kind of host that sent these headers (lower-case names); `None` if unknown."""
    return next((word for word, dialect in DIALECTS.items() if dialect.own_header in headers), None)


def push_of(event: Event) -> PushFacts | None:
    """Return the facts of a push event, however it travelled; `None` for other events.

    Raises DecodeError if the type is a push and the data is not.
    """
    for dialect in DIALECTS.values():
        if event.type in dialect.pushes:
            return facts_of(event, dialect.facts)
    return None


def request_of(event: Event) -> RequestFacts | None:
    """Return the facts of an event about a pull or merge request, however it travelled; `None` for other events.

    Raises DecodeError if the type is one and the data is not.
    """
    dialect = _teller(event.type)
    return None if dialect is None else facts_of(event, dialect.request)


def _teller(kind: str) -> Dialect | None:
    """Return the dialect to which a type of event about a request belongs."""
    while kind and kind not in _REQUESTS:
        kind = kind.rpartition(".")[0]
    return _REQUESTS.get(kind)


def pushed(word: str | None, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
    """Return the event that a host of that kind would have sent for the push that created a ref (`Dialect.pushed`)."""
    dialect = DIALECTS.get(word or USUAL, DIALECTS[USUAL])
    return dialect.pushed(id=id, repository=repository, ref=ref, commit=commit, default_branch=default_branch)
