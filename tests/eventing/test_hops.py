"""The hop count that ends chains of events caused by one another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eventing.event import Event
from eventing.hops import EXTENSION, MOST, MOST_OWN, OWN, counted, hops_left, is_spent, next_hop


def carrying(said: object) -> Event:
    return Event(id="1", source="/here", type="t", extensions={EXTENSION: said})  # type: ignore[dict-item]


@given(st.integers(-(2**31), 2**31 - 1))
def test_a_count_is_the_same_as_number_and_as_text(count: int) -> None:
    assert hops_left(carrying(count)) == hops_left(carrying(str(count))) == min(max(count, 0), MOST)
    assert is_spent(carrying(count)) == (count <= 0)


@given(st.text() | st.booleans())
def test_what_is_no_number_says_nothing(said: object) -> None:
    left = hops_left(carrying(said))
    assert left is None or str(said).lstrip("-").isdigit()


@given(st.lists(st.none() | st.integers(0, MOST)))
def test_what_follows_has_less_than_each_that_it_follows_from(left: list[int | None]) -> None:
    following = next_hop(left)
    known = [each for each in left if each is not None]
    assert (following is None) == (not known)
    assert following is None or all(0 <= following < max(each, 1) for each in known)


@given(st.none() | st.integers(0, MOST))
def test_a_cdevent_has_a_count_of_its_own_that_is_never_more(left: int | None) -> None:
    extensions = counted({} if left is None else {EXTENSION: left})
    assert extensions[OWN] == min(MOST_OWN, MOST_OWN if left is None else left)
    assert hops_left(Event(id="1", source="/here", type="t", extensions=extensions)) == extensions[OWN]
