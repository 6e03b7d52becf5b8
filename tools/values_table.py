"""The table of values in the chart's README.md, made from values.yaml: a value's row is the comment above it.

A value is one row with all its content, unless values below it have comments of their own. A value without a comment is
an error: a value that cannot be described in a sentence is not ready to be offered.

    python tools/values_table.py     # writes the table into chart/README.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[1] / "chart"
BEGIN, END = "<!-- values: made by values_table.py -->\n", "<!-- end of values -->\n"


def rows(text: str) -> list[str]:
    """The rows for the values in a YAML file, in its order. Raises ValueError naming a value without a comment."""
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise TypeError("the values must be a mapping")
    return list(_rows(root, "", text.splitlines()))


def readme() -> str:
    """README.md with the table as it should be."""
    before, _, rest = (CHART / "README.md").read_text().partition(BEGIN)
    table = ["| value | default | |", "|---|---|---|", *rows((CHART / "values.yaml").read_text())]
    return before + BEGIN + "\n".join(table) + "\n" + END + rest.partition(END)[2]


def _rows(mapping: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[str]:
    for key, value in mapping.value:
        path = prefix + key.value
        if _holds_values(value, lines):
            yield from _rows(value, f"{path}.", lines)
        elif says := _comment(key, lines):
            yield f"| `{path}` | `{_default(value)}` | {says} |"
        else:
            raise ValueError(f"values.yaml: {path} has no comment")


def _holds_values(node: yaml.Node, lines: list[str]) -> bool:
    if not isinstance(node, yaml.MappingNode):
        return False
    return any(_comment(key, lines) or _holds_values(value, lines) for key, value in node.value)


def _comment(key: yaml.Node, lines: list[str]) -> str:
    """The lines of comment right above a key. A key in a `{…}` on the line of another has none."""
    number = key.start_mark.line
    if lines[number][: key.start_mark.column].strip():
        return ""
    found: list[str] = []
    while number and (line := lines[number - 1].strip()).startswith("#"):
        found.insert(0, line.lstrip("# "))
        number -= 1
    return " ".join(found).replace("|", "\\|")


def _default(value: yaml.Node) -> str:
    return json.dumps(yaml.safe_load(yaml.serialize(value))).replace("|", "\\|")


if __name__ == "__main__":
    (CHART / "README.md").write_text(readme())
