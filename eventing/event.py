"""A CloudEvent as a value: what every transport is decoded to and what every answer starts as.

The SDK's own event class fills in what is missing and changes the dictionary it is given, so an event here is a frozen
struct of our own and the SDK stays at the edge (`eventing.http`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

Scalar = str | int | bool
"""What an extension attribute may hold (CloudEvents 1.0, §3.1: String, Integer, Boolean; the rest travel as String)."""


Format = Literal["kiln", "cdevents"]
"""Whose words a sink is told in."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """One CloudEvent 1.0 (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md).

    `data` is a JSON value for JSON types (an array in it may be `wire.Pieces`), `bytes` for all others, one of the two
    where `datacontenttype` is absent, and `None` when there is none. `time` is aware. `source` and `id` together say
    which event it is: a second one with the same pair is the same event.
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
        """The context attribute of that name in its wire form, extensions included; `None` where it is absent."""
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
    """RFC 3339 in UTC with `Z`, as it is written everywhere here."""
    text: str = msgspec.to_builtins(time)
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
