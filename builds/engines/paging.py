"""Positions in a list that is read newest first, the same for every engine and replica."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

from builds.build import Build
from builds.engines import UNREADABLE

MAX_LISTED = 1000
"""Builds on one page of a list."""

Place = tuple[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)], str]
"""The end of a page: the creation time of its last build (`microseconds`), and its name."""


def microseconds(time: datetime) -> int:
    """Microseconds since 1970."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def place_of(build: Build) -> Place:
    return microseconds(build.created_at), build.name


def before_all(place: Place) -> Place:
    """A position before all builds of that time. (Names are lower-case ASCII.)"""
    return place[0], "~"


def cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def place(text: str) -> Place:
    """Parses a cursor. Raises ValueError for a text that `cursor` did not make."""
    try:
        found: Place = msgspec.json.decode(base64.b64decode(text, altchars=b"-_", validate=True), type=Place)
    except UNREADABLE as error:
        raise ValueError("Invalid cursor. Send the cursor of the last page.") from error
    return found
