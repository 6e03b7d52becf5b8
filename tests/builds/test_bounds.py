"""The largest build that the settings allow: every request is either answered or refused on arrival.

Intake, plan and records are the real ones, and no sink accepts an event. The tests measure the largest object that
Kiln would ask the API server to store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from builds import chain, report
from builds.arguments import MAX_ARGUMENTS, MAX_BYTES, checked_arguments
from builds.build import (
    MAX_OUTBOX,
    Attempt,
    Build,
    Cause,
    Image,
    Kind,
    Node,
    Phase,
    RefusedTag,
    Result,
    Sighting,
    State,
    shortened,
)
from builds.builder.spec import Surroundings, spec_for
from builds.clients.tagging import MAX_MESSAGE, MAX_REFUSED
from builds.clients.tagging import MAX_TAGS as MAX_KEPT
from builds.engines import QueueFull, Submission
from builds.engines.kubernetes.jobs import job
from builds.engines.kubernetes.records import build_of, manifest
from builds.engines.marks import cancelled, joined
from builds.errors import Malformed
from builds.image import ImagePolicy
from builds.intake import MAX_TAGS, MAX_VALUE, Intake, Resolved
from builds.plan import Action, Confirm, Confirmation, Deliver, Facts, Limits, Report, Settle, Start, Word, plan
from builds.repository import MAX_REF, MAX_SUBDIR, MAX_URL, Policy
from builds.transitions import advance, delivered, undelivered
from builds.triggers import BuildRequestBody, from_body
from eventing.event import Event
from kiln.config import MAX_SINKS
from kiln.wiring import MAX_RULES
from tests.builds.kubernetes_objects import RELEASE, TEMPLATE
from tests.builds.plan_factories import NOW

CONFIGMAP = 1 << 20
"""https://kubernetes.io/docs/concepts/configuration/configmap/#motivation"""
ANNOTATIONS = 256 << 10
"""https://kubernetes.io/docs/reference/using-api/: of all annotations of an object."""
MARGIN = 0.95

WIDE = "\U0001f600"
"""A character of four bytes."""
LONG = WIDE * 5000
COMMIT = "c" * 40
PEOPLE = 100


class Unused:
    def resolve(self, *_: object) -> Resolved:
        raise AssertionError


INTAKE = Intake(
    instance="namespace/release", policy=Policy(), hosts={}, images=ImagePolicy("r.example/"), resolver=Unused()
)


def filled(beginning: str, length: int) -> str:
    return beginning + "x" * (length - len(beginning))


def body(person: int, *, tag: int) -> BuildRequestBody:
    """A request with every part at its maximum length and tags of `tag` characters, different for each person."""
    value = "v" * (MAX_BYTES // MAX_ARGUMENTS - 12)
    return BuildRequestBody(
        repository=filled("https://git.example.edu/a/", MAX_URL - 4),
        ref=filled(f"refs/heads/{person}-", MAX_REF),
        commit=COMMIT,
        subdir=WIDE * MAX_SUBDIR,
        build_args={f"A{n:02}": value for n in range(MAX_ARGUMENTS)},
        image=filled("r.example/i/", 200),
        tags=tuple(f"{person:03}{n:02}".ljust(tag, "t")[:128] for n in range(MAX_TAGS)),
    )


def ask(person: int, *, tag: int = 128, name: int = 20) -> Submission:
    """Submit the largest request; `name` is the length of the event's source, id and type."""
    return INTAKE.submission(
        from_body(body(person, tag=tag)),
        source=filled("/", name),
        id=filled(f"{person}-", name),
        type=filled("t", name),
        by=filled(f"user:{person}-", 255),
        chooses=True,
        kind=Kind.PERSON,
        now=NOW,
    )


class World:
    """One record, and a controller that carries out every planned action. No sink accepts an event until `deliver`."""

    def __init__(self, sinks: int) -> None:
        names = tuple(filled(f"sink-{n}-", 63) for n in range(sinks))
        self.sinks, self.others = names[: sinks // 2], names[sinks // 2 :]  # of each format
        self.now = NOW
        self.build: Build | None = None
        self.confirmation: Confirmation | None = None
        self.most = 0
        self.told: set[str] = set()

    @property
    def there(self) -> Build:
        assert self.build is not None
        return self.build

    def asks(self, asks: Sequence[Submission]) -> list[Cause]:
        """Return the causes that the queue accepted; the others got `QueueFull` and may retry."""
        taken = []
        for one in asks:
            late = replace(one, cause=replace(one.cause, at=self.now))
            with suppress(QueueFull):
                self.build = joined(self.build, [late], uid=lambda: "u" * 36, now=self.now, share=1000)
                taken.append(late.cause)
        self.build = replace(self.there, uid="u" * 36, revision="1")
        return taken

    def works(self, *sightings: Sighting) -> None:
        """Carry out the planned actions until none is left or an attempt starts."""
        while actions := [one for one in self.planned(sightings) if not isinstance(one, Deliver | Settle)]:
            for action in actions:
                self.does(action)
            if any(isinstance(action, Start) for action in actions):
                return

    def planned(self, sightings: Sequence[Sighting]) -> Sequence[Action]:
        facts = Facts(
            builds=(self.there,),
            sightings=sightings,
            nodes=(Node(name="n" * 253),),
            confirmations={self.there.name: self.confirmation} if self.confirmation else {},
        )
        return plan(facts, Limits(max_attempts=100), self.now)

    def does(self, action: Action) -> None:
        if isinstance(action, Confirm):
            self.confirmation = Confirmation(image=image(), causes=tuple(one.key for one in self.there.unanswered))
            return
        if isinstance(action, Report) and action.causes:
            self.confirmation = None
            self.told |= {*action.causes}
        self.build = advance(self.there, action, self.now, self.announce)
        self.most = max(self.most, len(self.there.status.outbox))

    def announce(
        self, after: Build, word: Word, attempt: int, cause: Cause | None
    ) -> list[tuple[Event, tuple[str, ...]]]:
        told = report.event(after, word, attempt, source="/" + "s" * 200, now=self.now, cause=cause)
        return [(told, self.sinks), *((each, self.others) for each in chain.events(after, word, attempt, told, cause))]

    def tries(self, end: Callable[[Sighting], Sighting]) -> None:
        """Run one attempt from its start to the given end."""
        self.now += timedelta(minutes=6)
        self.works()
        live = self.there.live
        assert live is not None
        seen = Sighting(build=self.there.name, attempt=live.number, phase=Phase.RUNNING, node="n", started_at=self.now)
        self.works(seen)
        self.works(end(seen))

    def deliver(self) -> None:
        """Deliver every pending event to its sink."""
        for announcement in self.there.status.outbox:
            for one in announcement.deliveries:
                self.build = delivered(self.there, one.event, one.sink, self.now, error=None)

    def refused(self) -> Build:
        """Return the record with the longest error at every pending delivery."""
        first = self.there.status.outbox[0].deliveries[0]
        tried = undelivered(self.there, first.event, first.sink, self.now, error=LONG, pause=timedelta(hours=1))
        error = tried.status.outbox[0].deliveries[0].error
        outbox = tuple(
            replace(one, deliveries=tuple(replace(each, tries=999, at=NOW, error=error) for each in one.deliveries))
            for one in tried.status.outbox
        )
        return replace(tried, status=replace(tried.status, outbox=outbox))


def image() -> Image:
    tags = tuple(f"{n:03}".ljust(128, "t") for n in range(MAX_KEPT))
    refused = tuple(RefusedTag(name=tag, message="m" * MAX_MESSAGE) for tag in tags[:MAX_REFUSED])
    digest = "sha256:" + "0" * 64
    return Image(repository="r" * 255, tag="t" * 128, digest=digest, tags=tags, refused_tags=refused)


def lost(seen: Sighting) -> Sighting:
    return replace(seen, phase=Phase.LOST, waiting=LONG)


def succeeded(seen: Sighting) -> Sighting:
    result = Result(state=State.SUCCEEDED, image=image(), log_tail=LONG)
    return replace(seen, phase=Phase.ENDED, result=result)


def fits(build: Build) -> None:
    """Check that the API server accepts the size of the record and of the Job of its next attempt."""
    stored = manifest(build, RELEASE, None)
    stored["metadata"] |= {"uid": build.uid, "resourceVersion": build.revision}
    assert build_of(stored) == build
    assert _bytes(stored["data"]) + _bytes(stored["binaryData"]) < CONFIGMAP * MARGIN
    assert _bytes(stored["metadata"]["annotations"]) < ANNOTATIONS * MARGIN
    around = Surroundings(allowed_repositories=("a" * (MAX_RULES - 4),))
    attempt = build.status.attempts[-1]
    made = job(
        build, attempt, spec_for(build, attempt, around), template=TEMPLATE, image="i", release=RELEASE, owner={}
    )
    assert _bytes(made["spec"]["template"]["metadata"]["annotations"]) < ANNOTATIONS * MARGIN


def _bytes(texts: dict[str, str]) -> int:
    return sum(len(name) + len(text.encode()) for name, text in texts.items())


SHAPES = {"longest tags": {}, "longest ids": {"tag": 5, "name": MAX_VALUE}, "many": {"tag": 5, "name": 6}}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sinks", [12, MAX_SINKS])
def test_the_largest_build_that_can_be_asked_for_is_stored_and_answered(sinks: int, shape: str) -> None:
    world = World(sinks)
    people = iter(range(10_000))

    def ask_all() -> list[Cause]:
        return world.asks([ask(next(people), **SHAPES[shape]) for _ in range(PEOPLE)])

    first = ask_all()
    assert first
    for _ in range(9):
        world.tries(lost)
    fits(world.refused())
    world.tries(succeeded)
    assert world.there.status.state is State.SUCCEEDED
    late = ask_all()
    assert late
    world.works()
    while more := ask_all():  # until the outbox is full and refuses further causes
        late += more
        world.works()
    assert world.most <= MAX_OUTBOX
    fits(world.refused())
    while world.there.unanswered or world.there.status.outbox:
        world.deliver()
        world.works()
    assert {cause.key for cause in late} <= world.told


def test_a_build_that_is_asked_for_and_cancelled_again_and_again_is_bounded() -> None:
    """Each round has its own events, and no sink accepts any."""
    world = World(MAX_SINKS)
    for person in range(MAX_OUTBOX):
        if not world.asks([ask(person)]):
            break
        for _ in range(9):
            world.tries(lost)
        world.build = cancelled(world.there, None, world.now)
        world.works()
        assert world.there.status.state is State.CANCELLED
    else:
        raise AssertionError("it goes on for ever")
    assert world.most >= MAX_OUTBOX
    fits(world.refused())


def test_one_who_asks_without_end_is_told_to_come_back() -> None:
    """All requests merge into one cause."""
    build, taken = None, 0
    with suppress(QueueFull):
        for taken in range(10_000):
            one = ask(taken, tag=20)
            cause = replace(one.cause, by="token:ci", ref=None)
            build = joined(build, [replace(one, cause=cause)], uid=str, now=NOW, share=20)
    assert build is not None
    assert 10 < taken < 9_999
    assert len(build.causes) <= 2
    fits(replace(build, status=replace(build.status, attempts=(Attempt(number=1, node=None, written_at=NOW),))))


@given(st.text(st.characters()), st.integers(20, 300))
def test_what_is_shortened_fits_and_stays_as_it_is(text: str, most: int) -> None:
    short = shortened(text, most)
    assert len(msgspec.json.encode(short)) <= most
    assert shortened(short, most) == short
    if len(text) * 6 + 2 <= most:
        assert short == text.encode(errors="replace").decode()


def test_build_arguments_are_measured_as_they_are_stored() -> None:
    with pytest.raises(Malformed, match="as JSON"):
        checked_arguments({f"A{n}": "\x01" * 1000 for n in range(6)})
