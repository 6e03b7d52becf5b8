"""The AsyncAPI document is valid, and every sent event conforms to it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from builds import chain
from builds.build import Build
from builds.plan import Word
from eventing.event import Event
from eventing.http import encode
from handlers.asyncapi import document
from tests.builds.test_report import BUILDS, told

META = Path(__file__).parents[1] / "data" / "asyncapi" / "3.0.0.json.gz"
DOCUMENT = document(version="1.2.3", public_url="https://kiln.example/x")


def sent() -> list[Event]:
    """Return at least one event of each type."""
    own = {word: told(word) for word in BUILDS}
    cdevents = [each for word, event in own.items() for each in chain.events(BUILDS[word], Word(word), 1, event)]
    return [*own.values(), *cdevents]


def message_of(event: Event) -> dict[str, Any]:
    (found,) = [one for one in DOCUMENT["components"]["messages"].values() if one["name"] == event.type]
    return found  # type: ignore[no-any-return]


def resolved(reference: str) -> Any:
    value: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        value = value[part]
    return value


def references(value: object) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [each for part in value.values() for each in references(part)]
    return [each for part in value for each in references(part)] if isinstance(value, list) else []


@pytest.mark.parametrize("public_url", [None, "https://kiln.example/"])
def test_it_is_valid(public_url: str | None) -> None:
    meta = json.loads(gzip.decompress(META.read_bytes()))
    validator = jsonschema.Draft7Validator(meta)
    made = json.loads(json.dumps(document(version="1.2.3", public_url=public_url)))
    assert [error.message for error in validator.iter_errors(made)] == []
    assert not validator.is_valid({**made, "channel": {}})
    assert not validator.is_valid(
        {**made, "operations": {"x": {"action": "take", "channel": {"$ref": "#/channels/x"}}}}
    )


def test_all_that_it_refers_to_is_in_it() -> None:
    assert references(DOCUMENT)
    assert all(resolved(each) for each in references(DOCUMENT))


@pytest.mark.parametrize("event", sent(), ids=lambda event: str(event.id))
def test_what_is_sent_is_as_it_says(event: Event) -> None:
    message, headers = message_of(event), encode(event, "binary")[0]
    schemas = {"components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator({**message["payload"], **schemas}).validate(event.data)
    checked = {name: value for name, value in headers.items() if name != "ce-dataschema"}  # of another URL
    jsonschema.Draft202012Validator(message["headers"]).validate(checked)


def test_something_else_is_not() -> None:
    payload = {**message_of(told("queued"))["payload"], "components": DOCUMENT["components"]}
    build: Build = BUILDS["queued"]
    wrong = {**told("queued", build=build).data, "state": "done"}  # type: ignore[dict-item]
    assert not jsonschema.Draft202012Validator(payload).is_valid(wrong)
