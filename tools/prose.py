"""Check the prose of the repository with the rules in `styles/Kiln`.

The rules are files of Vale (https://vale.sh/docs/checks), so an editor with Vale reports the same findings. `make
prose` needs no Vale. This module interprets the kinds of rule that the style uses. It also reads the messages in
strings of Python and JavaScript, and Jinja templates, which Vale skips.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markdown_it import MarkdownIt
from pygments.lexers import get_lexer_for_filename
from pygments.token import Comment, String

ROOT = Path(__file__).resolve().parents[1]
STYLE = ROOT / "styles" / "Kiln"
MARKDOWN = MarkdownIt("commonmark").enable("table")
SENTENCE = re.compile(r"(?<=[.!?])[\"')*]*\s+(?=[A-Z0-9*`\"'(\[]|(?:docker|git|ssh)\b)")
PRAGMA = re.compile(r"#!|#\s*(?:noqa|type:|pragma|fmt:|mypy:)|#\s*-+$")
TREE = re.compile("[├└]──")  # a drawing
WORD = re.compile(r"(?:^|\s)\(?[A-Za-z]?[a-z'-]+(?=[\s,.:;)?!]|$)")
MESSAGE_WORDS = 4  # shorter strings are names and values
MESSAGE_LINES = 3
READ_ATTRIBUTES = {"alt", "aria-label", "placeholder", "title"}
INLINE = {"a", "b", "bdi", "code", "em", "i", "small", "span", "strong", "time"}


@dataclass(frozen=True)
class Text:
    """A passage of prose: a paragraph, a cell, a comment or a message."""

    path: Path
    line: int  # from 1
    words: str  # on one line, with `Code` in place of code

    def sentences(self) -> list[str]:
        return SENTENCE.split(self.words)


@dataclass(frozen=True)
class Rule:
    """A rule of Vale: a match of `pattern` is a fault if a sentence has more than `most` of them."""

    name: str
    pattern: re.Pattern[str]
    message: str  # with %s for the match, and for a substitution first the better word
    swap: tuple[tuple[re.Pattern[str], str], ...] = ()
    most: int = 0

    def finding(self, sentence: str) -> str | None:
        found = list(self.pattern.finditer(sentence))
        if len(found) <= self.most:
            return None
        hit = found[0].group()
        better = next((better for wrong, better in self.swap if wrong.fullmatch(sentence, *found[0].span())), None)
        return self.message % ((better, hit) if better else (hit,) if "%s" in self.message else ())


@dataclass(frozen=True)
class Finding:
    text: Text
    rule: str
    message: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.text.path}:{self.text.line}: {self.rule}: {self.message}\n    {self.sentence}"


# Rules. ---------------------------------------------------------------------------------------------------------------


def word(expression: str, *, case: bool) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{expression})\b", re.IGNORECASE if case else 0)


def existence(raw: dict[str, Any], *, case: bool) -> re.Pattern[str]:
    """Match `raw`, joined as it is, or `tokens` as whole words."""
    if "raw" in raw:
        return re.compile("".join(raw["raw"]), re.IGNORECASE if case else 0)
    return word("|".join(raw["tokens"]), case=case)


def rule(path: Path) -> Rule:
    """Read one file of Vale. Raises `ValueError` for a kind of rule which this module does not interpret."""
    raw: dict[str, Any] = yaml.safe_load(path.read_text())
    case = bool(raw.get("ignorecase"))
    match raw["extends"]:
        case "existence":
            return Rule(path.stem, existence(raw, case=case), raw["message"])
        case "substitution":
            swap = tuple((word(wrong, case=case), better) for wrong, better in raw["swap"].items())
            return Rule(path.stem, word("|".join(raw["swap"]), case=case), raw["message"], swap)
        case "occurrence":
            return Rule(path.stem, re.compile(raw["token"]), raw["message"], most=raw["max"])
        case kind:
            raise ValueError(f"{path}: unknown kind of rule: {kind}")


@cache
def rules() -> tuple[Rule, ...]:
    return tuple(rule(path) for path in sorted(STYLE.glob("*.yml")))


def check(text: Text) -> Iterator[Finding]:
    for sentence in text.sentences():
        for one in rules():
            message = one.finding(sentence)
            if message:
                yield Finding(text, one.name, message, sentence)


# Texts. ---------------------------------------------------------------------------------------------------------------


def markdown(path: Path, source: str, first: int = 1) -> Iterator[Text]:
    """Read paragraphs, headings, items and cells, whose parts count as sentences. Blocks of code are left out."""
    line, cell = first, False
    for token in MARKDOWN.parse(source):
        cell = token.type in {"td_open", "th_open"} or (cell and token.type == "inline")
        line = first + token.map[0] if token.map else line
        if token.type == "inline" and not TREE.search(token.content):
            children = token.children or []
            words = "".join(
                "Code" if child.type == "code_inline" else child.content or " "
                for child in children
                if child.type in {"text", "code_inline", "softbreak", "hardbreak"}
            )
            for part in re.split("[;:] ", words) if cell else [words]:
                yield Text(path, line, " ".join(part.split()))


def docstrings(nodes: Sequence[ast.AST]) -> Iterator[ast.Constant]:
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def literal(node: ast.AST) -> str | None:
    """The text of a string, or of an f-string with `Code` in place of its expressions."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "Code" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def messages(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    """Find the strings that read as prose: at least four words, most of them without capitals.

    A string of more than a few lines is a program or a document, unless it describes an attribute.
    """
    known = {id(node) for node in docstrings(nodes)}
    attributes = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        text = None if id(node) in known else literal(node)
        if isinstance(node, ast.JoinedStr):
            known |= {id(part) for part in node.values}
        if text and text.count("\n") > MESSAGE_LINES and id(node) not in attributes:
            continue
        if text and is_message(text):
            yield getattr(node, "lineno", 1), text


def is_message(text: str) -> bool:
    return len(WORD.findall(text)) >= MESSAGE_WORDS


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Find the comments; lines which stand one below the other are one text."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [token for token in tokens if token.type == tokenize.COMMENT and not PRAGMA.match(token.string)]

    def block(item: tuple[int, tokenize.TokenInfo]) -> tuple[int, int]:
        number, token = item
        return (token.start[0] - number, token.start[1])

    for _, group in groupby(enumerate(found), key=block):
        lines = [token for _, token in group]
        yield lines[0].start[0], " ".join(token.string.lstrip("# ") for token in lines)


def python(path: Path, source: str) -> Iterator[Text]:
    nodes = [*ast.walk(ast.parse(source))]
    for node in docstrings(nodes):
        yield from markdown(path, re.sub(r"\n +", "\n", str(node.value)), node.lineno)
    for line, text in [*comments(source), *messages(nodes)]:
        yield from (Text(path, line, one.words) for one in markdown(path, text.strip()))


def hashes(path: Path, source: str) -> Iterator[Text]:
    """Read the comments of YAML or a Makefile, where each begins a line."""
    lines = [(number, line.strip()) for number, line in enumerate(source.splitlines(), 1)]
    for is_comment, group in groupby(lines, key=lambda item: item[1].startswith("# ")):
        block = list(group)
        if is_comment:
            yield from markdown(path, "\n".join(line.lstrip("# ") for _, line in block), block[0][0])


def script(path: Path, source: str) -> Iterator[Text]:
    """Read the comments of JavaScript or CSS, and the messages in their strings.

    Comments on consecutive lines are one text, but a comment after code is one of its own.
    """
    line, block, first, code = 1, "", 1, 0
    for kind, value in get_lexer_for_filename(path.name).get_tokens(source):
        if kind in Comment and code == line:
            yield from markdown(path, value.strip("/* "), line)
        elif kind in Comment:
            first, block = (first, f"{block} {value.strip('/* ')}") if block else (line, value.strip("/* "))
        elif value.strip():
            yield from markdown(path, block, first)
            block, code = "", line + value.count("\n")
            if kind in String and is_message(text := value.strip("\"'`")):
                yield from markdown(path, text, line)
        line += value.count("\n")
    yield from markdown(path, block, first)


class Page(HTMLParser):
    """Collects the texts of HTML, which are the passages between the tags of blocks, and the attributes for readers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        self._line = 1
        self._words = ""
        self._code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(self.getpos()[0], value) for name, value in attrs if name in READ_ATTRIBUTES and value]
        self._code = tag in {"code", "pre", "script", "style"}
        self._words += "Code" if tag == "code" else ""
        if tag not in INLINE:
            self.close_text()

    def handle_endtag(self, tag: str) -> None:
        self._code = False
        if tag not in INLINE:
            self.close_text()

    def handle_data(self, data: str) -> None:
        if not self._words.strip():
            self._line = self.getpos()[0] + data[: len(data) - len(data.lstrip())].count("\n")
        self._words += "" if self._code else data

    def close_text(self) -> None:
        self.found.append((self._line, " ".join(self._words.split())))
        self._words = ""


def template(path: Path, source: str) -> Iterator[Text]:
    """Read the texts of a Jinja template, its comments, and the messages in its expressions.

    `Code` stands for an expression. The parts of an `if` form one text, because they share its sentence.
    """
    page, markup = Page(), ""
    for line, kind, value in jinja2.Environment(autoescape=True).lexer.tokeniter(source, str(path)):
        markup += "\n" * (line - 1 - markup.count("\n"))
        if kind == "data":
            markup += value
        elif kind in {"variable_begin", "block_begin"}:
            markup += "Code" if kind == "variable_begin" else " "
        elif kind == "comment" or (kind == "string" and is_message(value.strip("\"'"))):
            yield from markdown(path, value.strip("\"' "), line)
    page.feed(markup)
    page.close_text()
    for line, words in page.found:
        yield Text(path, line, words)


def texts(path: Path) -> Iterator[Text]:
    readers = {".md": markdown, ".py": python, ".js": script, ".css": script, ".html": template}
    yield from readers.get(path.suffix, hashes)(path.relative_to(ROOT), path.read_text())


# The command. ---------------------------------------------------------------------------------------------------------


def covered() -> Iterator[Path]:
    """The files which `styles/files` names by pattern, one a line; `!` takes files out again."""
    chosen: set[Path] = set()
    for line in (ROOT / "styles" / "files").read_text().split():
        found = {path for path in ROOT.glob(line.removeprefix("!")) if path.is_file()}
        chosen = chosen - found if line.startswith("!") else chosen | found
    yield from sorted(chosen)


def main(names: list[str]) -> int:
    paths = [Path(name).resolve() for name in names] or list(covered())
    findings = [finding for path in paths for text in texts(path) for finding in check(text)]
    for finding in findings:
        sys.stdout.write(f"{finding}\n")
    sys.stdout.write(f"{len(paths)} files, {len(findings)} findings\n")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
