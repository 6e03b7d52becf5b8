"""The challenges in `WWW-Authenticate` (RFC 9110, §11.6.1), as registries write them.

Werkzeug reads one challenge per header and requests none; registries send several, in one header or in many, with
unquoted values and names in any case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*+)"?|([^\s,"]*))', re.DOTALL)
_SCHEME = re.compile(rf"({_WORD})(?=[ \t,]|$)")
_BETWEEN = re.compile(r"[\s,]*")


class Challenge(msgspec.Struct, frozen=True):
    """`scheme` and the names of `parameters` are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def challenges(header: str) -> list[Challenge]:
    """All challenges in order. Several headers are joined by commas. Text that is not a challenge is skipped."""
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while (at := _end(_BETWEEN, header, at)) < len(header):
        if found and (parameter := _PARAMETER.match(header, at)):
            name, quoted, plain = parameter.groups()
            found[-1][1].setdefault(name.lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
            at = parameter.end()
        elif scheme := _SCHEME.match(header, at):
            found.append((scheme[1].lower(), {}))
            at = scheme.end()
        else:
            at += 1
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
