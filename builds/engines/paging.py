"""Places in a list that is read newest first, the same for every engine and replica."""

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
"""Where a page ended: when its last build was made (`microseconds`), and its name."""


def microseconds(time: datetime) -> int:
    """Since 1970."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def place_of(build: Build) -> Place:
    return microseconds(build.created_at), build.name


def before_all(place: Place) -> Place:
    """Before all that were made at that time: it names none of them. (Names are lower-case ASCII.)"""
    return place[0], "~"


def cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def place(text: str) -> Place:
    """Raises ValueError for what `cursor` has not made."""
    try:
        found: Place = msgspec.json.decode(base64.b64decode(text, altchars=b"-_", validate=True), type=Place)
    except UNREADABLE as error:
        raise ValueError("The cursor of a list is to be given back as it was received.") from error
    return found
