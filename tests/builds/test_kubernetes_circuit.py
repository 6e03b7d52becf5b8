"""Who asks a server that does not answer is told so at once, and it is tried again by itself."""

from __future__ import annotations

import socket

import pytest
from kubernetes.client.configuration import Configuration

from builds.engines.kubernetes.api import Api, Busy
from builds.engines.kubernetes.circuit import FAILURES, SILENCE, SUSPICIOUS, Circuit
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
