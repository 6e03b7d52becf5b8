"""Git hosts: their webhooks as events, their pushes as facts. A host is one module here and one row in `DIALECTS`."""

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
"""By the word in the route. A host that sends another's headers as well stands before that one."""
_REQUESTS = {kind: dialect for dialect in DIALECTS.values() for kind in dialect.requests}
"""Who tells of requests, by `Dialect.requests`."""
USUAL = "github"
"""The dialect in which a push is told of where the host's own is not known here."""


def word_of(headers: Mapping[str, str]) -> str | None:
    """Whose delivery has these headers, by lower-case name; `None` where they are no known host's."""
    return next((word for word, dialect in DIALECTS.items() if dialect.own_header in headers), None)


def push_of(event: Event) -> PushFacts | None:
    """What the push says that this event is, however it travelled; `None` where it is no push.

    Raises DecodeError where its type says push and its data does not.
    """
    for dialect in DIALECTS.values():
        if event.type in dialect.pushes:
            return facts_of(event, dialect.facts)
    return None


def request_of(event: Event) -> RequestFacts | None:
    """What an event about a pull or merge request says of it, however it travelled; `None` for all other events.

    Raises DecodeError where its type says so and its data does not.
    """
    dialect = _teller(event.type)
    return None if dialect is None else facts_of(event, dialect.request)


def _teller(kind: str) -> Dialect | None:
    """Whose event about a request has this type."""
    while kind and kind not in _REQUESTS:
        kind = kind.rpartition(".")[0]
    return _REQUESTS.get(kind)


def pushed(word: str | None, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
    """The event that a host of that kind would have sent of the push that made a ref (`Dialect.pushed`)."""
    dialect = DIALECTS.get(word or USUAL, DIALECTS[USUAL])
    return dialect.pushed(id=id, repository=repository, ref=ref, commit=commit, default_branch=default_branch)
