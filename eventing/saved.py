"""Parse saved requests for `kiln send`, `kiln check --event` and the triggers page.

- A CloudEvent as JSON, or a batch of them as a JSON array.
- A record of a delivery as JSON: from the APIs of GitHub and GitLab, from smee, ngrok, webhook.site, or a gateway's
  event with headers and body.
- Text that shows a request: `eventing.transcripts`.
- A webhook's payload alone, if its Git host is known.

Text may be in any Unicode encoding, with a byte order mark and any line ends, and coloured.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

import msgspec

from eventing import terminal
from eventing.errors import DecodeError, SavedError
from eventing.hosts import DIALECTS, word_of
from eventing.hosts.payload import FORM
from eventing.transcripts import TOKEN, Part, is_structured, parts
from eventing.wire import BATCH, STRUCTURED, essence, load_json

JSON = "application/json"

_HEADERS = ("headers", "header", "request_headers", "requestheaders")
_BODIES = ("payload", "body", "request_data", "request_body", "content", "data")
_BEGINS_AS_JSON = re.compile(rb"\s*(?:\{|\[(?!\w+\]))")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CONNECTION = re.compile(  # hop-by-hop headers and those of proxies, which do not apply to another connection
    r"host|content-length|transfer-encoding|connection|keep-alive|te|trailer|upgrade|expect|accept-encoding|cookie|origin"
    r"|referer|forwarded|via|proxy-.*|sec-.*|x-forwarded.*|x-original-.*|x-real-ip|(x-|x-cluster-|true-)client-ip|cf-.*|cdn-.*"
)


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """Headers with lower-case names, and the body's bytes."""

    headers: Mapping[str, str]
    body: bytes
    word: str | None = None
    """The Git host that sent the delivery, as in its route; `None` for other requests."""

    @property
    def sent(self) -> dict[str, str]:
        """Return the headers that Kiln can send again."""
        return {name: value for name, value in self.headers.items() if not _CONNECTION.fullmatch(name)}


def parse(content: bytes, host: str | None = None) -> Saved:
    """Parse a file or a pasted text; `host` is the Git host that sent it, if known.

    Raises SavedError unless it contains exactly one request.
    """
    if host is not None and host not in DIALECTS:
        raise SavedError(f"--host: must be one of {', '.join(DIALECTS)}")
    content = _utf8(content)
    try:
        found = _json(content) if _BEGINS_AS_JSON.match(content) else _shown(parts(content), host)
    except DecodeError as error:
        raise SavedError(f"The input cannot be read: {error}") from None
    return _checked(_of_host(found, host or found.word or word_of(found.headers)))


def _utf8(content: bytes) -> bytes:
    try:
        encoding = json.detect_encoding(content)
        text = content if encoding == "utf-8" else content.decode(encoding).encode()
    except UnicodeDecodeError:
        raise SavedError("The input has no Unicode encoding") from None
    return terminal.without_sequences(text) if text.lstrip().startswith(b"\x1b[") else text


# JSON ----------------------------------------------------------------------------------------------------------------


def _json(content: bytes) -> Saved:
    """Raises SavedError, DecodeError."""
    value = load_json(content)
    if isinstance(value, list) and all(isinstance(one, dict) and "specversion" in one for one in value):
        return Saved(headers={"content-type": BATCH}, body=content)
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    return _event(value, content) or _record(value) or Saved(headers={}, body=content.strip())


def _event(value: object, content: bytes) -> Saved | None:
    if isinstance(value, dict) and "specversion" in value:
        return Saved(headers={"content-type": STRUCTURED}, body=content)
    return None


def _record(value: object) -> Saved | None:
    """Parse the record of a request that an API or a tool saved; `None` for other values. Raises SavedError."""
    if isinstance(value, list):
        raise SavedError(f"The input holds {len(value)} requests or events outside a batch: keep one of them")
    if not isinstance(value, dict):
        return None
    for kept in (value.get("request"), value):
        if isinstance(kept, dict) and (found := _kept(kept)):
            return found
    if {"guid", "event", "delivered_at"} <= value.keys():
        raise SavedError(
            f"The input lists a delivery without its request: save that of `gh api …/deliveries/{value.get('id')}`"
        )
    return None


def _kept(record: Mapping[str, Any]) -> Saved | None:
    named = {name.lower(): value for name, value in record.items()}
    if isinstance(named.get("raw"), str):  # ngrok: the whole message
        return _shown(parts(_decoded(named["raw"])), None)
    headers = next((named[name] for name in _HEADERS if isinstance(named.get(name), dict)), None)
    headers = named if headers is None and _is_delivery(named) else headers  # smee has them beside the body
    body = next((named[name] for name in _BODIES if isinstance(named.get(name), dict | list | str)), None)
    if headers is None or body is None:
        return None
    lines = {
        name.lower(): text
        for name, value in headers.items()
        if name.lower() not in _BODIES and (text := _line(value)) is not None
    }
    encoded = named.get("isbase64encoded") is True or (set(record) == {"Header", "Body"})  # a gateway, gh's forwarder
    return _sent(lines, _decoded(body) if encoded and isinstance(body, str) else body)


def _is_delivery(headers: Mapping[str, object]) -> bool:
    return any(dialect.own_header in headers for dialect in DIALECTS.values()) or "ce-specversion" in headers


def _line(value: object) -> str | None:
    """Return a header's value from a record; `None` if it is not one. Its bytes are UTF-8."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = ", ".join(value)
    return str(value).strip().encode().decode("latin-1") if isinstance(value, str | int) else None


def _sent(headers: Mapping[str, str], body: bytes | str | dict[str, Any] | list[Any]) -> Saved:
    """Return a record's body as bytes: JSON is compact, as hosts send it."""
    if isinstance(body, dict) and [*body] == ["payload"] and isinstance(body["payload"], str):
        return Saved(headers=headers, body=urlencode(body).encode())
    if isinstance(body, dict | list):
        body = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Saved(headers=headers, body=body if isinstance(body, bytes) else body.encode())


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise SavedError("The body in the input is not base64, as its record says") from None


# Text ----------------------------------------------------------------------------------------------------------------


def _shown(found: Sequence[Part], host: str | None) -> Saved:
    """Return the first part that is a complete request; or else, for a known host, the first possible payload."""
    for part in found:
        if request := _request(part):
            return request
    if not found:
        raise SavedError("The input holds neither JSON nor an HTTP request with an empty line before its body")
    first = found[0]
    return Saved(headers=first.headers, body=first.body, word=host)


def _request(part: Part) -> Saved | None:
    headers = _of_display(part.headers)
    route = re.search(r"/webhooks/(?P<word>[a-z-]+)/?(?:\?.*)?$", part.path)
    word = route["word"] if route and route["word"] in DIALECTS else word_of(headers)
    if word or any(name.startswith("ce-") for name in headers) or "cloudevents" in headers.get("content-type", ""):
        return Saved(headers=headers, body=part.body, word=word)
    if is_structured(part.body) and not part.body.lstrip().startswith(b"payload="):
        value = load_json(part.body)
        return _event(value, part.body) or (_record(value) if isinstance(value, dict) else None)
    return None


def _of_display(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Convert the attributes that Knative's event display prints into the headers of an event in binary mode."""
    if not {"specversion", "id", "source", "type"} <= headers.keys():
        return headers
    named = {"datacontenttype": "content-type"}
    return {named.get(name, f"ce-{name}"): value for name, value in headers.items()}


# Git hosts -----------------------------------------------------------------------------------------------------------


def _of_host(found: Saved, word: str | None) -> Saved:
    """Add the headers of a delivery from that host. Raises SavedError for a payload of an unknown host."""
    if word is None and not found.headers:
        raise SavedError(
            "The input is not a CloudEvent (specversion is missing). If it is a webhook's payload, name "
            f"its Git host, on the command line with --host {' or '.join(DIALECTS)}"
        )
    if word is None:
        return found
    headers = dict(found.headers)
    if DIALECTS[word].own_header not in headers:
        headers |= _headed(word, found.body)
    elif essence(headers.get("content-type", FORM)) == FORM:  # a page shows the content of the form
        headers["content-type"] = JSON if re.match(rb"\s*\{", found.body) else FORM
    return Saved(headers=headers, body=found.body, word=word)


def _headed(word: str, body: bytes) -> dict[str, str]:
    """Add the headers. The id is a digest of the payload, so a second delivery is a duplicate. Raises SavedError."""
    delivery = uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(body).hexdigest())
    form = body.startswith(b"payload=")
    text = parse_qs(body.decode("ascii", "replace")).get("payload", [""])[0].encode() if form else body
    try:
        payload = load_json(text)
        headers = DIALECTS[word].headers_for(payload if isinstance(payload, dict) else {}, str(delivery))
    except DecodeError as error:
        raise SavedError(f"This is not a payload of {word}'s: {error}") from None
    return {**headers, "content-type": FORM} if form else headers


def _checked(found: Saved) -> Saved:
    """Raise SavedError for headers that no request can have."""
    wrong = [name for name, value in found.headers.items() if not TOKEN.fullmatch(name) or _CONTROLS.search(value)]
    if wrong:
        raise SavedError(f"The input has headers that cannot be sent: {', '.join(map(json.dumps, wrong))}")
    return found
