"""Write the reference pages of the HTTP API and of the events from the documents that web serves: `make reference`.

`docs/openapi.md` and `docs/asyncapi.md` are in the repository, because Read the Docs installs Sphinx but not Kiln. A
test compares them with the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from handlers import asyncapi, openapi

DOCS = Path(__file__).resolve().parents[1] / "docs"
METHODS = ("get", "head", "post", "put", "delete", "options")

Document = dict[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table, followed by an empty line; nothing without rows."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    if lines:
        names = [*head]
        yield from (f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *lines, "")


def named(reference: str) -> str:
    return reference.rpartition("/")[2]


def kind(schema: Document) -> str:
    """The type of a JSON Schema in a few words: `string`, `array of CauseView`, `string or null`."""
    if "$ref" in schema:
        return f"[{named(schema['$ref'])}](#{named(schema['$ref']).lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(kind(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {kind(schema.get('items') or {})}"
    return str(schema.get("type", "any"))


def schemas(components: Document) -> Iterator[str]:
    yield from ("## Schemas", "")
    for name, schema in sorted(components["schemas"].items()):
        yield from (f"### {name}", "")
        if "enum" in schema:
            yield from (f"One of {kind(schema)}.", "")
        required = schema.get("required", [])
        rows = (
            (f"`{field}`", kind(of), "yes" if field in required else "", of.get("description", ""))
            for field, of in schema.get("properties", {}).items()
        )
        yield from table(("field", "type", "required", "description"), rows)


# Routes. --------------------------------------------------------------------------------------------------------------


def bodies(content: Document) -> str:
    return ", ".join(f"`{media}`: {kind(of.get('schema') or {})}" for media, of in content.items())


def operation(path: str, method: str, of: Document, shared: list[Document]) -> Iterator[str]:
    yield from (f"## `{method.upper()} {path}`", "", of["summary"], "")
    parameters = (
        (f"`{one['name']}`", one["in"], kind(one.get("schema") or {}), "yes" if one.get("required") else "")
        for one in [*shared, *of.get("parameters", [])]
    )
    yield from table(("parameter", "in", "type", "required"), parameters)
    if "requestBody" in of:
        yield from (f"Body: {bodies(of['requestBody']['content'])}", "")
    answers = (
        (status, answer.get("description", ""), bodies(answer.get("content", {})))
        for status, answer in of["responses"].items()
    )
    yield from table(("status", "description", "body"), answers)


def routes() -> Iterator[str]:
    document = openapi.document(version="0", base_path="/")
    yield from ("# Routes", "")
    yield from (
        "Web serves these routes, below its base path, and describes them as OpenAPI 3.1 at `/openapi.json`.",
        "",
    )
    yield from ("`make reference` writes this page from that document. [HTTP](api.md) explains the API.", "")
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield from operation(path, method, item[method], item.get("parameters", []))
    yield from schemas(document["components"])


# Events. --------------------------------------------------------------------------------------------------------------


def messages(document: Document, channel: Document) -> list[Document]:
    return [document["components"]["messages"][name] for name in channel["messages"]]


def channels(document: Document) -> Iterator[str]:
    for name, channel in document["channels"].items():
        yield from (
            f"## {name}",
            "",
            f"{channel['summary']} Address: `{channel.get('address') or 'as configured'}`.",
            "",
        )
        rows = (
            (f"`{one['name']}`", one["summary"], kind(one.get("payload") or {})) for one in messages(document, channel)
        )
        yield from table(("type", "description", "data"), rows)


def attributes(document: Document) -> Iterator[str]:
    """The extension attributes, and which messages have them."""
    yield from ("## Extension attributes", "")
    found: dict[tuple[str, str], set[str]] = {}
    for one in document["components"]["messages"].values():
        for header, of in one.get("headers", {}).get("properties", {}).items():
            if of.get("description"):
                found.setdefault((header.removeprefix("ce-"), of["description"]), set()).add(one["tags"][0]["name"])
    rows = ((f"`{name}`", ", ".join(sorted(tags)), says) for (name, says), tags in sorted(found.items()))
    yield from table(("attribute", "messages", "description"), rows)


def events() -> Iterator[str]:
    document = asyncapi.document(version="0", public_url=None)
    yield from ("# Event types", "")
    yield from ("Kiln receives and sends these events, and describes them as AsyncAPI 3 at `/asyncapi.json`.", "")
    yield from ("`make reference` writes this page from that document. [Events](events.md) explains them.", "")
    yield from channels(document)
    yield from attributes(document)
    yield from schemas(document["components"])


PAGES = {"openapi.md": routes, "asyncapi.md": events}


def page(name: str) -> str:
    return "\n".join(PAGES[name]()).rstrip() + "\n"


def main() -> None:
    for name in PAGES:
        (DOCS / name).write_text(page(name))


if __name__ == "__main__":
    main()
