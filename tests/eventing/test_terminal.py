"""Lines of a terminal as text and as styled runs: no control sequence remains, and every colour has a class."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.terminal import Run, classes, coloured, plain, styled

STYLE = Path(__file__).parents[2] / "handlers/static/kiln.css"
CODES = [
    "\x1b[",
    "\x9b",
    "\x1b]",
    "\x1b",
    "m",
    "38;5;",
    "48;2;",
    ";",
    ":",
    "1",
    "31",
    "255",
    "\r",
    "\x07",
    "\x1b\\",
    ">",
]
LINES = st.lists(st.sampled_from(CODES) | st.text(max_size=5)).map("".join).map(lambda text: text.replace("\n", ""))
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@given(LINES)
def test_no_control_character_is_left_whatever_the_line(line: str) -> None:
    runs = styled(line)
    assert "".join(run.text for run in runs) == plain(line)
    assert not CONTROLS.search(plain(line))
    assert not CONTROLS.search(re.sub(r"\x1b\[[0-9;:]*m", "", coloured(line)))
    assert {name for run in runs for name in run.style.split()} <= {*classes()}
    assert all(before.style != after.style for before, after in pairwise(runs))


@given(LINES)
def test_what_a_log_keeps_of_a_line_shows_the_same_text(line: str) -> None:
    kept = coloured(line)
    assert plain(kept) == plain(line)
    assert coloured(kept) == kept


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("plain\ttext", [Run("plain\ttext", "")]),
        ("", [Run("", "")]),
        ("\x1b[1;31mx\x1b[m y", [Run("x", "bold fg-1"), Run(" y", "")]),
        ("\x1b[38;5;196mx\x1b[39my", [Run("x", "fg-9"), Run("y", "")]),
        ("\x1b[38;5;236mx", [Run("x", "fg-0")]),
        ("\x1b[38;2;250;250;250mx", [Run("x", "fg-15")]),
        ("\x1b[38:2::0:0:230mx", [Run("x", "fg-4")]),
        ("\x1b[48:5:2;97mx", [Run("x", "fg-15 bg-2")]),
        ("\x1b[38;5mx", [Run("x", "")]),
        ("\x1b[7mx", [Run("x", "fg-0 bg-7")]),
        ("\x1b[31;44;7mx\x1b[27my", [Run("x", "fg-4 bg-1"), Run("y", "fg-1 bg-4")]),
        ("\x1b[4;9;3;2mx\x1b[4:0;22;29my", [Run("x", "dim italic strike underline"), Run("y", "italic")]),
        ("\x1b[92;101mx\x1b[49my", [Run("x", "fg-10 bg-9"), Run("y", "fg-10")]),
        ("10%\r\x1b[32m20%\r30%\x1b[0m done\r", [Run("30%", "fg-2"), Run(" done", "")]),
        ("\x1b]0;title\x07\x1b]8;;https://evil.example\x1b\\x", [Run("x", "")]),
        ("a\x1b]never ended", [Run("anever ended", "")]),
        ("\x1b[?25l\x1b[>4;2m\x1b[2Jx\x1b(B", [Run("x", "")]),
        ("\x1b[1mx\x1b[31", [Run("x31", "bold")]),
    ],
)
def test_styles(line: str, runs: list[Run]) -> None:
    assert styled(line) == runs


def test_every_class_is_in_the_style_sheet() -> None:
    style = STYLE.read_text()
    assert [name for name in classes() if f".{name} {{" not in style] == []
