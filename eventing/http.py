"""CloudEvents over HTTP, in and out: binary, structured and batched messages (HTTP protocol binding 1.0).

The SDK provides the attributes and their header encoding. Kiln reads messages itself, for four reasons. The SDK invents
a missing `id`, so that every retry would be a new event. It picks the mode by any stray `ce-` header, has no batches,
and takes a body that is not JSON for a string. The content type alone determines the mode of a message.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import quote, unquote_to_bytes, urlsplit

import msgspec
from cloudevents.core.bindings.http import to_binary_event
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.v1.event import CloudEvent

from eventing.errors import DecodeError, EncodeError, NotACloudEvent
from eventing.event import CONTEXT, Event
from eventing.wire import BATCH, STRUCTURED, Pieces, essence, is_json, is_media_type, is_traceparent, load_json, lowered

Mode = Literal["binary", "structured"]

MAX_NAME = 40
"""Characters of an extension's name. The specification recommends 20; a slightly longer name does not justify losing an
event.
"""

_REQUIRED = ("specversion", "id", "source", "type")
_NAME = re.compile(rf"[a-z0-9]{{1,{MAX_NAME}}}")
_FORBIDDEN = re.compile(  # in strings (CloudEvents 1.0, §3.1): control characters, surrogates, noncharacters
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_TIME = re.compile(  # RFC 3339, §5.6; also with a blank for the T, and without the colon of the offset
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):?(\d\d))", re.ASCII
)
_LEAP_SECOND, _LEAP_YEAR = 60, 4
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_PCHAR = r"[\w.~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2}"  # RFC 3986, §3.3
_URI_REFERENCE = re.compile(  # possessive throughout: a long invalid one must not take long
    rf"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*+):|(?![^/?#:]*+:))"
    rf"(?://(?:{_PCHAR}|[\[\]])*+(?![^/?#]))?+(?:{_PCHAR}|/)*+(?:\?(?:{_PCHAR}|[/?])*+)?+(?:#(?:{_PCHAR}|[/?])*+)?+",
    re.ASCII,
)


def decode(headers: Mapping[str, str], body: bytes) -> list[Event]:
    """Return the events in one HTTP message: exactly one, or those of a batch (in order, possibly none).

    `headers` are by name in any case, with values as WSGI gives them (each byte a character). A batch is decoded as a
    whole or not at all; its errors start with `event <index>: `, counted from 0.

    Raises NotACloudEvent if neither content type nor headers declare an event, DecodeError for all other faults.
    https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
    """
    named = lowered(headers)
    media_type = essence(named.get("content-type", ""))
    if media_type == STRUCTURED:
        return [_structured(load_json(body))]
    if media_type == BATCH:
        return _batch(load_json(body))
    if media_type.startswith("application/cloudevents"):
        raise NotACloudEvent(f"CloudEvents must be in JSON format: {STRUCTURED} or {BATCH}.")
    if not any(name.startswith("ce-") for name in named):
        raise NotACloudEvent(f"This is not a CloudEvent: send ce-… headers, or the content type {STRUCTURED}.")
    return [_binary(named, body)]


def encode(event: Event, mode: Mode) -> tuple[dict[str, str], bytes]:
    """Return headers and body of the message for `event`, always with a content type.

    Data without a content type gets `application/octet-stream` if it is bytes, otherwise `application/json`. In binary
    mode extensions travel as text (`true`, `5`), so CloudEvents loses their types. Raises EncodeError for an event that
    breaks a rule of `event_of` or whose data does not match `Event`.
    """
    usual = "application/octet-stream" if isinstance(event.data, bytes) else "application/json"
    datacontenttype = event.datacontenttype or usual
    attributes: dict[str, object] = {
        "specversion": "1.0",
        **{name: event.attribute(name) for name in ("id", "source", "type", "subject", "time", "dataschema")},
        "datacontenttype": datacontenttype,
        **event.extensions,
    }
    attributes = {name: value for name, value in attributes.items() if value is not None}
    try:
        event_of(attributes)
    except DecodeError as error:
        raise EncodeError(f"The event cannot be sent. {error}") from error
    body = _body(event.data, datacontenttype)
    if mode == "binary":
        texts = {name: wire_text(value) for name, value in attributes.items()}
        message = to_binary_event(CloudEvent({**texts, **({"time": event.time} if event.time else {})}, body))
        if event.time is None:  # the SDK would insert the time of sending
            del message.headers["ce-time"]
        return message.headers, message.body
    return {"content-type": STRUCTURED}, _envelope(attributes, body)


def event_of(attributes: Mapping[str, object], data: object = None) -> Event:
    """Return the event with these attributes in their wire form (`time` as text); `None` means absent.

    This function creates every incoming event. Raises DecodeError for violations of CloudEvents 1.0. An invalid
    `traceparent` is ignored (https://www.w3.org/TR/trace-context/#traceparent-header-field-values).
    """
    present = {name: value for name, value in attributes.items() if value is not None}
    if not is_traceparent(present.get("traceparent")):
        for name in ("traceparent", "tracestate"):
            present.pop(name, None)
    for name in _REQUIRED:
        if name not in present:
            raise DecodeError(f"The attribute {name} is missing.")
    for name, value in present.items():
        _check(name, value)
    time = _time(present.pop("time", None))
    try:
        CloudEvent({**present, **({"time": time} if time else {})})
    except CloudEventValidationError as error:
        raise DecodeError(" ".join(f"{fault}." for faults in error.errors.values() for fault in faults)) from None
    context = {name: value for name, value in present.items() if name in CONTEXT}
    extensions = {name: value for name, value in present.items() if name not in context and name != "specversion"}
    _check_references(context)
    return Event(**context, time=time, extensions=extensions, data=data)  # type: ignore[arg-type]


def attribute_text(text: str) -> str:
    """Return the text as an attribute can hold it: characters that CloudEvents forbids in strings are percent-encoded.

    Git allows most of them in a ref.
    """
    return _FORBIDDEN.sub(lambda found: quote(found[0], errors="replace"), text)


def wire_text(value: object) -> str:
    """Return an attribute's value in its canonical string form (CloudEvents 1.0, §3.1)."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _binary(headers: Mapping[str, str], body: bytes) -> Event:
    attributes: dict[str, object] = {
        name.removeprefix("ce-"): _header_value(name, value)
        for name, value in headers.items()
        if name.startswith("ce-")
    }
    for name in ("datacontenttype", "data"):
        if name in attributes:
            raise DecodeError(f"Missing header ce-{name} in binary mode.")
    datacontenttype = headers.get("content-type") or None
    event = event_of({**attributes, "datacontenttype": datacontenttype})
    return msgspec.structs.replace(event, data=_data(body, datacontenttype))


def _structured(envelope: object) -> Event:
    if not isinstance(envelope, dict):
        raise DecodeError("A CloudEvent in JSON must be an object.")
    attributes = {name: value for name, value in envelope.items() if name not in ("data", "data_base64")}
    event = event_of(attributes)
    data, encoded = envelope.get("data"), envelope.get("data_base64")
    if data is not None and encoded is not None:
        raise DecodeError("data and data_base64 exclude each other: send one of them.")
    if encoded is not None:
        data = _data(_base64(encoded), event.datacontenttype or "application/octet-stream")
    elif data is not None and not is_json(event.datacontenttype):
        if not isinstance(data, str):
            raise DecodeError("Data of a type that is not JSON must be a string or data_base64.")
        data = data.encode() or None
    return msgspec.structs.replace(event, data=data)


def _batch(envelopes: object) -> list[Event]:
    if not isinstance(envelopes, list):
        raise DecodeError("A batch of CloudEvents must be an array.")
    events = []
    for index, envelope in enumerate(envelopes):
        try:
            events.append(_structured(envelope))
        except DecodeError as error:
            raise DecodeError(f"event {index}: {error}") from None
    return events


def _header_value(name: str, value: str) -> str:
    """Keep a URI that decoding would break: the Go SDK, and so Knative, adds no escapes to a URI."""
    if name in ("ce-source", "ce-dataschema") and _uri_reference(value):
        with suppress(DecodeError):
            text = _header_text(name, value)
            return text if _uri_reference(text) else value
        return value
    return _header_text(name, value)


def _header_text(name: str, value: str) -> str:
    """Decode as in HTTP binding, §3.1.3.2: unquote, then percent-decode once.

    A `%` without hexadecimal digits stays: some senders do not encode.
    """
    try:
        return unquote_to_bytes(_unquoted(value).encode("latin-1")).decode()
    except UnicodeError:
        raise DecodeError(f"The header {name[:MAX_NAME]} is not percent-encoded UTF-8.") from None


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    quoted = re.fullmatch(r'"((?:[^"\\]|\\.)*+)"', value, re.DOTALL)
    if quoted is None:
        raise DecodeError("A quoted header value does not end with its quote.")
    return re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL)


def _data(body: bytes, datacontenttype: str | None) -> object:
    """Return `Event.data` for these bytes of that type."""
    if not body:
        return None
    return load_json(body) if is_json(datacontenttype) else body


def _base64(encoded: object) -> bytes:
    if not isinstance(encoded, str):
        raise DecodeError("data_base64 is not a string.")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        raise DecodeError("data_base64 is not base64.") from None


def _check(name: str, value: object) -> None:
    if not _NAME.fullmatch(name):
        raise DecodeError(f"{name[:MAX_NAME]!r} is not an attribute name: use 1 to {MAX_NAME} of a-z and 0-9.")
    if isinstance(value, str):
        if _FORBIDDEN.search(value):
            raise DecodeError(f"The attribute {name} has a character that CloudEvents forbids.")
    elif isinstance(value, bool | int):
        if not -(2**31) <= value < 2**31:
            raise DecodeError(f"The attribute {name} is out of range: integers have 32 bits.")
    else:
        raise DecodeError(f"The attribute {name} is neither a string nor a boolean nor an integer.")


def _check_references(context: Mapping[str, object]) -> None:
    """Check the context attributes that have a syntax of their own; all are strings at this point."""
    if not _uri_reference(str(context["source"])):
        raise DecodeError("The attribute source is not a URI reference (RFC 3986).")
    dataschema = context.get("dataschema")
    if dataschema is not None and not _uri_reference(str(dataschema), absolute=True):
        raise DecodeError("The attribute dataschema is not a URI (RFC 3986).")
    datacontenttype = context.get("datacontenttype")
    if datacontenttype is not None and not is_media_type(str(datacontenttype)):
        raise DecodeError("The attribute datacontenttype is not a media type (RFC 2045).")


def _uri_reference(text: str, *, absolute: bool = False) -> bool:
    match = _URI_REFERENCE.fullmatch(text)
    try:
        urlsplit(text)
    except ValueError:  # brackets that hold no IPv6 address
        return False
    return match is not None and not (absolute and match["scheme"] is None)


def _time(text: object) -> datetime | None:
    """Return the time in UTC to the microsecond. A time beyond Python's range becomes the nearest one within it."""
    if text is None:
        return None
    with suppress(ValueError):
        if isinstance(text, str) and (match := _TIME.fullmatch(text)):
            return _instant(match)
    raise DecodeError("The attribute time is not a time with its offset (RFC 3339).")


def _instant(match: re.Match[str]) -> datetime:
    """Raise ValueError for a day, an hour, a leap second or an offset that does not exist."""
    year, month, day, hour, minute, second = (int(part) for part in match.group(1, 2, 3, 4, 5, 6))
    leap = second == _LEAP_SECOND
    local = datetime(year or _LEAP_YEAR, month, day, hour, minute, second - leap, tzinfo=UTC)
    microseconds = 999_999 if leap else (int((match[7] or "")[:7].ljust(7, "0")) + 5) // 10
    try:
        time = local - _offset(match)
        if leap and (time.hour, time.minute) != (23, 59):
            raise ValueError("Leap seconds exist only at the end of a day in UTC.")
        if not year:
            return _EARLIEST if time.year <= _LEAP_YEAR else time.replace(year=1)
        return time + timedelta(microseconds=microseconds)
    except OverflowError:
        return _EARLIEST if year == 1 else _LATEST


def _offset(match: re.Match[str]) -> timedelta:
    """Raises ValueError."""
    hours, minutes = int(match[9] or 0), int(match[10] or 0)
    if hours > 23 or minutes > 59:  # noqa: PLR2004
        raise ValueError("An offset must be at most 23:59.")
    return timedelta(hours=hours, minutes=minutes) * (-1 if match[8] == "-" else 1)


def _body(data: object, datacontenttype: str) -> bytes:
    if data is None:
        return b""
    if isinstance(data, bytes) is is_json(datacontenttype):
        raise EncodeError("Data must be bytes for types that are not JSON, and only for those.")
    if isinstance(data, bytes):
        return data
    try:
        return json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_members).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError("The data of this event is not a JSON value.") from error


def _members(value: object) -> list[object]:
    if isinstance(value, Pieces):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _envelope(attributes: Mapping[str, object], body: bytes) -> bytes:
    """Return the event in the JSON format. The SDK would write data as `str(data)` for `Application/JSON`."""
    head = json.dumps(attributes, ensure_ascii=False, separators=(",", ":")).encode()
    if not body:
        return head
    if is_json(str(attributes["datacontenttype"])):
        return head[:-1] + b',"data":' + body + b"}"
    return head[:-1] + b',"data_base64":"' + base64.b64encode(body) + b'"}'
