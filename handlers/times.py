"""Times as people read them: an age in words, the exact moment beside it, and how long something took."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from handlers.services import services

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
DATED = 30 * DAY
"""From this age on the date says more."""


def age(at: datetime, now: datetime) -> str:
    """`just now`, `3 min ago`, `2 h ago`, `5 d ago`, or the date; a time to come (clocks differ) is `just now`."""
    since = now - at
    if since < MINUTE:
        return "just now"
    if since >= DATED:
        return f"{at:%Y-%m-%d}"
    unit, name = next((unit, name) for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")) if since >= unit)
    return f"{since // unit} {name} ago"


def span(seconds: float) -> str:
    """`42 s`, `1 min 5 s`, `2 h 3 min`."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# As filters of the templates: they are given times, and seconds, as the API has them


def ago(time: str | None) -> str:
    return "" if time is None else age(datetime.fromisoformat(time), services().now())


def minute(time: str | None) -> str:
    return "" if time is None else f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"


def exact(time: str | None) -> str:
    return "" if time is None else f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M:%S} UTC"


def lasted(build: Mapping[str, Any]) -> str:
    """How long a build, or one attempt at it, ran; empty before its end."""
    if not build["started_at"] or not build["finished_at"]:
        return ""
    return _between(build["started_at"], datetime.fromisoformat(build["finished_at"]))


def runs(build: Mapping[str, Any]) -> str:
    """The same, and of one that runs how long it has until now."""
    if build["state"] == "running" and build["started_at"]:
        return _between(build["started_at"], services().now())
    return lasted(build)


def _between(began: str, ended: datetime) -> str:
    return span((ended - datetime.fromisoformat(began)).total_seconds())


FILTERS = (ago, minute, exact, lasted, runs, span)
