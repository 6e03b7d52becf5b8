"""Following a build's log: server-sent events that any replica can go on with where another one stopped.

Nothing is kept between two requests: the log line's own number is its id, so `Last-Event-ID` says all there is to know.
The record is always read before the log. A log read after its attempt was seen to have ended is complete, and only
then does the stream go on to the next attempt, or end.

What is new is found here (`follow`); how it is said is each API's own: here it is ours, BinderHub's is in `binderhub`.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice

import msgspec
from flask import Response

from builds.build import Build, is_person
from builds.engines import LogLine, NotFound, Records, Unavailable
from handlers import metrics
from handlers.problems import AWAY, BUSY, Problem

log = logging.getLogger(__name__)

KEEPALIVE = 10.0
"""Seconds of silence after which a comment is sent: proxies close what says nothing, and a viewer who has gone is only
noticed by writing to them."""
LOOK = 0.5
"""Seconds between two looks at a log that grows."""
IDLE = 2.0
"""Seconds to wait for a change of the record while no attempt runs."""
UNREADABLE = 10.0
"""Seconds for which the log of an attempt that has ended is read again, where it cannot be read: a node that is gone
keeps nobody from the end."""

SHARES = 4
"""A person may have this part of all viewers' places."""

PIECE = 1 << 16
"""Bytes that are sent at once, and a frame more."""

Position = tuple[int, int]
"""(attempt, line): the last line that the viewer has."""


class Viewers:
    """How many follow a log now; each holds a thread of web, so there is a limit, and for a person a share of it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._share = max(1, limit // SHARES)
        self._lock = threading.Lock()
        self._here = Counter[str]()

    def enter(self, by: str | None) -> Callable[[], None]:
        """Takes a place: what is returned gives it back, once, however often it is called.

        Raises Problem: 429 where a person has their share, 503 where there is no place.
        """
        who = by or ""
        with self._lock:
            if self._here.total() >= self._limit:
                raise Problem(503, "As many logs are being followed as can be. Try again.", {"Retry-After": str(BUSY)})
            if by is not None and is_person(by) and self._here[who] >= self._share:
                said = f"You follow {self._share} logs already, which is one person's share."
                raise Problem(429, said, {"Retry-After": str(BUSY)})
            self._here[who] += 1
        metrics.VIEWERS.inc()
        once = threading.Lock()

        def leave() -> None:
            if once.acquire(blocking=False):
                metrics.VIEWERS.dec()
                with self._lock:
                    self._here[who] -= 1
                    self._here += Counter()  # without those who have left

        return leave


def resumed(last_event_id: str | None, build: Build) -> Position | None:
    """The position that a `Last-Event-ID` names; `None` where it is not one of this build's."""
    match = re.fullmatch(r"([1-9][0-9]{0,8}):(0|[1-9][0-9]{0,8})", last_event_id or "", re.ASCII)
    if not match or int(match[1]) > build.status.attempt:
        return None
    return int(match[1]), int(match[2])


def has_ended(build: Build) -> bool:
    return build.state.ended


def follow(
    records: Records,
    name: str,
    position: Position,
    stopping: threading.Event,
    ended: Callable[[Build], bool] = has_ended,
) -> Iterator[Build | LogLine | None]:
    """What is new of a build from `position` on: its record, each line of its log, `None` after each look.

    The last is the record of the build that has `ended`, unless web is `stopping`. A log that cannot be read is read
    again. Raises NotFound, Unavailable for the record.
    """
    attempt, line = position
    told: str | None = None
    failing: float | None = None
    build = records.get(name)
    while not stopping.is_set():
        if build.revision != told and not ended(build):
            yield build
            told = build.revision
        try:
            for entry in records.log(name, attempt, after=line):
                yield entry
                line = entry.number
            failing = None
        except Unavailable:
            failing = failing or time.monotonic()
        whole = failing is None or time.monotonic() - failing > UNREADABLE
        if whole and attempt < build.status.attempt:
            attempt, line, failing = attempt + 1, 0, None
            continue
        if whole and ended(build):
            yield build
            return
        yield None
        build = records.changed(name, build.revision, LOOK if build.live or failing else IDLE) or build


def begun(lines: Iterator[LogLine]) -> Iterator[LogLine]:
    """The same lines, the first of them read: what cannot be read has to show before the answer begins.

    Raises Problem 503.
    """
    try:
        return chain([*islice(lines, 1)], lines)
    except Unavailable as error:
        log.warning("A log cannot be read: %s", error)
        raise Problem(503, "The log cannot be read just now. Try again.", {"Retry-After": str(AWAY)}) from error


def line_as_json(line: LogLine) -> object:
    return {"line": line.text, "phase": line.phase}


def events(
    records: Records,
    name: str,
    position: Position,
    shape: Callable[[Build], object],
    stopping: threading.Event,
    *,
    shape_line: Callable[[LogLine], object] = line_as_json,
) -> Iterator[bytes]:
    """The event stream of a build from `position` to its end.

    `shape` makes the JSON of a `state` event, `shape_line` that of a `log` event.

    Ends early, without a last `state`, when the record cannot be read or web is `stopping`: the viewer comes back with
    the position.
    """
    yield from kept_alive(_said(follow(records, name, position, stopping), shape, shape_line))


def kept_alive(frames: Iterable[bytes]) -> Iterator[bytes]:
    """The frames up to one that is empty in one piece, and a comment after every `KEEPALIVE` seconds of empty ones.

    A piece is a packet and a turn of a thread, and there are as many as there are viewers.
    """
    spoke, said = time.monotonic(), bytearray()
    for each in frames:
        said += each
        if each and len(said) < PIECE:
            continue
        if said or time.monotonic() - spoke > KEEPALIVE:
            yield bytes(said) or b": waiting\n\n"
            said.clear()
            spoke = time.monotonic()
    if said:
        yield bytes(said)


def streamed(frames: Iterable[bytes], leave: Callable[[], None] | None = None) -> Response:
    """The answer that sends them as they come. `leave` gives a viewer's place back when it is closed, by whomever."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    response = Response(frames, headers=headers, content_type="text/event-stream")
    if leave:
        response.call_on_close(leave)
    return response


def _said(
    seen: Iterable[Build | LogLine | None],
    shape: Callable[[Build], object],
    shape_line: Callable[[LogLine], object],
) -> Iterator[bytes]:
    told = b""
    with suppress(NotFound, Unavailable):
        for new in seen:
            if new is None:
                yield b""
            elif isinstance(new, LogLine):
                yield frame(shape_line(new), event="log", id=f"{new.attempt}:{new.number}")
            else:
                state = frame(shape(new), event="state")
                yield b"" if state == told else state
                told = state


def frame(value: object, *, event: str | None = None, id: str | None = None) -> bytes:  # noqa: A002
    """One event (https://html.spec.whatwg.org/multipage/server-sent-events.html). JSON in UTF-8 has no line break."""
    fields = {"id": id, "event": event}
    head = "".join(f"{name}: {value}\n" for name, value in fields.items() if value)
    return f"{head}data: ".encode() + spaced(value) + b"\n\n"


def spaced(value: object) -> bytes:
    """JSON with a space after each `:` and `,`: scripts search BinderHub's for `"phase": "ready"`."""
    return msgspec.json.format(msgspec.json.encode(value), indent=0)
