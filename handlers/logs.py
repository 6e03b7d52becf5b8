"""Follow a build's log: server-sent events that any replica can resume.

No state remains between two requests: the number of a log line is its id, so `Last-Event-ID` suffices to resume. The
record is always read before the log. A log that is read after the end of its attempt is therefore complete; only then
does the stream continue with the next attempt, or end.

`follow` finds the news. Each API formats them: this module for Kiln's API, `binderhub` for BinderHub's.
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
from handlers.problems import BUSY_RETRY_AFTER, UNAVAILABLE_RETRY_AFTER, Problem

log = logging.getLogger(__name__)

KEEPALIVE = 10.0
"""Seconds of silence before a comment: proxies close idle connections, and only a write detects a lost viewer."""
POLL_INTERVAL = 0.5
"""Seconds between two reads of a growing log."""
CHANGE_TIMEOUT = 2.0
"""Seconds to wait for a change of the record while no attempt runs."""
UNREADABLE = 10.0
"""Seconds during which an unreadable log of an ended attempt is retried, so that a lost node does not block the end."""

SHARES = 4
"""One person's share of all viewers' places."""

PIECE = 1 << 16
"""Bytes per packet, plus a frame."""

Position = tuple[int, int]
"""(attempt, line): the last line that the viewer has."""


class Viewers:
    """Count the viewers of logs. Each holds a thread of web, so there is a limit, and a share of it for each person."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._share = max(1, limit // SHARES)
        self._lock = threading.Lock()
        self._here = Counter[str]()

    def enter(self, by: str | None) -> Callable[[], None]:
        """Take a place. The returned function releases it; further calls have no effect.

        Raises Problem 429 beyond a person's share, 503 without a free place.
        """
        who = by or ""
        with self._lock:
            if self._here.total() >= self._limit:
                raise Problem(503, "Too many logs are being followed. Retry.", {"Retry-After": str(BUSY_RETRY_AFTER)})
            if by is not None and is_person(by) and self._here[who] >= self._share:
                said = f"You already follow {self._share} logs, the limit for one person."
                raise Problem(429, said, {"Retry-After": str(BUSY_RETRY_AFTER)})
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
    """Return the position in a `Last-Event-ID`; `None` if it belongs to another build."""
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
    """Yield the news of a build from `position` on: its record, each line of its log, `None` after each read.

    The last is the record of the `ended` build, unless web is `stopping`. An unreadable log is retried. Raises
    NotFound, Unavailable for the record.
    """
    attempt, line = position
    shown: str | None = None
    failing: float | None = None
    build = records.get(name)
    while not stopping.is_set():
        if build.revision != shown and not ended(build):
            yield build
            shown = build.revision
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
        build = (
            records.changed(name, build.revision, POLL_INTERVAL if build.live or failing else CHANGE_TIMEOUT) or build
        )


def begun(lines: Iterator[LogLine]) -> Iterator[LogLine]:
    """Read the first of the lines now, because an error must show before the answer begins.

    Raises Problem 503.
    """
    try:
        return chain([*islice(lines, 1)], lines)
    except Unavailable as error:
        log.warning("Cannot read a log: %s", error)
        raise Problem(503, "The log is unavailable. Retry.", {"Retry-After": str(UNAVAILABLE_RETRY_AFTER)}) from error


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
    """Yield the event stream of a build from `position` to its end.

    `shape` makes the JSON of a `state` event, `shape_line` that of a `log` event.

    The stream ends early, without a last `state`, if the record is unavailable or web is `stopping`. The viewer then
    resumes from the position.
    """
    yield from kept_alive(_said(follow(records, name, position, stopping), shape, shape_line))


def kept_alive(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Join the frames up to an empty one into one piece, and insert a comment after `KEEPALIVE` seconds without frames.

    A piece costs a packet and a turn of a thread, once per viewer.
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
    """Return the answer that streams them. `leave` releases a viewer's place when the answer is closed."""
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
    last = b""
    with suppress(NotFound, Unavailable):
        for new in seen:
            if new is None:
                yield b""
            elif isinstance(new, LogLine):
                yield frame(shape_line(new), event="log", id=f"{new.attempt}:{new.number}")
            else:
                state = frame(shape(new), event="state")
                yield b"" if state == last else state
                last = state


def frame(value: object, *, event: str | None = None, id: str | None = None) -> bytes:  # noqa: A002
    """Format one event (https://html.spec.whatwg.org/multipage/server-sent-events.html). JSON has no line break."""
    fields = {"id": id, "event": event}
    head = "".join(f"{name}: {value}\n" for name, value in fields.items() if value)
    return f"{head}data: ".encode() + spaced(value) + b"\n\n"


def spaced(value: object) -> bytes:
    """Format JSON with a space after each `:` and `,`: scripts search BinderHub's for `"phase": "ready"`."""
    return msgspec.json.format(msgspec.json.encode(value), indent=0)
