"""Machine-readable documents: the JSON Schemas that events name in `dataschema`, the AsyncAPI and the OpenAPI document.

They are public and contain nothing beyond the documentation except the URL of this installation.
"""

from __future__ import annotations

from functools import cache

from flask import Blueprint, Response

from builds.report import schemas
from handlers import asyncapi, openapi
from handlers.builds import json_response
from handlers.problems import Problem
from handlers.services import services

routes = Blueprint("documents", __name__)

READ_ANYWHERE = {"Access-Control-Allow-Origin": "*"}


@routes.get("/schemas/<name>.json")
def schema(name: str) -> Response:
    found = schemas(services().public_url).get(f"{name}.json")
    if found is None:
        raise Problem(404, "Unknown schema.")
    return json_response(found, headers=READ_ANYWHERE)


@routes.get("/asyncapi.json")
def events() -> Response:
    return json_response(_asyncapi(services().version, services().public_url), headers=READ_ANYWHERE)


@routes.get("/openapi.json")
def http() -> Response:
    return json_response(_openapi(services().version, services().base_path), headers=READ_ANYWHERE)


_openapi = cache(lambda version, base_path: openapi.document(version=version, base_path=base_path))
_asyncapi = cache(lambda version, public_url: asyncapi.document(version=version, public_url=public_url))
