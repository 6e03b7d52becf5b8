"""Following a build's log: server-sent events that any replica can go on with where another one stopped.

Nothing is kept between two requests: the log line's own number is its id, so `Last-Event-ID` says all there is to know.
The record is always read before the log. A log read after its attempt was seen to have ended is complete, and only
then does the stream go on to the next attempt, or end.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from builds.build import Build
from builds.engines import LogLine, NotFound, Records, Unavailable
from handlers import metrics

KEEPALIVE = 10.0
"""Seconds of silence after which a comment is sent: proxies close what says nothing, and a viewer who has gone is only
noticed by writing to them."""
LOOK = 0.5
"""Seconds between two looks at a log that grows."""
IDLE = 2.0
"""Seconds to wait for a change of the record while no attempt runs."""

Position = tuple[int, int]
"""(attempt, line): the last line that the viewer has."""


class Viewers:
    """How many follow a log now; each holds a thread of web, so there is a limit."""

    def __init__(self, limit: int) -> None:
        self._free = threading.BoundedSemaphore(limit)

    def enter(self) -> Callable[[], None] | None:
        """A place: what is returned gives it back, once, however often it is called. `None`: there is none left."""
        if not self._free.acquire(blocking=False):
            return None
        metrics.VIEWERS.inc()
        once = threading.Lock()

        def leave() -> None:
            if once.acquire(blocking=False):
                metrics.VIEWERS.dec()
                self._free.release()

        return leave


def resumed(last_event_id: str | None, build: Build) -> Position | None:
    """The position that a `Last-Event-ID` names; `None` where it is not one of this build's."""
    match = re.fullmatch(r"([1-9][0-9]{0,8}):(0|[1-9][0-9]{0,8})", last_event_id or "", re.ASCII)
    if not match or int(match[1]) > build.status.attempt:
        return None
    return int(match[1]), int(match[2])


def follow(
    records: Records,
    name: str,
    position: Position,
    shape: Callable[[Build], object],
    stopping: threading.Event,
) -> Iterator[bytes]:
    """The event stream of a build from `position` to its end; `shape` makes the JSON of a `state` event.

    Ends early, without a last `state`, when the record cannot be read or web is `stopping`: the viewer comes back with
    the position.
    """
    attempt, line = position
    told: bytes | None = None
    spoke = time.monotonic()
    try:
        build: Build = records.get(name)
        while not stopping.is_set():
            state = msgspec.json.encode(shape(build))
            if state != told and not build.state.ended:
                yield _frame("state", state)
                told, spoke = state, time.monotonic()
            for entry in records.log(name, attempt, after=line):
                yield _line(entry)
                line, spoke = entry.number, time.monotonic()
            if attempt < build.status.attempt:
                attempt, line = attempt + 1, 0
                continue
            if build.state.ended:
                yield _frame("state", state)
                return
            if time.monotonic() - spoke > KEEPALIVE:
                yield b": waiting\n\n"
                spoke = time.monotonic()
            build = records.changed(name, build.revision, LOOK if build.live else IDLE) or build
    except (NotFound, Unavailable):
        return


def _line(line: LogLine) -> bytes:
    data = msgspec.json.encode({"line": line.text, "phase": line.phase})
    return _frame("log", data, f"{line.attempt}:{line.number}")


def _frame(event: str, data: bytes, id: str | None = None) -> bytes:  # noqa: A002
    """One event (https://html.spec.whatwg.org/multipage/server-sent-events.html). JSON in UTF-8 has no line break."""
    head = f"id: {id}\n" if id else ""
    return f"{head}event: {event}\ndata: ".encode() + data + b"\n\n"
