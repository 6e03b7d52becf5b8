"""Traces: valid values are passed on unchanged, and invalid ones are dropped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.tracing import MAX_MEMBERS, MAX_STATE, Trace, trace_of
from eventing.wire import is_traceparent

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
KEYS = st.from_regex(r"[a-z0-9][a-z0-9_*/@-]{0,20}", fullmatch=True)
VALUES = st.from_regex(r"[ -+\--<>-~]{0,60}[!-+\--<>-~]", fullmatch=True)
MEMBERS = st.lists(st.builds("{}={}".format, KEYS, VALUES), min_size=1, max_size=MAX_MEMBERS)


@pytest.mark.parametrize("carrier", [{}, {"traceparent": None}, {"traceparent": 5}, {"tracestate": "a=1"}])
def test_no_trace(carrier: dict[str, object]) -> None:
    assert trace_of(carrier) is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (None, None),
        ("", None),
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (" a=1 ,\tb=2 ,, ", "a=1,b=2"),
        ("fw529a3039@dt=FfffFfff", "fw529a3039@dt=FfffFfff"),
        ("a", None),
        ("a=1,b", None),
        ("A=1", None),
        ("a=1=2", None),
        ("a=é", None),
        ("a=1\r\nx: y", None),
        (",".join(f"k{n}=1" for n in range(33)), None),
        (True, None),
    ],
)
def test_states(state: object, kept: str | None) -> None:
    """https://www.w3.org/TR/trace-context/#tracestate-header"""
    found = trace_of({"traceparent": PARENT, "tracestate": state})
    assert found == Trace(traceparent=PARENT, tracestate=kept)
    assert found is not None
    assert found.carried == {"traceparent": PARENT, **({"tracestate": kept} if kept else {})}


@given(MEMBERS)
def test_a_state_that_is_too_long_loses_whole_members_from_the_right(members: list[str]) -> None:
    found = trace_of({"traceparent": PARENT, "tracestate": ",".join(members)})
    assert found is not None
    stripped = [member.strip(" ") for member in members]
    kept = (found.tracestate or "").split(",") if found.tracestate else []
    assert len(found.tracestate or "") <= MAX_STATE
    assert kept == stripped[: len(kept)]
    if len(kept) < len(stripped):
        assert len(",".join(stripped[: len(kept) + 1])) > MAX_STATE


@given(st.text(), st.text())
def test_whatever_comes_what_goes_on_is_valid(parent: str, state: str) -> None:
    found = trace_of({"traceparent": parent, "tracestate": state})
    assert (found is not None) is is_traceparent(parent)
    again = trace_of({"traceparent": PARENT, "tracestate": state})
    assert again is not None
    assert trace_of(again.carried) == again


def test_as_an_environment() -> None:
    trace = Trace(traceparent=PARENT, tracestate="a=1")
    assert trace.environment == {"TRACEPARENT": PARENT, "TRACESTATE": "a=1"}
    assert trace.id == "4bf92f3577b34da6a3ce929d0e0e4736"
