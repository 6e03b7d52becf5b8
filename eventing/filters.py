"""The filter dialects of CloudEvents Subscriptions, as in a Knative Trigger.

Filters see context attributes only. A condition uses the same dialects on values inside the data, and has a dialect of
its own, `exists`. All comparisons are textual, so a boolean is `"true"` and an integer `"5"`.
https://github.com/cloudevents/spec/blob/main/subscriptions/spec.md §3.2.4.1.1
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from eventing.errors import DecodeError, FilterError
from eventing.event import CONTEXT, Event
from eventing.http import MAX_NAME, event_of, wire_text

MAX_DEPTH = 20
"""Nesting levels of filters. YAML can hold a list that contains itself."""
MAX_STEPS = 10_000
"""Steps of the search for an event that could match the filters. A rule that exceeds them counts as satisfiable."""

DATA_VALUE = r"data(?:\.[A-Za-z0-9_-]+)+"
"""The path of a value inside the data."""
ATTRIBUTES = CONTEXT | {"specversion"}

MAX_SHOWN = 300
"""Characters of a value, or of a list of reasons, in an explanation."""

_NAME = re.compile(rf"[a-z0-9]{{1,{MAX_NAME}}}")
_COMPARED: Mapping[str, Callable[[str, str], bool]] = {
    "exact": str.__eq__,
    "prefix": str.startswith,
    "suffix": str.endswith,
    "exists": lambda _value, _wanted: True,
}
_DEMANDS = {"exact": "must be", "prefix": "must begin with", "suffix": "must end with"}
"""The verbs of explanations, by dialect."""
_COMBINED = ("all", "any", "not")
_DIALECTS = ("exact", "prefix", "suffix", *_COMBINED)


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """One filter: `attributes` for those that compare, `filters` for `all`, `any` and `not` (exactly one)."""

    dialect: str
    attributes: Mapping[str, str] = {}
    filters: tuple[Filter, ...] = ()


def parse(value: object, where: str = "filter", *, data: bool = False) -> Filter:
    """Parse a filter from a plain value as YAML or JSON give it, such as `{"prefix": {"source": "https://…"}}`.

    With `data`, parse a condition. Raises FilterError, whose message starts with the place; `where` is the place of the
    whole.
    """
    return _Parser(data=data).parse(value, where, MAX_DEPTH)


def matches(wanted: Filter, event: Event) -> bool:
    """Return whether the event matches the filter. An absent value matches nothing, and `not` inverts that."""
    return mismatch(wanted, event) is None


def mismatch(wanted: Filter, event: Event) -> str | None:
    """Return why the event does not match the filter, as a phrase; `None` if it matches."""
    match wanted.dialect:
        case "all":
            return next(filter(None, (mismatch(part, event) for part in wanted.filters)), None)
        case "any":
            return _none_of(wanted.filters, event)
        case "not":
            part = wanted.filters[0]
            return f"it must not match {as_written(part)}" if mismatch(part, event) is None else None
        case dialect:
            return next(filter(None, (_differs(dialect, *pair, event) for pair in wanted.attributes.items())), None)


def as_written(wanted: Filter) -> str:
    """Return the filter as the JSON that `parse` reads, shortened to MAX_SHOWN."""
    return _shortened(json.dumps(_plain(wanted), ensure_ascii=False))


def _none_of(parts: Sequence[Filter], event: Event) -> str | None:
    whys = []
    for part in parts:
        why = mismatch(part, event)
        if why is None:
            return None
        whys.append(why)
    return _shortened("; and ".join(dict.fromkeys(whys)))


def _differs(dialect: str, name: str, text: str, event: Event) -> str | None:
    value = value_of(event, name)
    if value is None:
        return f"the event has no {name}"
    if _COMPARED[dialect](value, text):
        return None
    return f"{name} is {_quoted(value)}, and {_DEMANDS[dialect]} {_quoted(text)}"


def _quoted(text: str) -> str:
    return json.dumps(_shortened(text), ensure_ascii=False)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _plain(wanted: Filter) -> dict[str, object]:
    if wanted.dialect == "not":
        return {"not": _plain(wanted.filters[0])}
    if wanted.dialect in _COMBINED:
        return {wanted.dialect: [*map(_plain, wanted.filters)]}
    return {wanted.dialect: [*wanted.attributes] if wanted.dialect == "exists" else dict(wanted.attributes)}


def value_of(event: Event, name: str) -> str | None:
    """Return an attribute in its wire form, or a text, number or boolean inside the data (`data.…`); `None` if absent.

    `extensions.<name>` is an alternative name of an extension.
    """
    if not name.startswith("data."):
        attribute = event.attribute(name.removeprefix("extensions."))
        return None if attribute is None else wire_text(attribute)
    value = event.data
    for part in name.split(".")[1:]:
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else None


def any_of(dialect: str, name: str, texts: Sequence[str]) -> Filter:
    """Return the filter for events with any of these values."""
    return Filter(
        dialect="any", filters=tuple(Filter(dialect=dialect, attributes={name: text}) for text in sorted(texts))
    )


def negated(wanted: Filter) -> Filter:
    return Filter(dialect="not", filters=(wanted,))


def names(filters: Sequence[Filter]) -> set[str]:
    """Return the attributes that filters compare."""
    inner = (names(each.filters) for each in filters)
    return {name for each in filters for name in each.attributes}.union(*inner)


def values(filters: Sequence[Filter], name: str, dialect: str = "exact") -> set[str]:
    """Return the texts with which filters of a dialect compare an attribute."""
    inner = (values(each.filters, name, dialect) for each in filters)
    own = {each.attributes[name] for each in filters if each.dialect == dialect and name in each.attributes}
    return own.union(*inner)


# Satisfiability


class _Claim(NamedTuple):
    dialect: str
    name: str
    text: str
    holds: bool


def possible(filters: Sequence[Filter]) -> bool:
    """Return whether an event could match all filters: `False` only if they contradict each other."""
    start = (_Claim("exact", "specversion", "1.0", holds=True),)
    untried: list[tuple[tuple[_Claim, ...], list[tuple[Filter, bool]]]] = [(start, [(each, True) for each in filters])]
    for _ in range(MAX_STEPS):
        if not untried:
            return False
        claims, rest = untried.pop()
        if not rest:
            return True
        (first, holds), *others = rest
        for said, more in _ways(first, holds=holds):
            together = tuple(dict.fromkeys((*claims, *said)))
            if _agree(together, together[len(claims) :]):
                untried.append((together, [*more, *others]))
    return True


def _ways(wanted: Filter, *, holds: bool) -> Iterator[tuple[list[_Claim], list[tuple[Filter, bool]]]]:
    """Yield each way in which a filter holds, or does not: claims, and further filters that must hold or not."""
    if wanted.dialect == "not":
        yield [], [(wanted.filters[0], not holds)]
    elif wanted.dialect in _COMBINED:
        parts = [(part, holds) for part in wanted.filters]
        if (wanted.dialect == "all") is holds:
            yield [], parts
        else:
            yield from (([], [part]) for part in parts)
    else:
        claims = [_Claim(wanted.dialect, name, text, holds) for name, text in wanted.attributes.items()]
        if holds:
            yield claims, []
        else:
            yield from (([claim], []) for claim in claims)


def _agree(claims: Sequence[_Claim], new: Sequence[_Claim]) -> bool:
    return not any(_contradict(one, other) or _contradict(other, one) for one in new for other in claims)


def _contradict(one: _Claim, other: _Claim) -> bool:
    """Return whether one claim excludes another; callers ask in both directions."""
    if one.name != other.name or not one.holds:
        return False
    if other.dialect == "exists":
        return not other.holds
    if one.dialect == "exact":
        return _COMPARED[other.dialect](one.text, other.text) is not other.holds
    if one.dialect != other.dialect:
        return False
    within = _COMPARED[one.dialect](one.text, other.text)
    return within if not other.holds else not (within or _COMPARED[one.dialect](other.text, one.text))


# Reading


class _Parser:
    def __init__(self, *, data: bool) -> None:
        self._data = data
        self._dialects = (*_DIALECTS, "exists") if data else _DIALECTS

    def parse(self, value: object, where: str, levels: int) -> Filter:
        if not levels:
            raise FilterError(f"{where[:200]}…: filters nest more than {MAX_DEPTH} levels deep.")
        if not isinstance(value, dict) or len(value) != 1:
            raise FilterError(f"{where}: a filter is an object with one key, one of {', '.join(self._dialects)}.")
        ((dialect, content),) = value.items()
        place = f"{where}.{dialect[:20]}" if isinstance(dialect, str) else where
        if dialect not in self._dialects:
            raise FilterError(f"{place}: unknown dialect{_meant(dialect, self._dialects)}")
        if dialect == "exists":
            return Filter(dialect=dialect, attributes=dict.fromkeys(self._existing(content, place), ""))
        if dialect in _COMPARED:
            return Filter(dialect=dialect, attributes=self._attributes(dialect, content, place))
        if dialect == "not":
            return Filter(dialect=dialect, filters=(self.parse(content, place, levels - 1),))
        if not isinstance(content, list) or not content:
            raise FilterError(f"{place}: expected a list of one or more filters.")
        parts = (self.parse(part, f"{place}[{index}]", levels - 1) for index, part in enumerate(content))
        return Filter(dialect=dialect, filters=tuple(parts))

    def _existing(self, content: object, where: str) -> list[str]:
        named = content if isinstance(content, list) else [content]
        if not named:
            raise FilterError(f"{where}: expected the name of a value, such as data.course.repository.")
        for name in named:
            self._check_name(name, where)
        return [str(name) for name in named]

    def _attributes(self, dialect: str, content: object, where: str) -> dict[str, str]:
        if not isinstance(content, dict) or not content:
            raise FilterError(f"{where}: expected an object of one or more attributes and their values.")
        for name, value in content.items():
            self._check_name(name, where)
            if isinstance(value, list):
                raise FilterError(f"{where}.{name}: one value; several are several filters, in a list under `any`.")
            if not isinstance(value, str) or not value:
                raise FilterError(f"{where}.{name}: the value must be a string that is not empty; put it in quotes.")
            if "." not in name and (why := _impossible(dialect, name, value)):
                raise FilterError(f"{where}.{name}: no event has {value[:100]!r} there. {why}")
        return dict(content)

    def _check_name(self, name: object, where: str) -> None:
        """Raises FilterError."""
        if not isinstance(name, str):
            raise FilterError(f"{where}: the name of an attribute must be a string.")
        if self._data and re.fullmatch(DATA_VALUE, name):
            return
        if name == "data" or name.startswith("data."):
            form = "name a value inside it by its path, such as data.action" if self._data else "write it under `when:`"
            raise FilterError(f"{where}: filters do not see {name[:40]}: {form}.")
        if not _NAME.fullmatch(name):
            raise FilterError(f"{where}: {name[:40]!r} is no attribute name (a-z and 0-9){_lowered(name)}.")
        if name not in ATTRIBUTES and (near := _near(name)):
            raise FilterError(f"{where}: no event has the attribute {name}; did you mean {near}?")


def _meant(given: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(given), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}."


def _lowered(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return f"; write {plain}" if plain in ATTRIBUTES else ""


def _near(name: str) -> str | None:
    """Return the context attribute that a name probably misspells.

    The name of an extension resembles one rarely: the lengths differ by at most one letter, and at most one letter is
    different.
    """
    for known in sorted(ATTRIBUTES - {"id"}):
        alike = difflib.SequenceMatcher(None, name, known).ratio() >= 0.8 or sorted(name) == sorted(known)  # noqa: PLR2004
        if alike and abs(len(name) - len(known)) <= 1:
            return known
    return None


def _impossible(dialect: str, name: str, text: str) -> str | None:
    """Return why no event has an attribute with that value, prefix or suffix."""
    minimal = {"specversion": "1.0", "id": "1", "source": "/", "type": "t"}
    whole = {name: text} if dialect == "exact" else {"part": text}
    try:
        event = event_of({**minimal, **whole})
    except DecodeError as error:
        return str(error)
    if dialect == "exact" and (form := value_of(event, name)) != text:
        return f"It is compared as {form}."
    if name == "specversion" and not _COMPARED[dialect]("1.0", text):
        return "There is 1.0."
    return None
