"""The documents that describe Kiln to programs are public, and events link to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest

from builds import report
from builds.build import Build
from tests.handlers.harness import Harness, bearer, body, create_harness


@pytest.fixture
def harnesses(tmp_path: Path) -> Any:
    made: list[Harness] = []

    def make(**changes: Any) -> Harness:
        made.append(create_harness(tmp_path, **{"auth": ["token"], **changes}))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


def event(harness: Harness, build: Build) -> Any:
    now, url = harness.services.now(), harness.services.public_url
    return report.event(build, "queued", 1, source="/kiln", now=now, public_url=url)


@pytest.mark.parametrize("base", ["/", "/services/binder/"])
def test_what_an_event_names_in_dataschema_is_there(harnesses: Callable[..., Harness], base: str) -> None:
    harness = harnesses(public_url=f"https://kiln.example{base}", base_path=base)
    asked = harness.client.post(f"{base}api/v1/builds", json=body(), headers=bearer())
    told = event(harness, harness.engine.get(asked.json["name"]))
    answer = harness.client.get(urlsplit(told.dataschema).path)
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.json["$id"] == told.dataschema == f"https://kiln.example{base}schemas/build.v1.json"
    jsonschema.Draft202012Validator(answer.json).validate(told.data)


@pytest.mark.parametrize("name", ["build.v1", "request.v1"])
def test_schemas_are_for_everybody_without_a_public_url_too(harnesses: Callable[..., Harness], name: str) -> None:
    answer = harnesses().client.get(f"/schemas/{name}.json")
    assert answer.status_code == 200
    assert answer.json["$id"] == report.schema_id(f"{name}.json")
    assert answer.json["$id"].startswith("urn:uuid:")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    jsonschema.Draft202012Validator.check_schema(answer.json)


@pytest.mark.parametrize("name", ["build.v2", "..%2Fapp", "%2e%2e", "build.v1.json"])
def test_another_name_is_404(harnesses: Callable[..., Harness], name: str) -> None:
    answer = harnesses().client.get(f"/schemas/{name}.json")
    assert (answer.status_code, answer.mimetype) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("public_url", "server"),
    [
        (None, None),
        ("https://kiln.example:8443/x/", {"host": "kiln.example:8443", "protocol": "https", "pathname": "/x/"}),
    ],
)
def test_the_asyncapi_document(harnesses: Callable[..., Harness], public_url: str | None, server: object) -> None:
    answer = harnesses(public_url=public_url).client.get("/asyncapi.json")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.json["asyncapi"] == "3.0.0"
    assert answer.json.get("servers", {}).get("web") == server
    assert "canary" not in json.dumps(answer.json)
