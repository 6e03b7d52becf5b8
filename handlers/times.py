"""Times and durations in words, as functions and as filters for templates."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from handlers.services import services

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
MAX_AGE = 30 * DAY
"""From this age on the pages show the date instead."""


def age(at: datetime, now: datetime) -> str:
    """Return `just now`, `3 min ago`, `2 h ago`, `5 d ago`, or the date. A future time is `just now`: clocks differ."""
    since = now - at
    if since < MINUTE:
        return "just now"
    if since >= MAX_AGE:
        return f"{at:%Y-%m-%d}"
    unit, name = next((unit, name) for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")) if since >= unit)
    return f"{since // unit} {name} ago"


def duration(seconds: float) -> str:
    """Return `42 s`, `1 min 5 s` or `2 h 3 min`."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# Filters for templates. Their arguments are times (ISO 8601) and builds as the API shows them.


def ago(time: str | None) -> str:
    return "" if time is None else age(datetime.fromisoformat(time), services().now())


def date_time(time: str | None) -> str:
    return "" if time is None else f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"


def exact_time(time: str | None) -> str:
    return "" if time is None else f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M:%S} UTC"


def run_time(build: Mapping[str, Any]) -> str:
    """Return the duration of a build or an attempt; empty before its end."""
    if not build["started_at"] or not build["finished_at"]:
        return ""
    return _between(build["started_at"], datetime.fromisoformat(build["finished_at"]))


def elapsed(build: Mapping[str, Any]) -> str:
    """Return the duration of a build; until now if the build is running."""
    if build["state"] == "running" and build["started_at"]:
        return _between(build["started_at"], services().now())
    return run_time(build)


def _between(start: str, end: datetime) -> str:
    return duration((end - datetime.fromisoformat(start)).total_seconds())


FILTERS = (ago, date_time, duration, elapsed, exact_time, run_time)
