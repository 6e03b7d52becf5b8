"""Places in a list that is read newest first: opaque to clients, the same for every engine and replica."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

from builds.engines import UNREADABLE

Place = tuple[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)], str]
"""Where a page ended: when its last build was made (`microseconds`), and its name."""


def microseconds(time: datetime) -> int:
    """Since 1970."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()


def place(text: str) -> Place:
    """Raises ValueError for what `cursor` has not made."""
    try:
        found: Place = msgspec.json.decode(base64.b64decode(text, altchars=b"-_", validate=True), type=Place)
    except UNREADABLE as error:
        raise ValueError("The cursor of a list is to be given back as it was received.") from error
    return found
