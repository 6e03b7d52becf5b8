"""Spans: durations as parts of a trace. `kiln.otel` exports them.

Without a collector, functions receive `None` in place of `Spans` and check for it once.
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
    """A span that has begun."""

    @property
    def trace(self) -> Trace:
        """The trace context of the span, for its children."""

    def end(self, attributes: Attributes, *, error: str | None = None, at: datetime | None = None) -> None:
        """End the span now, or at `at`. `error` is the reason of a failure."""


class Spans(Protocol):
    """A tracer. Safe to call from any thread; never blocks."""

    def begin(self, name: str, parent: Trace | None, *, kind: Kind = "internal", at: datetime | None = None) -> Span:
        """Begin a child span of `parent`, or a new trace; it starts now, or at `at`."""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A finished span with its children."""

    name: str
    start: datetime
    end: datetime
    attributes: Attributes = {}
    error: str | None = None
    parts: Sequence[Stage] = ()


def export_stage(spans: Spans, stage: Stage, parent: Trace | None) -> None:
    """Export a stage and all its children."""
    span = spans.begin(stage.name, parent, at=stage.start)
    for part in stage.parts:
        export_stage(spans, part, span.trace)
    span.end(stage.attributes, error=stage.error, at=stage.end)
