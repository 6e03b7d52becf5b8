"""Requests saved in files, for `kiln send` and `kiln check --event`.

Three forms, told apart by how they begin: a CloudEvent as JSON, a batch of them as a JSON array, or an HTTP request as
it went over the wire (request line optional, header lines, an empty line, body), which keeps a webhook's headers.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kiln.errors import CommandError

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """Headers with lower-case names, and the body's bytes."""

    headers: Mapping[str, str]
    body: bytes


def parse(content: bytes) -> Saved:
    """Raises CommandError for what is in none of the three forms."""
    start = content.lstrip()[:1]
    if start in (b"{", b"["):
        return Saved(headers={"content-type": STRUCTURED if start == b"{" else BATCH}, body=content)
    head, empty_line, body = content.replace(b"\r\n", b"\n", _lines_of_head(content)).partition(b"\n\n")
    if not empty_line:
        raise CommandError("The file holds neither JSON nor an HTTP request with an empty line before its body")
    lines = head.decode("latin-1").split("\n")
    if " " in lines[0].partition(":")[0]:
        lines = lines[1:]  # the request line
    fields = [line.partition(":") for line in lines]
    wrong = next((line for line, (name, colon, _) in zip(lines, fields, strict=True) if not colon or not name), None)
    if wrong is not None:
        raise CommandError("The file starts like an HTTP request, but has a header line that is not `Name: value`")
    return Saved(headers={name.strip().lower(): value.strip() for name, _, value in fields}, body=body)


def _lines_of_head(content: bytes) -> int:
    """How many line ends of CRLF form the head has: those of the body are left as they are."""
    end = content.find(b"\r\n\r\n")
    return content.count(b"\r\n", 0, end + 4) if end >= 0 else 0
