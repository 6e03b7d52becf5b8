"""Strict reading of the wire format: media types, header names in one case, JSON without ambiguity.

Two readers of one message must agree, so a repeated key or header is refused. Values that JSON cannot carry back are
refused, too: NaN, half of a surrogate pair, unbounded nesting.

WSGI joins the values of a repeated header, so the server names the repeated ones in a separate header (`REPEATED`).

A push of 24 MB may list a million paths, and Python strings take several times the memory of their text. `Pieces`
leaves such an array in its text and reads one member at a time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NoReturn, TypeGuard, TypeVar

import msgspec

from eventing.errors import DecodeError

T = TypeVar("T")

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

MAX_DEPTH = 100
"""Nested arrays and objects. Well below the part of Python's recursion limit that any caller leaves."""

REPEATED = "kiln-repeated"
"""Header that the server adds: comma-separated lower-case names of the headers that the request repeats."""
_SINGLE = re.compile(  # headers that define the message; others, such as Via, may be repeated
    r"ce-.+|content-.+|idempotency-key|webhook-.+|x-(?:forgejo|gitea|github|gitlab|gogs|hub)-.+"
    r"|x-(?:event-key|hook-uuid|request-uuid|request-id)"
)
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_MEDIA_TYPE = re.compile(r"[\w!#$&.+^-]+/[\w!#$&.+^-]+ *(;[ -~]*)?", re.ASCII)


def lowered(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers by lower-case name.

    Raises DecodeError if two names differ in case only, and for a repeated header that defines the message.
    """
    names = {name.lower(): value for name, value in headers.items()}
    if len(names) != len(headers):
        raise DecodeError("A header is repeated.")
    for name in names.pop(REPEATED, "").split(","):
        if _SINGLE.fullmatch(name):
            raise DecodeError(f"The header {name[:100]} is repeated.")
    return names


def is_media_type(text: str) -> bool:
    """Return whether it has the form `type/subtype`, with or without parameters (RFC 2045, §5.1)."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def essence(media_type: str) -> str:
    """`type/subtype` in lower case, without parameters."""
    return media_type.partition(";")[0].strip().lower()


def is_json(media_type: str | None) -> bool:
    """Return whether data of that type is JSON: `*/json`, `*/*+json`, and no type at all (CloudEvents JSON format,
    §3.1).
    """
    return media_type is None or essence(media_type).endswith(("/json", "+json"))


def is_traceparent(value: object) -> TypeGuard[str]:
    """Return whether it is a version 00 header (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    return isinstance(value, str) and _TRACEPARENT.fullmatch(value) is not None


def load_json(text: bytes) -> object:
    """Parse the JSON value in UTF-8 `text` (RFC 8259). Raises DecodeError."""
    try:
        value = _JSON.decode(text.decode())
    except UnicodeDecodeError as error:
        raise DecodeError(f"This is not UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise DecodeError(f"This is not JSON: {error}.") from None
    except RecursionError:
        raise DecodeError(_TOO_DEEP) from None
    except ValueError:  # Python reads no integer of more than 4300 digits
        raise DecodeError("A number in the JSON is too long.") from None
    # Nesting cannot exceed the number of brackets, and UTF-8 carries half of a pair only as an escape.
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH or b"\\u" in text:
        _check(value, MAX_DEPTH)
    return value


class Pieces(Collection[object]):
    """A JSON array stored as text: each iteration reads its members again."""

    def __init__(self, array: msgspec.Raw) -> None:
        """`array` is a view of the text. Raises DecodeError if it is not an array, or a member is not JSON."""
        try:
            self._parts = msgspec.json.decode(array, type=list[msgspec.Raw])
        except msgspec.DecodeError as error:
            raise DecodeError(f"This is not a JSON array: {error}.") from None
        for _ in self:  # refuse an unreadable member now, not at its first use
            pass

    def __iter__(self) -> Iterator[object]:
        return (load_json(bytes(part)) for part in self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, member: object) -> bool:
        return any(member == each for each in self)

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Pieces) else other)

    __hash__ = None  # type: ignore[assignment]

    def each(self, kind: type[T]) -> Iterator[T]:
        """Yield its members as `kind`. Raises msgspec.ValidationError."""
        return map(msgspec.json.Decoder(kind).decode, self._parts)


def each(array: object, kind: type[T]) -> Iterator[T]:
    """Yield the members of a JSON array as `kind`. Raises msgspec.ValidationError."""
    if isinstance(array, Pieces):
        return array.each(kind)
    return (msgspec.convert(member, kind) for member in msgspec.convert(array, list[object]))


def load_object(text: bytes, *, pieces: str) -> object:
    """Parse as `load_json`; the array `pieces` of an object becomes `Pieces`. Raises DecodeError."""
    names: list[str] = []

    def named(kind: type[str], name: str) -> str:
        names.append(name)
        return kind(name)

    try:
        members = msgspec.json.decode(text, type=dict[_Name, msgspec.Raw], dec_hook=named)
    except (msgspec.DecodeError, RecursionError):
        return load_json(text)
    if len(names) != len(members):
        raise DecodeError(_TWICE)
    return {
        str(name): Pieces(raw) if name == pieces and bytes(memoryview(raw)[:1]) == b"[" else load_json(bytes(raw))
        for name, raw in members.items()
    }


class _Name(str):
    """A name in a JSON object; msgspec reports each occurrence."""

    __slots__ = ()


_TWICE = "An object in the JSON has a key twice."
_TOO_DEEP = f"The JSON nests more than {MAX_DEPTH} levels deep."


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DecodeError(_TWICE)
    return members


def _not_a_number(name: str) -> NoReturn:
    raise DecodeError(f"{name} is not JSON.")


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise DecodeError("A number in the JSON is too large.")
    return number


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_not_a_number, parse_float=_finite_number)


def _check(value: object, levels: int) -> None:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise DecodeError("A string in the JSON has half of a surrogate pair.")
    elif isinstance(value, dict | list):
        if not levels:
            raise DecodeError(_TOO_DEEP)
        for part in value:
            _check(part, levels - 1)
        if isinstance(value, dict):
            for part in value.values():
                _check(part, levels - 1)
