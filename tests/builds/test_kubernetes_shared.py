"""Single flight: callers that want the same work share one run, and none gets the answer to another key."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from builds.engines.kubernetes.shared import CoalescedWrites, FairSemaphore, SingleFlight
from tests.parts.kiln import until


class Store:
    """A store that blocks each write until the test releases it, and raises `error` if it is set."""

    def __init__(self) -> None:
        self.written: list[tuple[str, list[int]]] = []
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)
        self.error: Exception | None = None
        self.joint: CoalescedWrites[int, int] = CoalescedWrites(self._write)

    def _write(self, key: str, wanted: Sequence[int]) -> int:
        self.begun.release()
        assert self.let.acquire(timeout=20)
        if self.error:
            raise self.error
        self.written.append((key, list(wanted)))
        return len(self.written)

    def wait_for(self, key: str, number: int) -> None:
        """Wait until `number` callers wait for the next write."""
        until(lambda: len(self.joint._queues[key].next.wanted) == number)


class Key:
    """A key that counts its lookups. Each caller looks it up twice, and then waits."""

    looked_up = 0

    def __hash__(self) -> int:
        self.looked_up += 1
        return id(self)


@pytest.fixture
def store() -> Store:
    return Store()


def asked(store: Store, threads: ThreadPoolExecutor, key: str, numbers: range) -> list[Future[int]]:
    return [threads.submit(store.joint, key, [number]) for number in numbers]


def test_what_is_wanted_while_one_writes_is_the_next_write(store: Store) -> None:
    with ThreadPoolExecutor(20) as threads:
        first = asked(store, threads, "a", range(1))
        assert store.begun.acquire(timeout=20)
        others = asked(store, threads, "a", range(1, 20))
        store.wait_for("a", 19)
        store.let.release(2)
        assert [one.result() for one in (*first, *others)] == [1, *[2] * 19]
    assert [(key, sorted(wanted)) for key, wanted in store.written] == [("a", [0]), ("a", [*range(1, 20)])]
    assert not store.joint._queues, "nothing is kept of those who have gone"


def test_who_waits_for_a_turn_takes_along_what_comes_meanwhile() -> None:
    turn, written = threading.Lock(), list[list[int]]()
    joint: CoalescedWrites[int, None] = CoalescedWrites(lambda _, wanted: written.append(sorted(wanted)), lambda: turn)
    with ThreadPoolExecutor(5) as threads:
        with turn:
            many = [threads.submit(joint, "a", [number]) for number in range(5)]
            until(lambda: len(joint._queues["a"].next.wanted) == 5)
        assert [one.result() for one in many] == [None] * 5
    assert written == [[0, 1, 2, 3, 4]]


def test_who_gets_no_turn_writes_nothing_and_the_next_is_asked_anew() -> None:
    turns, written = FairSemaphore(1), list[list[int]]()
    joint: CoalescedWrites[int, None] = CoalescedWrites(
        lambda _, wanted: written.append([*wanted]), lambda: turns.one(0.01)
    )
    with turns.one(1), pytest.raises(TimeoutError):
        joint("a", [1])
    joint("a", [2])
    assert written == [[2]]


def test_an_error_is_for_all_who_were_in_it_and_for_nobody_else(store: Store) -> None:
    with ThreadPoolExecutor(20) as threads:
        first = asked(store, threads, "a", range(1))
        assert store.begun.acquire(timeout=20)
        others = asked(store, threads, "a", range(1, 5))
        store.wait_for("a", 4)
        store.error = ValueError("full")
        store.let.release(2)
        assert [str(one.exception()) for one in (*first, *others)] == ["full"] * 5
    store.error = None
    store.let.release()
    assert store.joint("a", [6]) == 1


def test_one_does_not_wait_for_another_thing(store: Store) -> None:
    with ThreadPoolExecutor(2) as threads:
        both = [*asked(store, threads, "a", range(1)), *asked(store, threads, "b", range(1))]
        for _ in both:
            assert store.begun.acquire(timeout=20)
        store.let.release(2)
        assert {one.result() for one in both} == {1, 2}


def test_an_answer_that_fails_is_an_error_for_all_who_waited_for_it_and_the_next_asks_again() -> None:
    shared: SingleFlight[str] = SingleFlight(0)
    asking, let, asked, key = threading.Event(), threading.Event(), [], Key()

    def ask() -> str:
        asked.append(1)
        asking.set()
        assert let.wait(20)
        raise ValueError("nobody is there")

    with ThreadPoolExecutor(20) as threads:
        first = threads.submit(shared.get, key, ask)
        assert asking.wait(20)
        before = key.looked_up
        others = [threads.submit(shared.get, key, ask) for _ in range(19)]
        until(lambda: key.looked_up == before + 2 * len(others))
        let.set()
        errors = {str(one.exception()) for one in (first, *others)}
    assert errors == {"nobody is there"}
    assert len(asked) == 1
    assert shared.get(key, lambda: "somebody") == "somebody"
    assert shared.get(key, lambda: "somebody else") == "somebody else"


def test_who_does_not_wait_has_the_old_answer_while_another_asks() -> None:
    shared: SingleFlight[str] = SingleFlight(0)
    asking, let = threading.Event(), threading.Event()

    def ask() -> str:
        asking.set()
        assert let.wait(20)
        return "new"

    assert shared.get("a", lambda: "old", waits=False) == "old"
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(shared.get, "a", ask)
        assert asking.wait(20)
        assert shared.get("a", lambda: "nobody's", waits=False) == "old"
        other = threads.submit(shared.get, "a", lambda: "newer", max_age=20)
        let.set()
        assert [one.result(), other.result()] == ["new", "new"]
    assert shared.get("a", lambda: "newest", waits=False) == "newest"


class Counter:
    """Take one of two turns and hold it until `let` is released.

    The counter records the order of the holders, and their maximum at the same time.
    """

    def __init__(self) -> None:
        self.turns = FairSemaphore(2)
        self.came: list[int] = []
        self.there = 0
        self.most = 0
        self.lock = threading.Lock()
        self.let = threading.Semaphore(0)

    def take(self, number: int, timeout: float = 20) -> None:
        with self.turns.one(timeout):
            with self.lock:
                self.came.append(number)
                self.there += 1
                self.most = max(self.most, self.there)
            assert self.let.acquire(timeout=20)
            with self.lock:
                self.there -= 1

    def wait_for(self, *, waiting: int) -> None:
        until(lambda: len(self.turns._waiting) == waiting)


def test_turns_are_taken_in_the_order_in_which_they_are_wanted() -> None:
    counter = Counter()
    with ThreadPoolExecutor(20) as threads:
        taken = [threads.submit(counter.take, number) for number in range(2)]
        until(lambda: counter.there == 2)
        for number in range(2, 20):
            taken.append(threads.submit(counter.take, number))
            counter.wait_for(waiting=number - 1)
        for number in range(2, 20):
            counter.let.release()
            until(lambda number=number: len(counter.came) == number + 1)  # type: ignore[misc]
        counter.let.release(2)
        for one in taken:
            one.result()
    assert (counter.came[2:], counter.most) == ([*range(2, 20)], 2)


def test_who_has_waited_too_long_takes_no_turn_from_others() -> None:
    counter = Counter()
    with ThreadPoolExecutor(4) as threads:
        first = [threads.submit(counter.take, number) for number in range(2)]
        until(lambda: counter.there == 2)
        with pytest.raises(TimeoutError):
            counter.take(2, 0.01)
        last = threads.submit(counter.take, 3)
        counter.wait_for(waiting=1)
        counter.let.release(3)
        for one in (*first, last):
            one.result()
        counter.let.release(2)
        for number in (4, 5):
            counter.take(number, 0.01)
    assert counter.came[2:] == [3, 4, 5]


def test_an_error_gives_the_turn_back() -> None:
    turns = FairSemaphore(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="it"), turns.one(0.01):
            raise ValueError("it")


def test_who_has_no_hope_left_does_not_wait_for_a_turn() -> None:
    turns = FairSemaphore(1)

    def hopeless() -> None:
        raise ValueError("it")

    with turns.one(0.01), pytest.raises(ValueError, match="it"), turns.one(60, hopeless):
        pass
    with turns.one(0.01):
        pass
