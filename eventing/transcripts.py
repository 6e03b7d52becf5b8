"""Find HTTP requests in text: a message in its wire format, or the output of tools and web pages.

- A message: an optional request line, header lines, an empty line, the body. HTTPie adds the response; files for a REST
  client have comments and several requests.
- `curl -v` and Insomnia's timeline: marks in front of each line. curl does not print the body that it sends.
- Text copied from a page (GitHub, GitLab and Gitea show deliveries), Knative's event display, a log: headings, lines of
  the form `Name: value`, then JSON.

https://www.rfc-editor.org/rfc/rfc9112#section-2.1
"""

from __future__ import annotations

import http.client
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from eventing.errors import SavedError


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Headers with lower-case names, several of one name joined (RFC 9110, §5.3), and the body that follows them."""

    headers: Mapping[str, str]
    body: bytes
    path: str = ""
    """The path of the request line, if there is one."""


def parts(content: bytes) -> list[Part]:
    """Return the possible requests in UTF-8 `content`, in order.

    Raises SavedError for truncated JSON, and if the body is missing.
    """
    if _MARKED.search(content):
        return _marked(content)
    message = _message(content)
    if message is None:
        return [*_page(content)]
    if is_structured(message.body) or not _says_json(message.headers):
        return [message]
    return [*_page(content)] or [message]


def is_structured(body: bytes) -> bool:
    """Return whether it begins like the body of a webhook or of a structured event."""
    return _BODY.match(body.decode("latin-1")) is not None


TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name (RFC 9110, §5.6.2)."""

_MARKED = re.compile(rb"^> (?:[A-Z]+ \S+ HTTP/|[\w-]+: )", re.MULTILINE)
_INFO = re.compile(rb"\* |[{}] \[\d+ bytes data\]|==|\s*%|\s*[\d.]+k?M?\s+\d+.*--:--")
_BEFORE = re.compile(rb"(?:[ \t]*(?:#|//|@).*\r?\n|[ \t]*\r?\n)*")
_HEAD_END = re.compile(rb"\r?\n[ \t]*\r?\n")
_REQUEST_LINE = re.compile(rb"[A-Z]+ (?P<path>\S+)(?: HTTP/[0-9.]+)?\s*")
_BODY = re.compile(r'\s*(?:\{\s*["}]|\[\s*[{\]]|payload=)')
_FIELD = re.compile(rf"(?P<name>{TOKEN.pattern})(?::\s*|\t+)(?P<value>.*)")  # a table is copied with tabs
_RESPONSE = re.compile(r"HTTP/[\d.]+ \d{3}|response(?::?$| headers| body| *\d)", re.IGNORECASE)
_DECODER = json.JSONDecoder()


def _marked(content: bytes) -> list[Part]:
    """Remove the marks of each line. An unmarked body precedes the response if it was sent, and follows it if it was
    received.
    """
    head: list[bytes] = []
    sent: list[bytes] = []
    received: list[bytes] = []
    for line in content.splitlines(keepends=True):
        if line.startswith(b">"):
            said = line[1:].removeprefix(b" ")
            head = [said] if _REQUEST_LINE.fullmatch(said) else [*head, said]  # the last of several requests
        elif line.startswith(b"<"):
            received.append(b"")
        elif not _INFO.match(line):
            (received or sent).append(line.removeprefix(b"| "))
    fields = b"".join(line for line in head if line.strip())
    path = _path(head[0])
    found = [msgspec.structs.replace(part, path=path) for part in _page(fields + b"\n" + b"".join(sent))]
    if not found and not head[0].startswith((b"GET ", b"HEAD ")):
        raise SavedError("The input contains the head of a request without its body. Add the body below the head")
    return found or [*_page(b"".join(received))]


def _message(content: bytes) -> Part | None:
    """Return `None` unless it begins with header lines only, up to an empty line."""
    content = content[_BEFORE.match(content).end() :]  # type: ignore[union-attr]  # it matches the empty string
    end = _HEAD_END.search(content)
    if end is None:
        return None
    first, _, rest = content[: end.start()].partition(b"\n")
    path = _path(first)
    headers = _fields(rest if path else content[: end.start()])
    return Part(headers=headers, body=_body(headers, content[end.end() :]), path=path) if headers else None


def _path(line: bytes) -> str:
    """Return the path of a request line; empty without one."""
    found = _REQUEST_LINE.fullmatch(line)
    return found["path"].decode("latin-1") if found else ""


def _fields(head: bytes) -> dict[str, str] | None:
    """Decode as Latin-1 to keep every byte; return `None` or nothing for other lines."""
    try:
        found = http.client.parse_headers(io.BytesIO(head + b"\r\n\r\n"))
    except http.client.HTTPException as error:
        raise SavedError(f"The headers in the input cannot be read: {error}") from None
    if found.defects or found.get_payload() or not all(map(TOKEN.fullmatch, found)):
        return None
    joined = {name.lower(): ", ".join(found.get_all(name, ())) for name in found}
    return {name: re.sub(r"\r?\n[ \t]+", " ", value).strip(" \t") for name, value in joined.items()}


def _body(headers: Mapping[str, str], rest: bytes) -> bytes:
    """Return the body after a head, without the additions of an editor or a tool."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return _unchunked(rest)
    length = headers.get("content-length", "")
    said = int(length) if re.fullmatch(r"[0-9]{1,12}", length) else len(rest)
    if said < len(rest) and not rest[said:].strip():
        return rest[:said]
    return rest if said == len(rest) and length else _without_what_follows(rest)


def _unchunked(rest: bytes) -> bytes:
    class Socket:
        def makefile(self, _: str) -> io.BytesIO:
            return io.BytesIO(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + rest)

    try:
        answer = http.client.HTTPResponse(Socket())  # type: ignore[arg-type]  # of a socket it wants no more
        answer.begin()
        return answer.read()
    except (http.client.HTTPException, ValueError, OSError):
        raise SavedError("The body in the input is chunked, and its chunks are malformed") from None


def _without_what_follows(rest: bytes) -> bytes:
    """Return JSON without a following response or further requests; return anything else unchanged."""
    if not re.match(rb"\s*[{\[]", rest):
        return rest
    try:
        text = rest.decode()
        _, end = _DECODER.raw_decode(text, len(text) - len(text.lstrip()))
    except (ValueError, RecursionError):
        return rest
    return text[:end].encode() if text[end:].strip() else rest


def _says_json(headers: Mapping[str, str]) -> bool:
    return "json" in headers.get("content-type", "json").lower()


def _page(content: bytes) -> Iterator[Part]:
    """Yield each JSON value or form in a text, with the header lines since the preceding one.

    The parts of a response are skipped: it begins with a heading or status line. Raises SavedError.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise SavedError(f"The input is not UTF-8 (byte {error.start})") from None
    headers: dict[str, str] = {}
    place = 0
    while place < len(text):
        end = text.find("\n", place) + 1 or len(text)
        line = text[place:end].strip().removeprefix("data:").strip()
        if _BODY.match(text, text.index(line, place)) and line:
            place, body = _value(text, text.index(line, place), end)
            yield Part(headers=headers, body=body.encode())
            headers = {}
            continue
        if _RESPONSE.match(line):
            headers = {}
        elif field := _FIELD.fullmatch(line):
            headers[field["name"].lower()] = field["value"].strip().encode().decode("latin-1")
        place = end


def _value(text: str, start: int, line_end: int) -> tuple[int, str]:
    """Return the end of the JSON value or form at `start`, and the value."""
    if text.startswith("payload=", start):
        return line_end, text[start:line_end].strip()
    try:
        value: tuple[Any, int] = _DECODER.raw_decode(text, start)
    except ValueError as error:
        raise SavedError(f"The JSON in the input is malformed or cut off: {error}") from None
    except RecursionError:
        raise SavedError("The JSON in the input nests too deep") from None
    return value[1], text[start : value[1]]
