"""Keeps secrets out of the output of a build.

The tools print their complete command line when they fail, including build arguments, and a repository's own commands
may print their arguments. So all lines, and the result, are redacted before they are shown.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus

MASK = "***"
SHORTEST = 6
"""Characters: a shorter value (`1`, `true`) is masked only after its name, to keep the log readable."""


class Redactor:
    """Masks secrets in a line: plain, quoted, percent-encoded and in base64 (also inside `user:secret`).

    `secrets` are masked everywhere. Values of `arguments` are masked everywhere if they are long enough, and always
    after `NAME=`.
    """

    def __init__(self, secrets: Iterable[str] = (), arguments: Mapping[str, str] | None = None) -> None:
        arguments = arguments or {}
        long = [value for value in arguments.values() if len(value) >= SHORTEST]
        forms = {form for secret in (*secrets, *long) for form in _forms(secret)}
        named = {f"{name}={value}" for name, value in arguments.items() if value}
        alternatives = [
            *(f"(?<={re.escape(text.partition('=')[0])}=){re.escape(text.partition('=')[2])}" for text in named),
            *(re.escape(form) for form in sorted(forms, key=len, reverse=True)),
        ]
        self._pattern = re.compile("|".join(alternatives)) if alternatives else None

    def __call__(self, text: str) -> str:
        return self._pattern.sub(MASK, text) if self._pattern else text


def _forms(secret: str) -> Iterator[str]:
    """Every spelling of a secret; for one with several lines, each line too."""
    if not secret:
        return
    yield from (secret, quote(secret, safe=""), quote_plus(secret), quote(secret, safe="").lower())
    yield from (repr(secret)[1:-1], json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    yield from _base64(secret.encode())
    lines = secret.splitlines()
    if len(lines) > 1:
        yield from (form for line in lines if len(line.strip()) >= SHORTEST for form in _forms(line.strip()))


def _base64(secret: bytes) -> Iterator[str]:
    """Its base64 at each of the three offsets, without the digits that it shares with its neighbours."""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret).decode().rstrip("=")
        shared_at_end = 0 if (before + len(secret)) % 3 == 0 else 1
        core = encoded[-(-before * 8 // 6) : len(encoded) - shared_at_end]
        if len(core) >= SHORTEST:
            yield from (core, core.replace("+", "-").replace("/", "_"))
