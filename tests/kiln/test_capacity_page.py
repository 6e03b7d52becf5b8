"""docs/capacity.md: no figure without the command that measures it, the machine and the date."""

from __future__ import annotations

import re

import pytest

from tests.bench.__main__ import BENCHMARKS
from tests.parts.machine import ROOT

PAGE = (ROOT / "docs" / "capacity.md").read_text()
MEASURED = PAGE.partition("\n## Measured\n")[2].partition("\n## ")[0]
ROWS = [line for line in MEASURED.splitlines() if re.match(r"\|(?! ?-)", line)][1:]
"""The rows of the table of figures: quantity, value, command."""
COMMAND = re.compile(r"`python -m tests\.bench (?P<name>[\w-]+)(?: --against <revision>)?`")


def test_there_are_figures() -> None:
    assert len(ROWS) >= 8


@pytest.mark.parametrize("row", ROWS)
def test_each_figure_names_the_command_that_measures_it(row: str) -> None:
    _, what, seen, command, _ = (cell.strip() for cell in row.split("|"))
    found = COMMAND.fullmatch(command)
    assert found, f"{what}: {command}"
    assert found["name"] in BENCHMARKS
    assert re.search(r"\d", seen), what


@pytest.mark.parametrize(
    "word", [r"\d+ processors", r"\b20\d\d-\d\d-\d\d\b", r"load average (of )?\d+", r"Kubernetes \d"]
)
def test_the_figures_say_where_and_when_they_were_measured(word: str) -> None:
    assert re.search(word, MEASURED)


def test_every_figure_of_the_page_is_in_that_table() -> None:
    """A rate or a size elsewhere on the page would have no source."""
    rest = PAGE.replace(MEASURED, "")
    assert not re.findall(r"\d[\d,.]* (?:KB|MB|ms|builds an hour|a second)\b", rest.replace("20 requests a second", ""))
