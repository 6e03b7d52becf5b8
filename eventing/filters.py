"""Which events a rule wants: the filter dialects of CloudEvents Subscriptions, as in a Knative Trigger.

Filters see context attributes only, never data; each compares text, so a boolean is `"true"` and an integer `"5"`.
https://github.com/cloudevents/spec/blob/main/subscriptions/spec.md §3.2.4.1.1
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from eventing.errors import FilterError
from eventing.event import Event
from eventing.http import wire_text

MAX_DEPTH = 20
"""Filters inside each other. YAML can hold a list that holds itself."""

_NAME = re.compile(r"[a-z0-9]+")
_COMPARED: Mapping[str, Callable[[str, str], bool]] = {
    "exact": str.__eq__,
    "prefix": str.startswith,
    "suffix": str.endswith,
}
_COMBINED = ("all", "any", "not")


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """One filter: `attributes` for `exact`, `prefix` and `suffix`, `filters` for `all`, `any` and `not` (just one)."""

    dialect: str
    attributes: Mapping[str, str] = {}
    filters: tuple[Filter, ...] = ()


def parse(value: object, where: str = "filter") -> Filter:
    """The filter in a plain value as YAML or JSON give it, such as `{"prefix": {"source": "https://…"}}`.

    Raises FilterError, whose message starts with the place, `where` being that of the whole.
    """
    return _parse(value, where, MAX_DEPTH)


def matches(wanted: Filter, event: Event) -> bool:
    """Whether the event is one that the filter wants. An absent attribute matches nothing (and `not` turns that)."""
    match wanted.dialect:
        case "all":
            return all(matches(part, event) for part in wanted.filters)
        case "any":
            return any(matches(part, event) for part in wanted.filters)
        case "not":
            return not matches(wanted.filters[0], event)
        case dialect:
            values = {name: event.attribute(name) for name in wanted.attributes}
            return all(
                value is not None and _COMPARED[dialect](wire_text(value), wanted.attributes[name])
                for name, value in values.items()
            )


def _parse(value: object, where: str, levels: int) -> Filter:
    if not levels:
        raise FilterError(f"{where[:200]}…: filters nest more than {MAX_DEPTH} levels deep.")
    if not isinstance(value, dict) or len(value) != 1:
        raise FilterError(f"{where}: a filter is an object with one key, one of {', '.join((*_COMPARED, *_COMBINED))}.")
    ((dialect, content),) = value.items()
    place = f"{where}.{dialect[:20]}" if isinstance(dialect, str) else where
    if dialect in _COMPARED:
        return Filter(dialect=dialect, attributes=_attributes(content, place))
    if dialect == "not":
        return Filter(dialect=dialect, filters=(_parse(content, place, levels - 1),))
    if dialect in _COMBINED:
        if not isinstance(content, list) or not content:
            raise FilterError(f"{place}: this takes a list of one or more filters.")
        parts = (_parse(part, f"{place}[{index}]", levels - 1) for index, part in enumerate(content))
        return Filter(dialect=dialect, filters=tuple(parts))
    raise FilterError(f"{place}: no such dialect; there are {', '.join((*_COMPARED, *_COMBINED))}.")


def _attributes(content: object, where: str) -> dict[str, str]:
    if not isinstance(content, dict) or not content:
        raise FilterError(f"{where}: this takes an object of one or more attributes and their values.")
    for name, value in content.items():
        if not isinstance(name, str):
            raise FilterError(f"{where}: the name of an attribute is a string.")
        if not _NAME.fullmatch(name):
            raise FilterError(f"{where}: {name[:40]!r} is no attribute name (a-z and 0-9; data cannot be seen).")
        if not isinstance(value, str) or not value:
            raise FilterError(f"{where}.{name[:40]}: the value must be a string that is not empty; put it in quotes.")
    return dict(content)
