"""Deliveries over real sockets: every behaviour of a sink, and no sink affects another."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.delivery import EventSender, reach, sinks_from_environment
from eventing.errors import SinkError
from eventing.event import Event
from eventing.sinks import LONGEST_PAUSE, LONGEST_RETRY_AFTER, Outcome, Sink, judge, pause, seconds_until, wanted
from eventing.tracing import Trace
from eventing.transport import LANE_WIDTH
from tests.parts.authority import make_authority
from tests.parts.proxy import Proxy
from tests.parts.sink import CUT, SILENT, TRICKLE, Answer, EventSink, Received

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
CANARY = "canary-5c1d0f3e9b"


def event(number: int = 1) -> Event:
    return Event(
        id=f"u.{number}.succeeded",
        source="/kiln",
        type="dev.kiln.build.succeeded.v1",
        subject="build-x",
        time=NOW,
        datacontenttype="application/json",
        extensions={"repository": "https://github.com/a/b", "reason": "none"},
        data={"name": "build-x", "number": number},
    )


def send(sender: EventSender, sink: Sink, sent: Event | None = None) -> Future[Outcome]:
    outcome: Future[Outcome] = Future()
    sender.send(sent or event(), sink, outcome.set_result)  # a second call of `done` would raise and fail the test
    return outcome


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def sender() -> Iterator[EventSender]:
    sender = EventSender()
    yield sender
    sender.close()


@pytest.fixture
def receiver() -> Iterator[EventSink]:
    with EventSink() as receiver:
        yield receiver


# --- the meaning of an answer, and the schedule of retries: pure


@given(st.integers(100, 999))
def test_what_a_status_means(status: int) -> None:
    outcome = judge(status, 7.0)
    assert outcome.status == status
    assert outcome.delivered == (200 <= status <= 299) == (outcome.error is None)
    assert outcome.final == (not (status in {404, 408, 409, 429} or 500 <= status <= 599))
    assert outcome.retry_after == (None if outcome.final else 7.0)
    assert outcome.error is None or str(status) in outcome.error


@given(st.integers(0, 10_000), st.none() | st.floats(0, 1e9))
def test_the_pause_grows_is_bounded_and_never_shorter_than_asked(tries: int, asked: float | None) -> None:
    assert 1 <= pause(tries) <= pause(tries + 1) <= LONGEST_PAUSE
    assert pause(tries, asked) == max(pause(tries), min(asked or 0, LONGEST_RETRY_AFTER))


def test_pauses() -> None:
    assert [pause(tries) for tries in (1, 2, 3, 9, 10, 100)] == [1, 2, 4, 256, 300, 300]
    assert (pause(1, 60), pause(9, 60), pause(1, 86400)) == (60, 256, 3600)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("0", 0),
        (" 120 ", 120),
        ("9" * 5000, 3600),
        ("Sun, 22 Nov 2026 12:01:30 GMT", 90),
        ("Sunday, 22-Nov-26 12:01:30 GMT", 90),
        ("Sun Nov 22 12:01:30 2026", 90),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0),
        ("Sun, 22 Nov 2099 11:00:00 GMT", 3600),
        ("Sun, 22 Nov 99999999999999999999 11:00:00 GMT", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert seconds_until(header, NOW) == seconds


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9-]{1,4} [A-Z][a-z]{2} [0-9]{1,6} [0-9:]{1,9} [A-Z+0-9-]{0,6}"))
def test_any_retry_after_is_within_bounds(header: str) -> None:
    seconds = seconds_until(header, NOW)
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


def test_wanted() -> None:
    sink = Sink(name="hub", url="https://hub.example/", types=("dev.kiln.build.succeeded.*", "dev.kiln.build.f*"))
    assert wanted(sink, "dev.kiln.build.succeeded.v1")
    assert wanted(sink, "dev.kiln.build.failed.v1")
    assert not wanted(sink, "dev.kiln.build.started.v1")
    assert not wanted(sink, "x.dev.kiln.build.succeeded.v1")
    assert wanted(Sink(name="all", url="https://hub.example/"), "dev.kiln.build.started.v1")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("name", "../x", "name"),
        ("name", ".hidden", "name"),
        ("name", "", "name"),
        ("url", "ftp://hub.example/", "http"),
        ("url", "hub.example", "http"),
        ("url", "https:///x", "host"),
        ("url", "https://hub.example:99999/", "malformed"),
        ("url", f"https://me:{CANARY}@hub.example/", "headers/"),
        ("extensions", {"data": "x"}, "extension"),
        ("extensions", {"Upper": "x"}, "extension"),
        ("extensions", {"id": "x"}, "extension"),
        ("mode", "batch", "batch"),
        ("tpyes", [], "tpyes"),
    ],
)
def test_a_malformed_sink_is_refused_with_the_place(field: str, value: object, says: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=says) as refused:
        msgspec.convert({"name": "hub", "url": "https://hub.example/", field: value}, Sink)
    assert CANARY not in str(refused.value)


def test_a_sink_shows_its_name_alone() -> None:
    assert repr(Sink(name="hook", url=f"https://hooks.example/{CANARY}")) == "Sink('hook')"


# --- the environment that a SinkBinding injects


def test_no_sink_in_the_environment() -> None:
    assert sinks_from_environment({}) == []
    assert sinks_from_environment({"K_SINK": " ", "K_CE_OVERRIDES": "x"}) == []


def test_the_injected_sink(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "IP:127.0.0.1")
    further = tmp_path / "certs" / "deep"
    further.mkdir(parents=True)
    (further / "more.pem").write_text(f"# Főtanúsítvány\n{authority}", encoding="utf-8")
    environment = {
        "K_SINK": "http://broker-ingress.knative-eventing.svc.cluster.local/ns/default",
        "K_CE_OVERRIDES": '{"extensions": {"team": "stats"}}',
        "K_CA_CERTS": authority,
    }
    (sink,) = sinks_from_environment(environment, certificates=tmp_path / "certs")
    assert (sink.name, sink.url, sink.types) == ("k-sink", environment["K_SINK"], ("dev.kiln.build.*",))
    assert sink.extensions == {"team": "stats"}
    assert sink.token_file == "/oidc/token"
    assert sink.ca is not None
    assert sink.ca.count("BEGIN CERTIFICATE") == 2
    (other,) = sinks_from_environment({"K_SINK": "http://sink.example"}, format="cdevents")
    assert (sink.format, other.format) == ("kiln", "cdevents")


@pytest.mark.parametrize("overrides", ["", "{}", '{"extensions": null}', '{"extensions": {}, "later": 1}'])
def test_overrides_that_add_nothing(overrides: str) -> None:
    (sink,) = sinks_from_environment({"K_SINK": "http://sink.example", "K_CE_OVERRIDES": overrides})
    assert (sink.extensions, sink.ca) == ({}, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("K_SINK", "sink.example"),
        ("K_SINK", f"http://me:{CANARY}@sink.example"),
        ("K_CE_OVERRIDES", '{"extensions": {'),
        ("K_CE_OVERRIDES", '"x"'),
        ("K_CE_OVERRIDES", '{"extensions": []}'),
        ("K_CE_OVERRIDES", '{"extensions": {"team": [1]}}'),
        ("K_CE_OVERRIDES", '{"extensions": {"Team": "x"}}'),
        ("K_CE_OVERRIDES", '{"extensions": {"source": "x"}}'),
        ("K_CA_CERTS", "not a certificate"),
        ("K_CA_CERTS", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("K_CA_CERTS", "ÄÖ"),
        ("K_CA_CERTS", "\udcff"),
    ],
)
def test_what_is_injected_malformed_is_named(name: str, value: str) -> None:
    with pytest.raises(SinkError, match=name) as refused:
        sinks_from_environment({"K_SINK": "http://sink.example", name: value})
    assert CANARY not in str(refused.value)


# --- one event to one sink


def test_importing_it_imports_no_client() -> None:
    program = "import sys, eventing.delivery; print({'aiohttp', 'asyncio', 'tenacity'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_an_event_arrives_as_it_is(sender: EventSender, receiver: EventSink, mode: str) -> None:
    sink = msgspec.convert(
        {"name": "hub", "url": receiver.url, "mode": mode, "extensions": {"team": "stats", "reason": "ours"}}, Sink
    )
    assert send(sender, sink).result(15) == Outcome(delivered=True, final=True, status=202)
    (received,) = receiver.received
    assert received.path == "/events"
    assert ("ce-id" in received.headers) == (mode == "binary")
    (arrived,) = received.events
    sent = event()
    assert arrived == msgspec.structs.replace(sent, extensions={**sent.extensions, "team": "stats", "reason": "ours"})


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_the_trace_of_an_event_is_that_of_its_request(sender: EventSender, receiver: EventSink, mode: str) -> None:
    """Receivers and proxies may know only the headers of a trace. No secret header or token may replace them."""
    trace = Trace(traceparent=f"00-{'a' * 32}-{'b' * 16}-01", tracestate="a=b")
    sink = msgspec.convert({"name": "hub", "url": receiver.url, "mode": mode}, Sink)
    sent = msgspec.structs.replace(event(), extensions={**event().extensions, **trace.carried})
    assert send(sender, sink, sent).result(15).delivered
    assert send(sender, sink).result(15).delivered
    first, second = receiver.received
    assert {name: first.headers[name] for name in ("traceparent", "tracestate")} == trace.carried
    assert first.events == (sent,)
    assert not {"traceparent", "tracestate"} & {name.lower() for name in second.headers}


TABLE: dict[str, tuple[Answer, int, Outcome | str | None]] = {
    # behaviour of the sink: (its answer, tries in one send, the outcome or its error)
    **{f"{status}": (Answer(status=status), 1, judge(status)) for status in (200, 201, 204, 299)},
    **{f"{status}": (Answer(status=status), 1, judge(status)) for status in (304, 400, 401, 403, 410, 413, 422, 499)},
    **{f"{status}": (Answer(status=status), 3, judge(status)) for status in (404, 408, 409, 429, 500, 503, 599)},
    "silent": (SILENT, 1, "no complete answer within 10 s"),
    "trickle": (TRICKLE, 1, "no complete answer within 10 s"),
    "200, trickled body": (Answer(status=200, body=bytes(60), trickle_body=True), 1, "no complete answer within 10 s"),
    "400, trickled body": (Answer(status=400, body=bytes(60), trickle_body=True), 1, "no complete answer within 10 s"),
    "200, endless body": (Answer(status=200, endless=True), 1, judge(200)),
    "200, body breaks off": (Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), 1, judge(200)),
    "reset": (CUT, 3, "the connection closed before the answer"),
    "closed": (Answer(raw=b""), 3, "the connection closed before the answer"),
    "half a line": (Answer(raw=b"HTTP/1.1 20"), 3, None),
    "not HTTP": (Answer(raw=b"SSH-2.0-OpenSSH_9.2\r\n"), 3, "the answer is not HTTP"),
    "huge header": (Answer(raw=b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"), 3, "the answer is not HTTP"),
    "bad length": (Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), 3, "the answer is not HTTP"),
}


GIVEN_UP = 9.5
"""Seconds after which the sender gives up a silent sink, a little less than the real limit.

A send that waits for such a sink takes at least this long. The time bounds of these tests use it, so they hold on a
busy machine.
"""


class Sent(NamedTuple):
    outcome: Outcome
    seconds: float
    requests: list[Received]


@pytest.fixture(scope="module")
def sent() -> Iterator[Mapping[str, Sent]]:
    """Send one event to every sink of the table at the same time, as sinks do not affect one another."""
    sender, ended = EventSender(), {}
    with ExitStack() as stack:
        stack.callback(sender.close)
        receivers = {case: stack.enter_context(EventSink()) for case in TABLE}
        began = time.monotonic()

        def noting(case: str, outcome: Future[Outcome]) -> None:
            ended[case] = time.monotonic() - began

        outcomes: dict[str, Future[Outcome]] = {}
        for number, (case, (answer, _, _)) in enumerate(TABLE.items()):
            receivers[case].answer(then=answer)
            outcomes[case] = send(sender, Sink(name=f"sink-{number}", url=receivers[case].url))
            outcomes[case].add_done_callback(partial(noting, case))
        results = {case: outcome.result(20) for case, outcome in outcomes.items()}
        yield {case: Sent(results[case], ended[case], receivers[case].received) for case in TABLE}


@pytest.mark.parametrize("case", TABLE)
def test_the_table(case: str, sent: Mapping[str, Sent]) -> None:
    answer, tries, said = TABLE[case]
    outcome, seconds, requests = sent[case]
    assert len(requests) == tries
    assert all(one.events == (event(),) for one in requests)
    if isinstance(said, Outcome):
        assert outcome == said
    else:
        assert (outcome.delivered, outcome.final, outcome.status) == (False, False, None)
        assert said is None or outcome.error == said
    if answer.silent or answer.trickle or answer.trickle_body:
        assert GIVEN_UP < seconds < 2 * GIVEN_UP, "one try, and no more"
    else:
        assert seconds < GIVEN_UP


def test_500_for_a_while(sender: EventSender, receiver: EventSink) -> None:
    receiver.answer(500, 500)
    assert send(sender, Sink(name="hub", url=receiver.url)).result(15).delivered
    assert [one.status for one in receiver.received] == [500, 500, 202]


def test_a_sink_that_refuses_connections_and_then_is_there(sender: EventSender, receiver: EventSink) -> None:
    receiver.refuse()
    sink = Sink(name="hub", url=receiver.url)
    outcome = send(sender, sink).result(15)
    assert (outcome.delivered, outcome.final, outcome.status) == (False, False, None)
    assert outcome.error is not None
    assert "connection refused" in outcome.error
    receiver.accept()
    assert send(sender, sink).result(15).delivered


def test_a_redirect_is_not_followed(sender: EventSender, receiver: EventSink) -> None:
    with EventSink() as elsewhere:
        receiver.answer(then=Answer(status=307, location=elsewhere.url))
        outcome = send(sender, Sink(name="hub", url=receiver.url)).result(15)
        assert (outcome.final, outcome.status) == (True, 307)
        assert outcome.error is not None
        assert "redirects are not followed" in outcome.error
        assert (len(receiver.received), elsewhere.received) == (1, [])


def test_a_short_retry_after_is_kept_within_the_burst(sender: EventSender, receiver: EventSink) -> None:
    receiver.answer(Answer(status=503, retry_after="2"))
    assert send(sender, Sink(name="hub", url=receiver.url)).result(15).delivered
    first, second = receiver.received
    assert second.at - first.at >= 2


def test_a_long_retry_after_is_left_to_the_schedule(sender: EventSender, receiver: EventSink) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=2), usegmt=True)
    receiver.answer(Answer(status=429, retry_after="100"), Answer(status=429, retry_after=date))
    sink = Sink(name="hub", url=receiver.url)
    assert send(sender, sink).result(5).retry_after == 100
    by_date = send(sender, sink).result(5)
    assert by_date.retry_after is not None
    assert 110 < by_date.retry_after <= 120
    assert len(receiver.received) == 2


# --- no sink delays another


def test_others_are_not_late_while_one_is_silent_with_a_queue() -> None:
    with EventSink() as silent, EventSink() as good:
        silent.answer(then=SILENT)
        sender = EventSender()
        waiting = [send(sender, Sink(name="silent", url=silent.url), event(n)) for n in range(100)]
        silent.wait_for(lambda received: len(received) == LANE_WIDTH)
        for number in range(20):
            assert send(sender, Sink(name="good", url=good.url), event(number)).result(15).delivered
        assert not any(outcome.done() for outcome in waiting), "none of these was waited for"
        assert silent.most_connections == LANE_WIDTH
        began = time.monotonic()
        sender.close()
        assert time.monotonic() - began < GIVEN_UP / 2
        for outcome in waiting:
            told = outcome.result(0)
            assert (told.delivered, told.final) == (False, False)


def test_others_are_not_late_while_names_do_not_resolve(receiver: EventSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test resolves more names than a loop's default executor has threads, each many times."""
    ask, answered = socket.getaddrinfo, threading.Event()
    asked: list[str] = []

    def look_up(host: str, *args: object, **kwargs: object) -> object:
        if host.endswith(".example"):
            asked.append(host)
            answered.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return ask(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    sender = EventSender()
    try:
        names = [f"hangs-{number}" for number in range(40)]
        waiting = [
            send(sender, Sink(name=name, url=f"http://{name}.example/"), event(number))
            for number in range(10)
            for name in names
        ]
        good = Sink(name="good", url=receiver.url.replace("127.0.0.1", "localhost"))
        for number in range(10):
            assert send(sender, good, event(number)).result(15).delivered
        assert not any(outcome.done() for outcome in waiting), "none of these was waited for"
        began = time.monotonic()
        sender.close()
        assert time.monotonic() - began < GIVEN_UP / 2
        assert not any(outcome.result(0).delivered for outcome in waiting)
        assert len(asked) == len(names)
    finally:
        answered.set()
        sender.close()


def test_a_burst_of_events_takes_few_connections(sender: EventSender, receiver: EventSink) -> None:
    sent = [send(sender, Sink(name="hub", url=receiver.url), event(number)) for number in range(1000)]
    assert all(outcome.result(30).delivered for outcome in sent)
    assert len({one.events[0].id for one in receiver.received}) == 1000
    assert receiver.most_connections <= LANE_WIDTH


def test_a_wire_that_is_cut_delays_or_drops(sender: EventSender, receiver: EventSink) -> None:
    with Proxy(("127.0.0.1", receiver.port)) as wire:
        sink = Sink(name="hub", url=f"http://{wire.address}/")
        wire.delay = 0.3
        began = time.monotonic()
        assert send(sender, sink).result(15).delivered
        assert time.monotonic() - began > 0.6
        wire.delay = 0.0
        wire.cut()
        assert send(sender, sink).result(15).delivered
        wire.refuse()
        assert not send(sender, sink).result(15).delivered
        wire.accept()
        assert send(sender, sink).result(15).delivered
        wire.drop = True
        assert send(sender, sink).result(15).error == "no complete answer within 10 s"


# --- credentials, which stay secret


def test_headers_are_asked_for_at_each_try_and_do_not_replace_ours(receiver: EventSink) -> None:
    secrets = iter("abc")

    def headers(name: str) -> Mapping[str, str]:
        assert name == "hub"
        return {"Authorization": f"Bearer {next(secrets)}", "Ce-Id": "forged", "CONTENT-TYPE": "text/plain"}

    receiver.answer(503)
    sender = EventSender(headers)
    try:
        assert send(sender, Sink(name="hub", url=receiver.url)).result(15).delivered
    finally:
        sender.close()
    first, second = receiver.received
    assert [one.headers["authorization"] for one in (first, second)] == ["Bearer a", "Bearer b"]
    assert second.events[0].id == event().id


def test_the_token_file_is_read_at_each_send(sender: EventSender, receiver: EventSink, tmp_path: Path) -> None:
    token = tmp_path / "token"
    sink = Sink(name="k-sink", url=receiver.url, token_file=str(token))
    assert send(sender, sink).result(15).delivered
    for text in ("one", "two\n"):
        token.write_text(text)
        assert send(sender, sink).result(15).delivered
    assert [one.headers.get("authorization") for one in receiver.received] == [None, "Bearer one", "Bearer two"]


def jwt_until(expiry: object) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": expiry}).encode()).decode().rstrip("=")
    return f"e30.{claims}.{CANARY}"


UNUSABLE = {
    "expired": (jwt_until(1), "expired"),
    "just so": (jwt_until(time.time() - 1), "expired"),
    "empty": ("", "is empty"),
    "blank": ("\n", "is empty"),
    "several lines": (f"{CANARY}\r\nX-Other: 1", "is empty"),
    "two words": (f"{CANARY} two", "is empty"),
    "no ASCII": (f"{CANARY}é", "is empty"),
    "a folder": (None, "cannot read its token file"),
}


def test_a_token_that_would_be_refused_for_good_is_waited_for(
    sender: EventSender, receiver: EventSink, tmp_path: Path
) -> None:
    sinks = {}
    for number, (case, (held, _)) in enumerate(UNUSABLE.items()):
        token = tmp_path / f"token-{number}"
        token.mkdir() if held is None else token.write_text(held, "utf-8")
        sinks[case] = Sink(name=f"sink-{number}", url=receiver.url, token_file=str(token))
    sent = {case: send(sender, sink) for case, sink in sinks.items()}
    for case, (_, says) in UNUSABLE.items():
        outcome = sent[case].result(15)
        assert (outcome.delivered, outcome.final, outcome.status) == (False, False, None), case
        assert says in (outcome.error or "")
        assert CANARY not in (outcome.error or "")
        with pytest.raises(SinkError, match=says):
            reach(sinks[case], lambda _: {}, "kiln")
    assert receiver.received == []
    (tmp_path / "token-0").write_text(jwt_until(time.time() + 600))
    assert send(sender, sinks["expired"]).result(15).delivered


@pytest.mark.parametrize(
    "held",
    ["opaque", "a.b.c", "e30.e30.x", jwt_until("soon"), jwt_until(None), "..", "a.W1tb.c"],
    ids=["opaque", "segments", "objects", "words", "null", "dots", "no-json"],
)
def test_a_token_that_does_not_say_when_it_expires_is_sent(
    sender: EventSender, receiver: EventSink, tmp_path: Path, held: str
) -> None:
    (tmp_path / "token").write_text(held)
    sink = Sink(name="k-sink", url=receiver.url, token_file=str(tmp_path / "token"))
    assert send(sender, sink).result(15).delivered
    assert receiver.received[0].headers["authorization"] == f"Bearer {held}"


def test_no_other_sink_gets_the_token(sender: EventSender, receiver: EventSink, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(CANARY)
    (sink,) = sinks_from_environment({"K_SINK": receiver.url}, token=tmp_path / "token")
    with EventSink() as other:
        receiver.answer(Answer(status=307, location=other.url), then=Answer())
        assert not send(sender, sink).result(15).delivered
        assert send(sender, Sink(name="other", url=other.url)).result(15).delivered
        assert [one.headers.get("authorization") for one in other.received] == [None]
    assert [one.headers.get("authorization") for one in receiver.received] == [f"Bearer {CANARY}"]


def test_no_secret_in_an_outcome_or_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    answers = [
        Answer(status=400, body=CANARY.encode()),
        Answer(raw=f"HTTP/1.1 500 {CANARY}\r\nContent-Length: 0\r\n\r\n".encode()),
        Answer(raw=f"{CANARY}\r\n\r\n".encode()),
        CUT,
    ]
    with ExitStack() as stack:
        sender = EventSender(lambda _: {"X-Token": CANARY})
        stack.callback(sender.close)
        outcomes = []
        for number, answer in enumerate(answers):
            receiver = stack.enter_context(EventSink())
            receiver.answer(then=answer)
            outcomes.append(send(sender, Sink(name=f"s{number}", url=f"{receiver.url}?access_token={CANARY}")))
        for outcome in outcomes:
            assert not outcome.result(15).delivered
            assert CANARY not in repr(outcome.result())
        assert receiver.received[0].headers["x-token"] == CANARY
        assert CANARY in receiver.received[0].path
    assert CANARY not in caplog.text


def refuse_to_say(_: str) -> Mapping[str, str]:
    raise RuntimeError(f"cannot read {CANARY}")


@pytest.mark.parametrize("headers", [refuse_to_say, lambda _: {"X-Token": f"{CANARY}\r\nX-Forged: 1"}])
def test_headers_that_cannot_be_sent(
    receiver: EventSink, headers: Callable[[str], Mapping[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    sender = EventSender(headers)
    try:
        outcome = send(sender, Sink(name="hub", url=receiver.url)).result(15)
    finally:
        sender.close()
    assert (outcome.delivered, outcome.final) == (False, False)
    assert "Cannot send" in caplog.text
    assert CANARY not in caplog.text + repr(outcome)
    assert receiver.received == []


def test_netrc_is_not_sent(
    sender: EventSender, receiver: EventSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {CANARY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert send(sender, Sink(name="hub", url=receiver.url)).result(15).delivered
    assert "authorization" not in receiver.received[0].headers


def test_proxies_of_the_environment(sender: EventSender, receiver: EventSink, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink(name="hub", url="http://sink.invalid:8080/events")
    monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{receiver.port}")
    assert send(sender, sink).result(15).delivered
    assert receiver.received[0].path == "http://sink.invalid:8080/events"
    monkeypatch.setenv("HTTP_PROXY", f"http://me:{CANARY}@127.0.0.1:{receiver.port}")
    assert send(sender, sink).result(15).delivered
    assert receiver.received[1].headers["proxy-authorization"].startswith("Basic ")
    monkeypatch.setenv("NO_PROXY", "sink.invalid")
    unresolved = send(sender, sink).result(30)
    assert not unresolved.delivered
    assert len(receiver.received) == 2


# --- TLS


def test_a_certificate_nobody_vouches_for_and_then_its_authority(
    sender: EventSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make_authority(tmp_path, "IP:127.0.0.1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "host.pem", tmp_path / "host.key")
    with EventSink(tls=server) as receiver:
        distrusted = send(sender, Sink(name="hub", url=receiver.url)).result(15)
        assert (distrusted.delivered, distrusted.final, distrusted.status) == (False, False, None)
        assert distrusted.error is not None
        assert "certificate is not trusted" in distrusted.error
        assert receiver.received == []

        (sink,) = sinks_from_environment({"K_SINK": receiver.url, "K_CA_CERTS": authority})
        assert send(sender, sink).result(15).delivered

        renamed = msgspec.structs.replace(sink, url=receiver.url.replace("127.0.0.1", "localhost"))
        assert not send(sender, renamed).result(15).delivered
        assert len(receiver.received) == 1


# --- the end


def test_a_closed_courier_says_that_it_did_not_send(receiver: EventSink) -> None:
    sender = EventSender()
    sink = Sink(name="hub", url=receiver.url)
    assert send(sender, sink).result(15).delivered
    receiver.answer(then=503)
    sleeping = send(sender, sink)
    receiver.wait_for(lambda received: len(received) == 2)
    sender.close()
    sender.close()
    for outcome in (sleeping, send(sender, sink)):
        assert outcome.result(0) == Outcome(delivered=False, final=False, error="Kiln stopped before the delivery")
    assert len(receiver.received) == 2
