"""The output of a build's step, reduced to the lines that may explain a failure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

MAX_LINES = 100
"""Last lines of each step's output."""

LOOKING = "Looking in "
"""The beginning of the lines in which pip names its indexes and links, before all others:
https://pip.pypa.io/en/stable/cli/pip_install/#finding-packages"""


class Output:
    """The last lines, and the earlier ones in which pip last named its indexes and links."""

    def __init__(self) -> None:
        self._looking: deque[str] = deque(maxlen=2)
        self._last: deque[str] = deque(maxlen=MAX_LINES)

    def __iter__(self) -> Iterator[str]:
        yield from self._looking
        yield from self._last

    def append(self, line: str) -> None:
        if len(self._last) == MAX_LINES and self._last[0].startswith(LOOKING):
            self._looking.append(self._last[0])
        self._last.append(line)

    def clear(self) -> None:
        self._looking.clear()
        self._last.clear()
