"""W3C Trace Context in attributes of events, in headers and in environments.

https://www.w3.org/TR/trace-context/, and for events
https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/distributed-tracing.md
"""

from __future__ import annotations

import re
from typing import Protocol

import msgspec

from eventing.wire import is_traceparent

MAX_STATE = 512
"""Characters of a tracestate that Kiln propagates (§3.3.1.5)."""
MAX_MEMBERS = 32

_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")


class Trace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Both values are as received, and valid."""

    traceparent: str
    tracestate: str | None = None

    @property
    def id(self) -> str:
        """The trace id: 32 hexadecimal digits."""
        return self.traceparent.split("-")[1]

    @property
    def carried(self) -> dict[str, str]:
        """Return the attributes of an event, or headers of a request."""
        state = {"tracestate": self.tracestate} if self.tracestate else {}
        return {"traceparent": self.traceparent, **state}

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of a process (https://opentelemetry.io/docs/specs/otel/context/env-carriers/)."""
        return {name.upper(): value for name, value in self.carried.items()}


class Carrier(Protocol):
    """A mapping of event attributes or request headers."""

    def get(self, key: str, /) -> object: ...


def trace_of(carrier: Carrier) -> Trace | None:
    """Read `traceparent` and `tracestate`; return `None` without a valid trace."""
    parent = carrier.get("traceparent")
    if not is_traceparent(parent):
        return None
    return Trace(traceparent=parent, tracestate=_valid_state(carrier.get("tracestate")))


def _valid_state(state: object) -> str | None:
    """Return the propagated part: whole members from the left. An invalid tracestate becomes empty."""
    if not isinstance(state, str):
        return None
    members = [member for part in state.split(",") if (member := part.strip(" \t"))]
    if len(members) > MAX_MEMBERS or not all(map(_MEMBER.fullmatch, members)):
        return None
    while len(",".join(members)) > MAX_STATE:
        members.pop()
    return ",".join(members) or None
