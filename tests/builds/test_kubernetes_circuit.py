"""An open circuit refuses requests to a silent server immediately, and a probe closes it again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes.client.configuration import Configuration

from builds.engines import Unavailable
from builds.engines.kubernetes import KubernetesRecords, store
from builds.engines.kubernetes.api import Api, Busy
from builds.engines.kubernetes.circuit import FAILING, FAILURES, SILENCE, SUSPICIOUS, Circuit
from tests.builds.engine_factories import new_submission
from tests.builds.kubernetes_objects import RELEASE
from tests.parts.proxy import Proxy


class Clock:
    now = 100.0


def circuit(clock: Clock) -> Circuit:
    return Circuit(failures=3, rest=2, monotonic=lambda: clock.now)


def fails(circuit: Circuit, times: int) -> None:
    for _ in range(times):
        assert circuit.passes()
        circuit.unanswered()


def test_it_opens_after_a_few_failures_in_a_row() -> None:
    one = circuit(Clock())
    fails(one, 2)
    one.answered()
    fails(one, 2)
    assert one.passes()
    one.unanswered()
    assert not one.passes()


def test_one_call_tries_again_and_its_outcome_decides() -> None:
    clock = Clock()
    one = circuit(clock)
    fails(one, 3)
    clock.now += 1.9
    assert not one.passes()
    clock.now += 0.1
    assert [one.passes() for _ in range(3)] == [True, False, False]
    one.unanswered()
    clock.now += 1.9
    assert not one.passes()
    clock.now += 0.1
    assert one.passes()
    one.answered()
    assert [one.passes() for _ in range(3)] == [True, True, True]


def test_a_try_whose_outcome_nobody_tells_is_not_the_last() -> None:
    clock = Clock()
    one = circuit(clock)
    fails(one, 3)
    clock.now += 2
    assert one.passes()
    clock.now += SUSPICIOUS
    assert one.passes()


def test_who_tries_again_does_not_wait_for_long() -> None:
    one = circuit(Clock())
    fails(one, FAILURES - 1)
    assert one.patience(5) == 5
    fails(one, 1)
    assert (one.patience(5), one.patience(0.5)) == (SUSPICIOUS, 0.5)
    one.answered()
    assert one.patience(5) == 5


def test_while_nobody_has_an_answer_who_comes_does_not_wait() -> None:
    clock = Clock()
    one = circuit(clock)
    assert [one.passes() for _ in range(3)] == [True] * 3
    clock.now += SILENCE
    one.answered()
    clock.now += SILENCE
    assert one.passes(), "somebody was answered"
    clock.now += 0.1
    assert one.open
    assert not one.passes()
    one.answered()
    assert not one.open
    assert one.passes()


def test_one_call_that_takes_long_shuts_nobody_out() -> None:
    clock = Clock()
    one = circuit(clock)
    assert one.passes()
    clock.now += 60
    assert one.passes()
    assert not one.open


def test_a_server_that_is_silent_is_asked_by_nobody_but_now_and_then() -> None:
    clock = Clock()
    with socket.create_server(("127.0.0.1", 0)) as silent, Proxy(silent.getsockname()[:2]) as between:
        configuration = Configuration()
        configuration.host = f"http://{between.address}"
        api = Api(configuration, "here", timeout=0.2, circuit=circuit(clock))
        for _ in range(3):
            with pytest.raises(Busy, match=r"did not answer within 0.2 s"):
                api.create("configmaps", {})
        asked = between.connections
        for _ in range(10):
            with pytest.raises(Busy, match="does not answer"):
                api.create("configmaps", {})
        assert between.connections == asked
        clock.now += 2
        with pytest.raises(Busy, match="did not answer"):
            api.create("configmaps", {})
        assert between.connections == asked + 1
        api.close()


def test_who_shares_a_call_that_fails_counts_as_one_who_made_it() -> None:
    one = circuit(Clock())
    assert one.passes()
    one.unanswered()
    for _ in range(FAILURES - 1):
        assert not one.open
        one.missed()
    assert one.open


def test_a_server_that_answers_some_calls_and_not_others_is_failing() -> None:
    clock = Clock()
    one = circuit(clock)
    assert not one.failing
    fails(one, 1)
    assert one.passes()
    one.answered()
    clock.now += FAILING - 1
    assert (one.open, one.failing) == (False, True)
    clock.now += 1
    assert not one.failing


@pytest.fixture
def silent() -> Iterator[Proxy]:
    """A server that accepts requests and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as nobody, Proxy(nobody.getsockname()[:2]) as between:
        yield between


def api_at(between: Proxy, **more: object) -> Api:
    configuration = Configuration()
    configuration.host = f"http://{between.address}"
    return Api(configuration, "here", **more)  # type: ignore[arg-type]


def test_exchanges_within_a_time_have_that_time_in_total(silent: Proxy) -> None:
    api = api_at(silent, timeout=60)
    with api.within(0.3):
        with pytest.raises(Busy, match="did not answer within 0"):
            api.create("configmaps", {})
        with pytest.raises(Busy, match="answers too slowly"):
            api.create("configmaps", {})
    assert silent.connections == 1
    with api.within(0.2), pytest.raises(Busy, match="did not answer"):
        api.read("configmaps", "x")
    api.close()


def test_no_log_is_followed_while_the_server_is_silent(silent: Proxy) -> None:
    api = api_at(silent, timeout=0.2, circuit=circuit(Clock()))
    for _ in range(FAILURES):
        with pytest.raises(Busy, match="did not answer"), api.stream(api.path("pods", "x", "log")):
            pass
    asked = silent.connections
    with pytest.raises(Busy, match="Try again"), api.stream(api.path("pods", "x", "log")):
        pass
    assert silent.connections == asked
    api.close()


class HalfDead(BaseHTTPRequestHandler):
    """A server that answers lists, but blocks writes until `let` is set."""

    let: threading.Event
    writing: threading.Semaphore

    def do_GET(self) -> None:
        self._answer(200, b'{"metadata":{"resourceVersion":"1"},"items":[]}')

    def do_POST(self) -> None:
        self.writing.release()
        assert self.let.wait(60)
        self._answer(503, b"{}")

    def _answer(self, status: int, body: bytes) -> None:
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def half_dead() -> Iterator[tuple[str, type[HalfDead]]]:
    class Fresh(HalfDead):
        let, writing = threading.Event(), threading.Semaphore(0)

    with ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", Fresh
        finally:
            Fresh.let.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["another", "b-0"], ids=["for a turn", "for the same record"])
def test_nobody_waits_long_while_some_calls_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of several API servers hangs, so the requests to it may occupy all writers."""
    monkeypatch.setattr(store, "LATE", 0.1)
    breaker = Circuit(failures=1000, silence=1000)
    with half_dead() as (host, server), ThreadPoolExecutor(store.WRITERS) as others:
        configuration = Configuration()
        configuration.host = host
        api = Api(configuration, "here", timeout=60, circuit=breaker)
        records = KubernetesRecords(api, RELEASE)
        waiting = [others.submit(records.accept, [new_submission(f"b-{number}")]) for number in range(store.WRITERS)]
        for _ in waiting:
            assert server.writing.acquire(timeout=60)
        assert breaker.passes()
        breaker.unanswered()
        with pytest.raises(Unavailable, match="does not answer all calls"):
            records.accept([new_submission(name, "2")])
        assert not any(one.done() for one in waiting), "it still hangs"
        server.let.set()
        for one in waiting:
            with pytest.raises(Unavailable):
                one.result()
        records.close()
        api.close()
