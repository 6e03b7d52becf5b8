"""A CloudEvent as a value, independent of its transport.

The event class of the SDK fills in missing attributes and changes the dictionary that it receives. Kiln therefore uses
a frozen struct and keeps the SDK at the edge (`eventing.http`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

Scalar = str | int | bool
"""Types of an extension attribute (CloudEvents 1.0, §3.1: String, Integer, Boolean; other types travel as String)."""


Format = Literal["kiln", "cdevents"]
"""The vocabulary of the events that a sink receives."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """One CloudEvent 1.0 (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md).

    `data` is a JSON value for JSON types (an array in it may be `wire.Pieces`), `bytes` for all others, one of the two
    without `datacontenttype`, and `None` without data. `time` is aware. `source` and `id` together identify the event:
    two events with the same pair are the same event.
    """

    id: str
    source: str
    type: str
    subject: str | None = None
    time: datetime | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    extensions: Mapping[str, Scalar] = {}
    data: object = None

    def attribute(self, name: str) -> Scalar | None:
        """Return the context attribute in its wire form, extensions included; `None` if absent."""
        if name == "specversion":
            return "1.0"
        if name == "time":
            return None if self.time is None else timestamp(self.time)
        if name in CONTEXT:
            value: str | None = getattr(self, name)
            return value
        return self.extensions.get(name)


CONTEXT = frozenset({"id", "source", "type", "subject", "time", "datacontenttype", "dataschema"})


def timestamp(time: datetime) -> str:
    """RFC 3339 in UTC with `Z`, the form that all of Kiln writes."""
    text: str = msgspec.to_builtins(time)
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
