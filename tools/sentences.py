"""The sentences of errors in docs/troubleshooting.md, read from the code.

A list of sentences there follows a line that names its modules or packages; the longest name that fits a module counts.
The sentences of `ROWS` have rows that are written by hand, with cause and cure.

    <!-- sentences: handlers/auth.py handlers/oidc.py -->

    python tools/sentences.py     # fills the lists in docs/troubleshooting.md
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
PACKAGES = ("builds", "eventing", "handlers", "kiln")

ROOTS = {
    *("BuildsError", "EngineError", "EventError", "KilnError", "RegistryError"),
    *("Cure", "Failure", "Problem", "Row", "Trouble"),
}
"""Classes whose constructors take a sentence for people; their subclasses count, too."""
TABLES = {"MESSAGES", "_FETCH_SENTENCES", "_SENTENCES"}
"""Tables of patterns, whose last column is a sentence."""
ROWS = (
    *("builds/builder/", "builds/clients/git/", "builds/clients/guard.py", "builds/engines/kubernetes/sightings.py"),
    "kiln/doctor/",
)
"""Modules, or packages, whose sentences need a row each."""
CONFIGURATION = {f"kiln/{name}.py" for name in ("config", "secrets", "settings", "wiring", "yamlfile")}
"""Modules where a ValueError and the values of a generator are problems that `kiln check` reports."""

_LIST = re.compile(r"<!-- sentences: (?P<modules>[^>]+) -->\n\n```text\n(?P<list>.*?)```\n", re.DOTALL)
_FIELD = re.compile(r"\{\w*\}")


def page() -> str:
    """docs/troubleshooting.md with its lists filled."""
    return _LIST.sub(_filled, PAGE.read_text())


def missing() -> list[str]:
    """`module: sentence` for each sentence that the page neither lists nor has a row for."""
    text = " ".join(PAGE.read_text().split())
    return [f"{module}: {one}" for module in _modules() for one in sentences(module) if _known(one) not in text]


def sentences(module: str) -> list[str]:
    """The sentences of a module for people, in its order, with `…` for the parts that vary."""
    found = (text for node in ast.walk(_tree(module)) for text in _texts(node, module))
    return list(dict.fromkeys(" ".join(text.split()) for text in found if len(re.findall(r"[A-Za-z]{2,}", text)) > 2))  # noqa: PLR2004


def _filled(match: re.Match[str]) -> str:
    given = set(match["modules"].split())
    lines = (f"{one}\n" for module in _modules() if _place(module) in given for one in sentences(module))
    return match[0].replace(f"```text\n{match['list']}```", f"```text\n{''.join(lines)}```")


def _place(module: str) -> str:
    """The longest name in the page, or in `ROWS`, that fits the module."""
    named = [name for match in _LIST.finditer(PAGE.read_text()) for name in match["modules"].split()]
    return max((name for name in (*named, *ROWS) if module.startswith(name)), key=len, default="")


def _known(sentence: str) -> str:
    """The part that the page must contain: all but a variable part, or a full stop, at either end."""
    return sentence.strip("… .:")


@cache
def _modules() -> Sequence[str]:
    return sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text())


@cache
def _names() -> frozenset[str]:
    """The names of the classes whose constructors take a sentence."""
    classes = [node for module in _modules() for node in ast.walk(_tree(module)) if isinstance(node, ast.ClassDef)]
    names, before = set(ROOTS), set[str]()
    while names != before:
        before = set(names)
        names |= {one.name for one in classes if any(ast.unparse(base).split(".")[-1] in names for base in one.bases)}
    return frozenset(names)


def _texts(node: ast.AST, module: str) -> Iterator[str]:
    """The sentences of a node, without those of its children."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args, keywords=keywords):
            if name in _names() or (name == "ValueError" and module in CONFIGURATION):
                yield from filter(None, map(_text, [*args, *(one.value for one in keywords)]))
        case ast.Yield(value=ast.JoinedStr() | ast.Constant() as value) if module in CONFIGURATION:
            yield _text(value)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.Tuple(elts=rows)) if name in TABLES:
            yield from (_text(row.elts[-1]) for row in rows if isinstance(row, ast.Tuple))


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return _FIELD.sub("…", text)
        case ast.JoinedStr(values=values):
            return "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in values)
    return ""


if __name__ == "__main__":
    PAGE.write_text(page())
