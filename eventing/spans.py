"""Spans: what took how long, as parts of a trace, for whoever collects them. What sends them is `kiln.otel`.

Where nobody collects them there is none of this: everything that could tell of a span is given `None` in place of
`Spans`, and looks for that once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from eventing.tracing import Trace

Kind = Literal["server", "client", "internal"]
Attributes = Mapping[str, str | int]


class Span(Protocol):
    """One that has begun."""

    @property
    def trace(self) -> Trace:
        """Itself, for what is a part of it."""

    def end(self, attributes: Attributes, *, error: str | None = None, at: datetime | None = None) -> None:
        """Now, unless `at` says when. `error` is why it failed."""


class Spans(Protocol):
    """Safe to call from any thread; waits for nothing."""

    def begin(self, name: str, parent: Trace | None, *, kind: Kind = "internal", at: datetime | None = None) -> Span:
        """A span of the trace of `parent`, or of a new one; from now on, unless `at` says since when."""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A span that is over, with its parts."""

    name: str
    start: datetime
    end: datetime
    attributes: Attributes = {}
    error: str | None = None
    parts: Sequence[Stage] = ()


def tell(spans: Spans, stage: Stage, parent: Trace | None) -> None:
    """Tells of a stage and of all its parts."""
    span = spans.begin(stage.name, parent, at=stage.start)
    for part in stage.parts:
        tell(spans, part, span.trace)
    span.end(stage.attributes, error=stage.error, at=stage.end)
