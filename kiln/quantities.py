"""Durations and sizes in human notation: `24h`, `30s`, `1MiB`."""

from __future__ import annotations

import re

SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
LONGEST = 3650 * SECONDS["d"]
"""Ten years: far from where dates and timers overflow."""

_NUMBER = re.compile(r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,6})?) ?(?P<unit>[A-Za-z]{0,3})")


def duration(text: str) -> float:
    """Parse `90`, `1.5h`, `30s`, `7d` (units ms, s, m, h, d) to seconds. Raises ValueError with a sentence."""
    number, unit = _parts(text)
    if unit not in SECONDS:
        raise ValueError("must be a duration such as 90, 30s, 10m, 24h or 7d")
    seconds = float(number) * SECONDS[unit]
    if seconds > LONGEST:
        raise ValueError("must be at most 3650d")
    return seconds


def size(text: str) -> int:
    """Parse `1048576`, `512KiB`, `1MiB` (units B, kB, KiB, MB, MiB, GB, GiB) to bytes. Raises ValueError with a
    sentence.
    """
    number, unit = _parts(text)
    if unit not in BYTES or "." in number:
        raise ValueError("must be a size such as 1048576, 512KiB or 1MiB")
    return int(number) * BYTES[unit]


def _parts(text: str) -> tuple[str, str]:
    found = _NUMBER.fullmatch(text.strip())
    return (found["number"], found["unit"]) if found else ("", "none")
