"""Spans for OpenTelemetry, sent by OTLP over HTTP (`KILN_TRACES=otlp`). Imported only then: it takes 0.3 s.

The SDK's own `OTEL_*` variables configure endpoint, sampling and service name
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/). An unavailable collector causes a
log line and delays nothing.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping
from datetime import datetime

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OTelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eventing.spans import Attributes, Kind
from eventing.tracing import Trace, trace_of

LAST_SPANS = 2.0
"""Seconds for the collector to accept the remaining spans at the end of the process."""

_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_CONTEXT = TraceContextTextMapPropagator()


class OTelSpans:
    """`process` is `web` or `controller`."""

    def __init__(self, process: str, version: str) -> None:
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"kiln-{process}"}
        resource = Resource.create({**named, "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("kiln", version)
        atexit.register(self.close)

    def begin(self, name: str, parent: Trace | None, *, kind: Kind = "internal", at: datetime | None = None) -> Begun:
        context = _CONTEXT.extract(parent.carried if parent else {})
        return Begun(self._tracer.start_span(name, context, _KINDS[kind], start_time=_nanoseconds(at)))

    def close(self) -> None:
        """Send the remaining spans, if the collector accepts them soon."""
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(LAST_SPANS)


class Begun:
    """A span of OpenTelemetry behind our interface."""

    def __init__(self, span: OTelSpan) -> None:
        self._span = span

    @property
    def trace(self) -> Trace:
        carrier: dict[str, str] = {}
        _CONTEXT.inject(carrier, set_span_in_context(self._span))
        found = trace_of(carrier)
        assert found is not None  # noqa: S101  (the SDK makes no invalid one)
        return found

    def end(self, attributes: Attributes, *, error: str | None = None, at: datetime | None = None) -> None:
        self._span.set_attributes(_plain(attributes))
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(_nanoseconds(at))


def _plain(attributes: Attributes) -> Mapping[str, str | int]:
    """Convert to exactly the types that the SDK accepts: a member of an enumeration is a subclass of text."""
    return {name: value if isinstance(value, int) else str(value) for name, value in attributes.items()}


def _nanoseconds(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1e6) * 1000
