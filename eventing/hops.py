"""How many brokers an event may still pass, so that events that follow from one another end somewhere.

Knative counts in the extension `knativebrokerttl`: its brokers begin with 255, take one away each time and drop an
event that has none left (knative/eventing, pkg/broker/ttl.go). Its own broker takes the count off before it posts the
event, and puts it onto a reply again; others leave it. Kiln answers with no event, so what it sends later has to go on
with the count by itself.

What another Kiln may take for a reason to build (a CDEvent) has a count of Kiln's own beside it, which no broker takes
off: two Kilns that build on each other's events end, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from eventing.event import Event, Scalar

EXTENSION = "knativebrokerttl"
MOST = 255
OWN = "kilnttl"
MOST_OWN = 8
"""Builds that may follow from one another, each asked for by the CDEvents of the one before."""


def hops_left(event: Event) -> int | None:
    """0 … `MOST`, by the lesser count; `None` where the event does not say, or not with a number."""
    counts = (_count(event.extensions.get("knativebrokerttl")), _count(event.extensions.get("kilnttl")))
    return min((each for each in counts if each is not None), default=None)


def _count(said: object) -> int | None:
    if isinstance(said, bool) or not re.fullmatch(r"-?[0-9]{1,10}", str(said), re.ASCII):
        return None
    return min(max(int(str(said)), 0), MOST)


def is_spent(event: Event) -> bool:
    """Whether nothing more may follow from it."""
    return hops_left(event) == 0


def counted(extensions: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The extensions of a CDEvent, from those of Kiln's own event that it stands for."""
    left = _count(extensions.get(EXTENSION))
    return {**extensions, OWN: MOST_OWN if left is None else min(left, MOST_OWN)}


def next_hop(left: Iterable[int | None]) -> int | None:
    """For what follows from events that have so many left: one less than the least; `None` where none of them says."""
    known = [each for each in left if each is not None]
    return max(min(known) - 1, 0) if known else None
