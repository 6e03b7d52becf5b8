"""Spans by OTLP, as a collector receives them. Without `KILN_TRACES` no module of OpenTelemetry is imported."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import kiln.settings
from builds import report
from builds.build import Image
from builds.controller import Controller
from builds.plan import Limits
from eventing.delivery import EventSender
from eventing.event import Event
from eventing.sinks import Outcome, Sink
from eventing.tracing import Trace, trace_of
from kiln.errors import SettingsError
from kiln.otel import OTelSpans
from kiln.settings import read
from tests.builds.engine_factories import local_engine, start_build
from tests.handlers.harness import body, create_harness, event, structured
from tests.parts.kiln import until
from tests.parts.sink import EventSink

TRACE = Trace(traceparent=f"00-{'a' * 32}-{'b' * 16}-01", tracestate="x=y")


class Collector(http.server.BaseHTTPRequestHandler):
    spans: ClassVar[list[Any]] = []
    services: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        message = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in message.resource_spans:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.services.add(named["service.name"])
            self.spans.extend(span for scope in resource.scope_spans for span in scope.spans)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Collector]]:
    Collector.spans.clear()
    Collector.services.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("NO_PROXY", "*")
    yield Collector
    server.shutdown()
    thread.join()
    server.server_close()


def attributes(span: Any) -> dict[str, object]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def lineage(found: Any) -> tuple[str, str]:
    """Return the trace and the parent of a span."""
    return found.trace_id.hex(), found.parent_span_id.hex()


def test_a_request_is_part_of_the_trace_that_came_in(collector: type[Collector], tmp_path: Path) -> None:
    spans = OTelSpans("web", "1")
    harness = create_harness(tmp_path, spans=spans)
    harness.client.post("/events", **structured(event(id="1", **TRACE.carried)))
    harness.client.post("/events", **structured(event(id="2")), query_string={"token": "a canary"})
    harness.client.get("/api/v1/builds/none", headers=TRACE.carried)
    harness.client.get("/static/kiln.css").close()
    spans.close()
    first, second, third = collector.spans
    assert [span.name for span in collector.spans] == ["POST /events"] * 2 + ["GET /api/v1/builds/<name>"]
    assert collector.services == {"kiln-web"}
    assert lineage(first) == lineage(third) == ("a" * 32, "b" * 16)
    assert attributes(third) == {
        "http.request.method": "GET",
        "http.response.status_code": 404,
        "http.route": "/api/v1/builds/<name>",
    }
    of_event, of_request = (cause.trace for cause in harness.builds()[0].causes)
    assert of_event == TRACE
    assert of_request is not None
    assert lineage(second) == (of_request.id, "")
    assert of_request.traceparent.split("-")[2] == second.span_id.hex(), "what it asked for is a part of it"
    assert b"canary" not in b"".join(span.SerializeToString() for span in collector.spans)
    harness.close()


def test_a_build_and_its_deliveries_are_part_of_the_trace(collector: type[Collector], tmp_path: Path) -> None:
    def never(*_: object) -> Image | None:
        raise AssertionError

    spans, stop = OTelSpans("controller", "1"), threading.Event()
    engine = local_engine(tmp_path)
    with EventSink() as receiver:
        sender = EventSender(spans=spans)
        controller = Controller(
            engine,
            limits=Limits(),
            sinks=[Sink(name="hub", url=receiver.url)],
            sender=sender,
            confirmer=never,
            inspector=never,
            events=lambda build, word, attempt, now, cause: report.event(
                build, word, attempt, source="/kiln", now=now, cause=cause
            ),
            spans=spans,
        )
        build = start_build(engine, "b")
        engine.write(replace(build, status=replace(build.status, trace=TRACE)))
        thread = threading.Thread(target=controller.run, args=(stop.is_set,))
        thread.start()
        until(lambda: not engine.get("b").open)
        stop.set()
        engine.wake()
        thread.join(20)
        sender.close()
        received = receiver.received
    engine.close()
    spans.close()
    named = {span.name: span for span in collector.spans}
    assert collector.services == {"kiln-controller"}
    assert lineage(named["build"]) == ("a" * 32, "b" * 16)
    assert attributes(named["build"])["kiln.build"] == build.name
    for part in ("queue", "attempt"):
        assert lineage(named[part]) == ("a" * 32, named["build"].span_id.hex())
    sends = [span for span in collector.spans if span.name.startswith("send ")]
    assert [lineage(span) for span in sends] == [("a" * 32, "b" * 16)] * len(received)
    headers = [trace_of(each.headers) for each in received]
    assert [found.traceparent.split("-")[2] for found in headers if found] == [span.span_id.hex() for span in sends]
    assert {found.tracestate for found in headers if found} == {"x=y"}
    assert {each.extensions["traceparent"] for one in received for each in one.events} == {TRACE.traceparent}


def test_a_delivery_that_fails_says_why(collector: type[Collector]) -> None:
    spans = OTelSpans("controller", "1")
    sender, ended = EventSender(spans=spans), Future[Outcome]()
    with EventSink() as receiver:
        receiver.answer(400)
        sender.send(Event(id="1", source="/kiln", type="t"), Sink(name="hub", url=receiver.url), ended.set_result)
        outcome = ended.result(20)
    sender.close()
    spans.close()
    (span,) = collector.spans
    assert (span.status.message, attributes(span)["http.response.status_code"]) == (outcome.error, 400)


def test_a_collector_that_is_away_holds_up_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    spans = OTelSpans("web", "1")
    harness = create_harness(tmp_path, spans=spans)
    assert harness.client.post("/api/v1/builds", json=body()).status_code == 202
    spans.close()
    harness.close()


OFF = """
import sys, threading
from kiln import wiring
import builds.controller
from eventing.delivery import EventSender

kiln = wiring.load({"KILN_IMAGE_PREFIX": "r.example/", "KILN_AUTH": "none", "KILN_STATE_DIR": sys.argv[1]})
assert wiring.spans(kiln, "web") is None
EventSender().close()
web = wiring.app(kiln, threading.Event()).test_client()
asked = {"repository": "https://github.com/a/b", "commit": "c" * 40}
headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
assert web.post("/api/v1/builds", json=asked, headers=headers).status_code == 202
print([name for name in sys.modules if name.startswith(("opentelemetry", "kiln.otel", "google"))])
"""


def test_nothing_of_it_is_imported_where_nobody_asked_for_it(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", OFF, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_what_it_needs_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    least = {"KILN_IMAGE_PREFIX": "r.example/"}
    assert read(least).traces == "off"
    assert read({**least, "KILN_TRACES": "otlp"}).traces == "otlp"
    monkeypatch.setattr(kiln.settings, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="KILN_TRACES: otlp needs the extra otel: pip install"):
        read({**least, "KILN_TRACES": "otlp"})


def test_asking_twice_is_one_part_of_a_trace(collector: type[Collector], tmp_path: Path) -> None:
    """A batch is one request, even if its events carry different traces."""
    spans = OTelSpans("web", "1")
    harness = create_harness(tmp_path, spans=spans)
    batch = [event(id="1"), event(id="2", **TRACE.carried), event(id="3")]
    assert harness.client.post("/events", **structured(batch, "cloudevents-batch")).status_code == 202
    spans.close()
    (span,) = collector.spans
    traces = [cause.trace for cause in harness.builds()[0].causes]
    assert [found.id for found in traces if found] == [span.trace_id.hex(), "a" * 32, span.trace_id.hex()]
    harness.close()
