"""The OpenAPI document is valid and complete, and the answers to a generated client conform to it."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from handlers import openapi
from handlers.app import create_app
from tests.handlers.harness import Harness, bearer, body, create_harness, push, signed

META = Path(__file__).parents[1] / "data" / "openapi" / "3.1.json.gz"
DOCUMENT = openapi.document(version="0.0.0", base_path="/")
METHODS = ("get", "post", "delete", "options")
PAGES = ("pages.", "signin.", "static")
"""Endpoints for browsers, which docs/api.md documents."""
ENDLESS = "/build/{provider}/{spec}"
"""A stream that lasts until the build ends; no build ends here."""
OPERATIONS = [f"{method} {path}" for path, item in DOCUMENT["paths"].items() for method in METHODS if method in item]
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
"""No check requires that the server accepts every valid request: a schema cannot know which repositories exist."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A harness with a build, tokens, and a queue that never fills up."""
    made = create_harness(tmp_path_factory.mktemp("openapi"), auth=["token"], max_queued=100_000)
    assert made.client.post("/api/v1/builds", json=body(), headers=bearer()).status_code == 202
    yield made
    made.close()


@pytest.mark.parametrize("base", ["/", "/services/binder/"])
def test_it_is_valid(base: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(gzip.decompress(META.read_bytes())))
    made = json.loads(json.dumps(openapi.document(version="1.2.3", base_path=base)))
    assert [error.message for error in validator.iter_errors(made)] == []
    assert not validator.is_valid({**made, "paths": {"no-slash": {}}})
    for schema in made["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_operations_have_names_of_their_own() -> None:
    names = [DOCUMENT["paths"][path][method]["operationId"] for method, path in map(str.split, OPERATIONS)]
    assert len({*names}) == len(names)


def test_it_has_every_route_and_no_other(harness: Harness) -> None:
    """The names of parameters may differ; only the routes are compared."""
    routes = {
        f"{method.lower()} {re.sub(r'<[^>]+>', '{}', rule.rule)}"
        for rule in harness.app.url_map.iter_rules()
        if not rule.endpoint.startswith(PAGES)
        for method in rule.methods or ()
        if method in ("GET", "POST", "DELETE") or (method == "OPTIONS" and rule.endpoint.startswith("events.handshake"))
    }
    documented = {re.sub(r"\{[^}]*\}", "{}", operation) for operation in OPERATIONS}
    assert documented == routes


def test_it_is_served_to_everybody(harness: Harness) -> None:
    answer = harness.client.get("/openapi.json")
    assert (answer.status_code, answer.json) == (200, json.loads(json.dumps(DOCUMENT)))
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


def test_its_server_is_the_base_path(tmp_path: Path) -> None:
    made = create_harness(tmp_path, base_path="/services/binder/")
    assert made.client.get("/services/binder/openapi.json").json["servers"] == [{"url": "/services/binder"}]
    made.close()


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if ENDLESS not in one])
def test_no_answer_is_a_fault_or_undocumented(harness: Harness, operation: str) -> None:
    """Generated requests include valid and invalid ones, with and without a token."""
    schema = schemathesis.openapi.from_wsgi("/openapi.json", create_app(harness.services))
    method, path = operation.split()
    wanted = schema[path][method.upper()]
    modes = schemathesis.GenerationMode

    @settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
    @given(
        case=st.one_of(*(wanted.as_strategy(generation_mode=mode) for mode in (modes.POSITIVE, modes.NEGATIVE))),
        token=st.sampled_from([bearer(), {}, {"Authorization": "Bearer wrong"}]),
    )
    def ask(case: Any, token: dict[str, str]) -> None:
        case.call_and_validate(headers=token, checks=CHECKS)

    ask()


def test_a_build_and_a_webhook_are_as_documented(harness: Harness) -> None:
    """Schemathesis cannot guess the name of a build or the signature of a webhook, so this test supplies them."""
    schema = schemathesis.openapi.from_wsgi("/openapi.json", create_app(harness.services))
    made = harness.builds()[0].name
    for path, values in (
        ("/api/v1/builds/{name}", {"name": made}),
        ("/api/v1/builds/{name}/log", {"name": made}),
        ("/api/v1/builds", {}),
    ):
        schema[path]["GET"].Case(path_parameters=values).call_and_validate(headers=bearer(), checks=CHECKS)
    hook = signed(push())
    case = schema["/webhooks/{host}"]["POST"].Case(
        path_parameters={"host": "github"}, body=json.loads(hook["data"]), media_type="application/json"
    )
    answer = harness.client.post("/webhooks/github", **hook)
    assert answer.status_code == 202
    jsonschema.Draft202012Validator(
        {**DOCUMENT["components"]["schemas"]["WebhookAnswer"], "components": DOCUMENT["components"]}
    ).validate(answer.json)
    case.call_and_validate(checks=CHECKS)
