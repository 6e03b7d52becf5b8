"""CDEvents as CloudEvents by their binding, and package URLs by their specification."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.cdevents import TYPES, Name, cdevent, chain_id, end, path, purl, schema_of, triggered_by
from eventing.event import Event
from eventing.http import Mode, decode, encode
from tests.parts.published_data import published_data

AT = datetime(2026, 3, 1, 13, tzinfo=timezone(timedelta(hours=1)))
DIGEST = "sha256:" + "0b31" * 16


def made(name: Name = "build.finished", **more: Any) -> Event:
    fields: dict[str, Any] = {
        "id": "u.1.build.finished",
        "source": "https://kiln.example/",
        "time": AT,
        "chain_id": chain_id(b"\xff" * 32),
        "links": [path("a"), end("a"), *triggered_by(["x"])],
        "subject": "build-a",
        "content": {},
        "custom": {"outcome": "success"},
        "extensions": {"repository": "https://github.com/a/b"},
        **more,
    }
    return cdevent(name, **fields)


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_it_travels_as_the_binding_says(mode: Mode) -> None:
    """https://github.com/cdevents/spec/blob/v0.5.1/cloudevents-binding.md"""
    headers, body = encode(made(), mode)
    (event,) = decode(headers, body)
    data: Any = event.data
    context, subject = data["context"], data["subject"]
    assert (event.id, event.source, event.type) == (context["id"], context["source"], context["type"])
    assert (event.subject, event.attribute("time")) == (subject["id"], context["timestamp"])
    assert event.datacontenttype == "application/json"
    assert event.extensions == {"repository": "https://github.com/a/b"}
    assert (context["specversion"], context["timestamp"]) == ("0.5.1", "2026-03-01T12:00:00Z")
    if mode == "binary":
        assert (headers["ce-specversion"], headers["content-type"]) == ("1.0", "application/json")
        assert json.loads(body) == data


@pytest.mark.parametrize("name", TYPES)
def test_its_types_and_schemas_are_those_that_are_published(name: Name) -> None:
    schema = json.loads(published_data(f"cdevents/{name.replace('.', '')}.json").read_text())
    assert schema["properties"]["context"]["properties"]["type"]["enum"] == [TYPES[name]]
    assert schema["$id"] == schema_of(name)


@given(st.binary(min_size=16, max_size=64))
def test_a_chain_has_a_uuid_of_version_4_always_the_same(seed: bytes) -> None:
    assert UUID(chain_id(seed)).version == 4
    assert chain_id(seed) == chain_id(seed)


@pytest.mark.parametrize(
    ("repository", "name", "where"),
    [
        ("mycr.io/myapp", "myapp", "mycr.io/myapp"),
        ("docker.io/library/debian", "debian", "docker.io/library/debian"),
        ("localhost:5000/a/b-1234", "b-1234", "localhost:5000/a/b-1234"),
        ("[::1]:5000/a", "a", "%5B::1%5D:5000/a"),
    ],
)
def test_the_package_url_of_an_image(repository: str, name: str, where: str) -> None:
    encoded = DIGEST.replace(":", "%3A")
    assert purl(repository, "v1.2_x", DIGEST) == f"pkg:oci/{name}@{encoded}?repository_url={where}&tag=v1.2_x"


def test_times_are_utc() -> None:
    assert made(time=datetime(2026, 1, 1, tzinfo=UTC)).attribute("time") == "2026-01-01T00:00:00Z"
