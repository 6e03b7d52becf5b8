"""A Git host that hangs: the limit on waiting callers, and the requests that it does not affect."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from builds.build import Kind
from builds.clients.git.lookups import SHARE, LookupLimiter
from builds.errors import TryAgain
from builds.intake import Intake
from builds.repository import Repository
from tests.builds.test_intake import COMMIT, NOW, Refs, Resolved, body, intake

MOST = 32


class Hanging(Refs):
    """A resolver that answers only after `answers` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.waiting = threading.Semaphore(0)

    def resolve(self, repository: Repository, ref: str | None) -> Resolved:
        self.waiting.release()
        assert self.answers.wait(30)
        return super().resolve(repository, ref)


def ask(way: Intake, by: str, commit: str | None = None) -> str:
    wanted = body(commit=commit) if commit else body()
    return way.submission(wanted, source="/api", id="1", type="asked", by=by, kind=Kind.PERSON, now=NOW).request.commit


@contextmanager
def hanging(people: list[str]) -> Iterator[Intake]:
    """Yield an intake while one request of each of `people` waits for the host. Each gets its answer at the end."""
    refs = Hanging()
    way = intake(refs, lookups=LookupLimiter(MOST))
    with ThreadPoolExecutor(len(people)) as pool:
        waiting: list[Future[str]] = [pool.submit(ask, way, by) for by in people]
        try:
            for _ in people:
                assert refs.waiting.acquire(timeout=30)
            yield way
        finally:
            refs.answers.set()
        assert {each.result(30) for each in waiting} == {"1" * 40}
    assert ask(way, people[0]) == "1" * 40  # the places are free again


def test_one_person_has_a_share_of_the_places() -> None:
    with hanging(["user:ada"] * SHARE) as way:
        with pytest.raises(TryAgain, match="share") as refused:
            ask(way, "user:ada")
        assert refused.value.status == 503
        with pytest.raises(TryAgain, match="share"):
            ask(way, "user:ada")
        assert ask(way, "user:ada", COMMIT) == COMMIT


def test_no_more_wait_than_there_are_places_and_who_brings_a_commit_needs_none() -> None:
    with hanging([f"user:{number}" for number in range(MOST)]) as way:
        for by in ("user:ada", "token:ci", "webhook:github"):
            with pytest.raises(TryAgain, match="Too many") as refused:
                ask(way, by)
            assert refused.value.retry_after > 0
        assert ask(way, "user:ada", COMMIT) == COMMIT
