"""Git hosts: their webhooks as events, their pushes as facts. A host is one module here and one row in `DIALECTS`."""

from __future__ import annotations

from collections.abc import Mapping

from eventing.event import Event
from eventing.hosts.dialect import Dialect, Ignored, PushFacts
from eventing.hosts.github import GitHub

__all__ = ["DIALECTS", "Dialect", "Ignored", "PushFacts", "push_of", "pushed"]

DIALECTS: Mapping[str, Dialect] = {dialect.word: dialect for dialect in (GitHub(),)}
"""By the word in the route."""
USUAL = "github"
"""The dialect in which a push is told of where the host's own is not known here."""


def push_of(event: Event) -> PushFacts | None:
    """What the push says that this event is, however it travelled; `None` where it is no push.

    Raises DecodeError where its type says push and its data does not.
    """
    for dialect in DIALECTS.values():
        if event.type in dialect.pushes:
            return dialect.facts(event)
    return None


def pushed(word: str | None, *, id: str, repository: str, ref: str, commit: str, default_branch: str | None) -> Event:  # noqa: A002
    """The event that a host of that kind would have sent of the push that made a ref (`Dialect.pushed`)."""
    dialect = DIALECTS.get(word or USUAL, DIALECTS[USUAL])
    return dialect.pushed(id=id, repository=repository, ref=ref, commit=commit, default_branch=default_branch)
