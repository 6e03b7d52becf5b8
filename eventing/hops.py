"""Count how many brokers an event may still pass, so that chains of events end.

Knative counts in the extension `knativebrokerttl`. Its brokers start with 255, decrement the count and drop an event
without any left (knative/eventing, pkg/broker/ttl.go). The broker removes the count before it posts the event and
restores it on a reply; others keep it. Kiln does not reply with events, so it must carry the count to the events that
it sends later.

A CDEvent of Kiln, which can trigger a build in another Kiln, carries a second count that no broker removes. Two Kilns
that build on each other's events therefore stop, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from eventing.event import Event, Scalar

EXTENSION = "knativebrokerttl"
MOST = 255
OWN = "kilnttl"
MOST_OWN = 8
"""Builds that may follow from one another, each triggered by the CDEvents of its predecessor."""


def hops_left(event: Event) -> int | None:
    """Return 0 … `MOST`, the lesser of the counts; `None` if the event has no count, or not a number."""
    counts = (_count(event.extensions.get("knativebrokerttl")), _count(event.extensions.get("kilnttl")))
    return min((each for each in counts if each is not None), default=None)


def _count(said: object) -> int | None:
    if isinstance(said, bool) or not re.fullmatch(r"-?[0-9]{1,10}", str(said), re.ASCII):
        return None
    return min(max(int(str(said)), 0), MOST)


def is_spent(event: Event) -> bool:
    """Return whether no further event may follow."""
    return hops_left(event) == 0


def counted(extensions: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the extensions of a CDEvent, derived from those of the corresponding event of Kiln."""
    left = _count(extensions.get(EXTENSION))
    return {**extensions, OWN: MOST_OWN if left is None else min(left, MOST_OWN)}


def next_hop(left: Iterable[int | None]) -> int | None:
    """Return the count for events that follow: one less than the least; `None` if no event has a count."""
    known = [each for each in left if each is not None]
    return max(min(known) - 1, 0) if known else None
