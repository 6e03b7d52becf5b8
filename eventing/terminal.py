"""Terminal output as text: lines without control sequences, and runs of one style for pages.

The only table of control sequences (ECMA-48; SGR as xterm has it). A log is text of a stranger's repository, so
everything that could steer a terminal or turn text around is dropped; only colours and weights can be kept. Each line
is read by itself: what an earlier one set does not reach into the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

# No alternative can match in two ways or run on beyond the next control character, so a match is linear in its text.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)(?P<arguments>[0-?]*)[ -/]*(?P<final>[@-~])"
    r"|(?:\x1b[PX\]^_]|[\x90\x98\x9d\x9e\x9f])[^\x00-\x1f\x7f-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
)
"""Control sequences; strings with their terminator (titles, links); other escapes, also those that are cut off."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_TOKEN = re.compile(rf"{_SEQUENCE.pattern}|\r")

_ON = {1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike"}
_OFF = {22: {"bold", "dim"}, 23: {"italic"}, 24: {"underline"}, 27: {"inverse"}, 29: {"strike"}}
_BASIC = (
    "000000 cd0000 00cd00 cdcd00 0000ee cd00cd 00cdcd e5e5e5 7f7f7f ff0000 00ff00 ffff00 5c5cff ff00ff 00ffff ffffff"
)
_PALETTE = tuple(tuple(bytes.fromhex(colour)) for colour in _BASIC.split())
"""The sixteen colours of xterm. Every other colour is shown as the nearest of these: pages have a class for each, made
for contrast, and allow no inline style."""
_EXTENDED = {38: "fg", 48: "bg"}
_CUBE = (0, 95, 135, 175, 215, 255)


class Run(NamedTuple):
    """Text of one style. `style` are the classes of a page: `bold`, `fg-1`, `bg-12`; empty for plain text."""

    text: str
    style: str


@dataclass(frozen=True)
class _Style:
    fg: int | None = None
    bg: int | None = None
    on: frozenset[str] = frozenset()

    def after(self, arguments: str) -> _Style:
        """The style that an SGR sequence with these arguments leaves."""
        style, codes = self, iter(arguments.split(";"))
        for code in codes:
            style = style._with(code, codes)
        return style

    def _with(self, code: str, rest: Iterator[str]) -> _Style:
        first, *parts = code.split(":")
        number = int(first) if first.isdecimal() else 0
        if number in _EXTENDED:
            return self._painted(_EXTENDED[number], _extended(iter(parts) if parts else rest, colons=bool(parts)))
        if number in _ON:
            off = parts == ["0"]  # 4:0 is no underline
            return replace(self, on=self.on - {_ON[number]} if off else self.on | {_ON[number]})
        if number in _OFF:
            return replace(self, on=self.on - _OFF[number])
        return self._coloured(number)

    def _coloured(self, number: int) -> _Style:
        bright = 8 if number >= 90 else 0  # noqa: PLR2004
        tens, colour = divmod(number - (60 if bright else 0), 10)
        ground = {3: "fg", 4: "bg"}.get(tens)
        if ground and colour < 8:  # noqa: PLR2004
            return self._painted(ground, colour + bright)
        if number in (39, 49):
            return self._painted(str(ground), None)
        return _Style() if number == 0 else self

    def _painted(self, ground: str, colour: int | None) -> _Style:
        return replace(self, fg=colour) if ground == "fg" else replace(self, bg=colour)

    @property
    def classes(self) -> str:
        fg, bg = self.fg, self.bg
        if "inverse" in self.on:
            fg, bg = 0 if bg is None else bg, 7 if fg is None else fg
        colours = [f"{name}-{colour}" for name, colour in (("fg", fg), ("bg", bg)) if colour is not None]
        return " ".join([*sorted(self.on - {"inverse"}), *colours])


def plain(line: str) -> str:
    """The line as a terminal shows it, as text: no codes, and nothing that a carriage return has written over."""
    if not _CONTROL.search(line):
        return line
    return _CONTROL.sub("", _SEQUENCE.sub("", line.rstrip("\r").rpartition("\r")[2]))


def without_sequences(text: bytes) -> bytes:
    """The text, of one line or many, without control sequences. Everything else stays."""
    return _SEQUENCE.sub("", text.decode(errors="surrogateescape")).encode(errors="surrogateescape")


def styled(line: str) -> list[Run]:
    """Splits the line into runs of one style each."""
    if not _CONTROL.search(line):
        return [Run(line, "")]
    runs: list[Run] = []
    style, place, line = _Style(), 0, line.rstrip("\r")
    for token in _TOKEN.finditer(line):
        _add(runs, line[place : token.start()], style)
        place = token.end()
        if token[0] == "\r":
            runs.clear()
        elif _sets_style(token):
            style = style.after(token["arguments"])
    _add(runs, line[place:], style)
    return runs


def coloured(line: str) -> str:
    """Returns the text with its style codes and no other control sequences, safe for a terminal."""
    if not _CONTROL.search(line):
        return line
    shown = line.rstrip("\r").rpartition("\r")[2]
    pieces, place = [], 0
    for token in _SEQUENCE.finditer(shown):
        pieces.append(_CONTROL.sub("", shown[place : token.start()]))
        pieces.append(f"\x1b[{token['arguments']}m" if _sets_style(token) else "")
        place = token.end()
    return "".join([*pieces, _CONTROL.sub("", shown[place:])])


def _sets_style(token: re.Match[str]) -> bool:
    """Whether it is SGR. Private parameters (`>4;2m`) mean something else."""
    return token["final"] == "m" and re.fullmatch(r"[0-9;:]*", token["arguments"]) is not None


def _add(runs: list[Run], text: str, style: _Style) -> None:
    """Adds what is visible of it, to the last run where that has the same style."""
    text = _CONTROL.sub("", text)
    if not text:
        return
    if runs and runs[-1].style == style.classes:
        text = runs.pop().text + text
    runs.append(Run(text, style.classes))


def _extended(codes: Iterator[str], *, colons: bool) -> int | None:
    """The colour that follows `38` or `48`: `5;n`, `2;r;g;b`, or ITU-T T.416's `2:<space>:r:g:b`. `None` if unknown."""
    kind = next(codes, "")
    wanted = {"5": 1, "2": 3}.get(kind, 0)
    if colons:
        codes = iter([*codes][-wanted:])
    values = [int(code) & 255 if code.isdecimal() else 0 for code, _ in zip(codes, range(wanted), strict=False)]
    if not wanted or len(values) < wanted:
        return None
    return _indexed(values[0]) if kind == "5" else _nearest(*values)


def _indexed(number: int) -> int:
    """One of the 256 colours as one of the sixteen."""
    if number < len(_PALETTE):
        return number
    if number >= 232:  # noqa: PLR2004  (24 greys)
        return _nearest(*[8 + 10 * (number - 232)] * 3)
    red, rest = divmod(number - 16, 36)
    return _nearest(*(_CUBE[level] for level in (red, *divmod(rest, 6))))


@lru_cache(4096)
def _nearest(*colour: int) -> int:
    def distance(index: int) -> int:
        return sum((one - other) ** 2 for one, other in zip(colour, _PALETTE[index], strict=True))

    return min(range(len(_PALETTE)), key=distance)


def classes() -> list[str]:
    """Every class that `styled` can give."""
    colours = (f"{name}-{number}" for name in ("fg", "bg") for number in range(len(_PALETTE)))
    return [*chain(set(_ON.values()) - {"inverse"}, colours)]
