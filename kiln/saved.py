"""Requests saved in files, for `kiln send` and `kiln check --event`.

Three forms, told apart by how they begin: a CloudEvent as JSON, a batch of them as a JSON array, or an HTTP request as
it went over the wire (request line optional, header lines, an empty line, body), which keeps a webhook's headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from eventing.wire import BATCH, STRUCTURED
from kiln.errors import CommandError


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """Headers with lower-case names, and the body's bytes."""

    headers: Mapping[str, str]
    body: bytes


def parse(content: bytes) -> Saved:
    """Raises CommandError for what is in none of the three forms."""
    start = content.lstrip()[:1]
    if start in (b"{", b"["):
        return Saved(headers={"content-type": STRUCTURED if start == b"{" else BATCH}, body=content)
    end = re.search(rb"\r?\n\r?\n", content)
    if end is None:
        raise CommandError("The file holds neither JSON nor an HTTP request with an empty line before its body")
    lines = re.split(r"\r?\n", content[: end.start()].decode("latin-1"))
    if re.fullmatch(r"[A-Z]+ \S+ HTTP/[0-9.]+", lines[0]):
        del lines[0]
    fields = [line.partition(":") for line in lines]
    if not all(name and colon for name, colon, _ in fields):
        raise CommandError("The file starts like an HTTP request, but has a header line that is not `Name: value`")
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    return Saved(headers=headers, body=content[end.end() :])
