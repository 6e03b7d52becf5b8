"""Tables of builds and findings for a terminal.

rich takes colours and width from the terminal, and respects `NO_COLOR` (https://no-color.org). Control characters in
texts of a repository are removed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text

from kiln.client import BuildJSON
from kiln.progress import printable

if TYPE_CHECKING:
    from kiln.doctor.findings import Finding

STYLES = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "ok": "green",
    "warning": "yellow",
}
STEPS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
HEADINGS = ("NAME", "STATE", "REPOSITORY", "REF", "COMMIT", "AGE", "TOOK")
OPTIONAL = ("TOOK", "COMMIT", "REF", "REPOSITORY", "AGE")
"""Columns that a narrow terminal omits, in this order."""
SHORTENED = {"REPOSITORY": 40, "REF": 20}
"""Widths of columns in a terminal that is too narrow for the whole table."""
COMMIT_DIGITS = 7
MAX_WIDTH = 10_000
"""Columns of an output that is not a terminal."""


def print_builds(builds: Iterable[BuildJSON], now: datetime) -> None:
    """Print a line for each build. A terminal that is too narrow shows fewer columns, but names in full."""
    rows = [_cells(build, now) for build in builds]
    console = _console()
    widths = _fitting(rows, console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    overflow: OverflowMethod = "ellipsis" if console.encoding.startswith("utf") else "crop"
    for heading, width in widths.items():
        table.add_column(heading, no_wrap=True, overflow=overflow, max_width=width)
    for row in rows:
        table.add_row(*(row[heading] for heading in widths))
    console.width = max(console.width, _total(widths))  # a narrower terminal wraps the lines itself
    _print(table, console)


def _cells(build: BuildJSON, now: datetime) -> dict[str, Text]:
    cells = {
        "NAME": build["name"],
        "STATE": _state(build),
        "REPOSITORY": _short(build["repository"]),
        "REF": _ref(build),
        "COMMIT": build["commit"][:COMMIT_DIGITS],
        "AGE": age(build["queued_at"], now),
        "TOOK": took(build),
    }
    return {heading: _text(cell) for heading, cell in cells.items()}


def _fitting(rows: Iterable[Mapping[str, Text]], width: int) -> dict[str, int]:
    """The columns for a terminal of `width`, and the width of each. The name and the state never lose characters."""
    widths = {heading: len(heading) for heading in HEADINGS}
    for row in rows:
        widths = {heading: max(longest, row[heading].cell_len) for heading, longest in widths.items()}
    if _total(widths) > width:
        widths |= {heading: min(widths[heading], most) for heading, most in SHORTENED.items()}
    for heading in OPTIONAL:
        if _total(widths) > width:
            del widths[heading]
    return widths


def _total(widths: Mapping[str, int]) -> int:
    """Columns of a table, with two spaces between its own."""
    return sum(widths.values()) + 2 * (len(widths) - 1)


def print_build(build: BuildJSON) -> None:
    """Print all facts about a build, one per line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(build):
        if value:
            table.add_row(name, _text(value))
    _print(table, _console())


def print_findings(findings: Iterable[Finding]) -> None:
    """Print a line for each finding of `kiln doctor`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("STATE", "PROBE", "FOUND", "WHAT TO DO"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "STATE")
    for one in findings:
        table.add_row(*(_text(cell) for cell in (one.state, one.probe, one.found, one.cure)))
    _print(table, _console())


def _console() -> Console:
    """A console with the terminal's width; elsewhere each row is one line, so that `grep` finds whole names."""
    console = Console()
    return console if console.is_terminal else Console(width=MAX_WIDTH)


def _print(table: Table, console: Console) -> None:
    """Print a table without the spaces at the ends of its lines."""
    with console.capture() as printed:
        console.print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in printed.get().splitlines()))


def _facts(build: BuildJSON) -> Iterable[tuple[str, Any]]:
    durations = {name: seconds for name, seconds in build["durations"].items() if seconds is not None}
    yield "Name", build["name"]
    yield "State", _state(build)
    yield "Why", build["message"] or build["waiting"]
    yield "Repository", build["repository"]
    yield "Ref", build["ref"]
    yield "Commit", build["commit"]
    yield "Folder", build["subdir"]
    yield "Image", build["image"]["reference"]
    yield "Tags", ", ".join(build["image"]["tags"])
    yield "Node", build["node"]
    yield "Asked for", build["queued_at"]
    yield "Ended", build["finished_at"]
    yield "Times", ", ".join(f"{name} {span(seconds)}" for name, seconds in durations.items())
    for cause in build["causes"]:
        yield "Asked by", " ".join(filter(None, (cause["by"] or cause["source"], cause["type"], cause["ref"])))
    for attempt in build["attempts"]:
        said = [attempt["state"] or "runs", f"on {attempt['node']}", attempt["message"]]
        yield f"Attempt {attempt['number']}", " ".join(filter(None, said))
    for delivery in build["deliveries"]:
        line = f"{delivery['sink']}: {delivery['type']} {delivery['state']}"
        yield "Delivery", f"{line} ({delivery['error']})" if delivery["error"] else line


def _state(build: BuildJSON) -> str:
    return f"{build['state']} ({build['reason']})" if build["reason"] else str(build["state"])


def _text(value: str | None) -> Text:
    """Colour a state; rich must not interpret the text as markup."""
    text = printable(value or "")
    return Text(text, style=STYLES.get(text.partition(" ")[0], ""))


def _short(repository: str) -> str:
    """The URL without its scheme."""
    parts = urlsplit(repository)
    return f"{parts.netloc}{parts.path}"


def _ref(build: BuildJSON) -> str:
    ref = str(build["ref"] or "")
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")


def took(build: BuildJSON) -> str:
    """The duration of the latest attempt; empty until its end."""
    if not build["started_at"] or not build["finished_at"]:
        return ""
    return span(
        (datetime.fromisoformat(build["finished_at"]) - datetime.fromisoformat(build["started_at"])).total_seconds()
    )


def age(moment: str, now: datetime) -> str:
    """The time since an RFC 3339 time."""
    return span((now - datetime.fromisoformat(moment).astimezone(UTC)).total_seconds())


def span(seconds: float) -> str:
    """A duration in the largest unit that is not longer than it."""
    size, unit = next(((size, unit) for size, unit in STEPS if seconds >= size), STEPS[-1])
    return (
        f"{seconds / size:.1f} {unit}" if unit == "s" and seconds < STEPS[-2][0] else f"{int(seconds // size)} {unit}"
    )
