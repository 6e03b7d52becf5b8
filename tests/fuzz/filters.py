"""`eventing.filters`: any JSON value is either a working filter or a FilterError."""

from __future__ import annotations

import contextlib
import json

from eventing.errors import FilterError
from eventing.event import Event
from eventing.filters import matches, parse

EVENT = Event(id="1", source="https://github.com/our-org/x", type="com.github.push", extensions={"truth": True, "n": 5})


def filters(data: bytes) -> None:
    """`data`: JSON."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(FilterError):
        assert matches(parse(value), EVENT) in (True, False)
