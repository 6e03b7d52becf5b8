"""The CloudEvents project's own conformance data: every pickle of its HTTP feature and every sample event."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from eventing.event import Event
from eventing.http import decode, encode
from tests.eventing.events import on_the_wire
from tests.parts.published_data import published_data

DOC_STRING = re.compile(r'"""\n(.*?)\n\s*"""', re.DOTALL)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def pickles(feature: str) -> Iterator[str]:
    """Return the scenarios of a Gherkin file, once per row of their examples.

    See https://cucumber.io/docs/gherkin/reference/.
    """
    for outline in re.split(r"^\s*Scenario Outline:", feature, flags=re.MULTILINE)[1:]:
        scenario, _, table = outline.partition("Examples:")
        names, *rows = [cells(line) for line in table.strip().splitlines() if "|" in line]
        for row in rows:
            text = scenario
            for name, value in zip(names, row, strict=True):
                text = text.replace(f"<{name}>", value)
            yield text


def read_request(text: str) -> tuple[dict[str, str], bytes]:
    head, _, body = textwrap.dedent(text).partition("\n\n")
    return dict(line.split(": ", 1) for line in head.splitlines()[1:]), body.encode()


def check(event: Event, attributes: dict[str, str]) -> None:
    for name, value in attributes.items():
        assert event.attribute(name) == value
    assert not set(event.extensions) - set(attributes)


def test_feature() -> None:
    ran = 0
    for pickle in pickles(published_data("cloudevents/http-protocol-binding.feature").read_text()):
        request, data = DOC_STRING.findall(pickle)
        (event,) = decode(*read_request(request))
        table = pickle.partition("Then the attributes are:")[2].partition("And the data")[0]
        (key, value), *rows = [cells(line) for line in table.strip().splitlines()]
        assert (key, value) == ("key", "value")
        check(event, {name: value for name, value in rows})  # noqa: C416 - a row is a list of two
        assert event.data == json.loads(data)
        ran += 1
    assert ran == 4


def sample_events(name: str) -> list[dict[str, Any]]:
    with published_data(f"cloudevents/{name}").open() as stream:
        return list(yaml.load_all(stream, yaml.BaseLoader))  # any other loader turns specversion into a float


@pytest.mark.parametrize(("name", "count"), [("v1.yaml", 2), ("v1_minimum.yaml", 6)])
def test_sample_events(name: str, count: int) -> None:
    samples = sample_events(name)
    assert len(samples) == count
    for sample in samples:
        attributes = dict(sample["ContextAttributes"])
        attributes.update({key: value.strip() for key, value in attributes.pop("Extensions", {}).items()})
        is_json = "json" in attributes.get("datacontenttype", "json")
        data = json.loads(sample["Data"]) if is_json else sample["Data"].encode()
        if sample.get("Mode") == "structured":
            body = json.dumps({**attributes, "data": data}).encode()
            (event,) = decode({"content-type": "application/cloudevents+json"}, body)
        else:
            names = {name: "content-type" if name == "datacontenttype" else f"ce-{name}" for name in attributes}
            (event,) = decode({names[name]: value for name, value in attributes.items()}, sample["Data"].encode())
        check(event, attributes)
        assert event.data == data
        assert decode(*encode(event, "binary")) == decode(*encode(event, "structured")) == [on_the_wire(event)]
