"""The HTTP API as an OpenAPI 3.1 document: the machine-readable form of docs/api.md.

The schemas are generated from the structs that the code uses. One test compares the paths with the application's
routes; another calls each of them with a client generated from the document.
https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from builds.build import State
from builds.engines.paging import MAX_LISTED
from builds.report import BuildView
from builds.search import MAX_TEXT
from builds.triggers import BuildRequestBody
from eventing.hosts import DIALECTS
from handlers.providers import PROVIDERS

Object = dict[str, Any]

TEXT: Object = {"type": "string"}
JSON = "application/json"
PLAIN = "text/plain"
STREAM = "text/event-stream"
JSON_LINES = "application/x-ndjson"
SVG = "image/svg+xml"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

MEANINGS = {
    400: "Malformed: `detail` says what is wrong.",
    401: "No token or signature, or a wrong one.",
    403: "Authenticated, and not permitted.",
    404: "Not found.",
    405: "Method not allowed; `Allow` lists those that are.",
    409: "The build has ended.",
    413: "The body is too large.",
    415: "The body has another media type, or a `Content-Encoding`.",
    422: "Valid, and cannot be built.",
    429: "Too many requests: try again after `Retry-After`.",
    503: "A service does not answer: try again after `Retry-After`.",
}
"""Errors: problem details (RFC 9457)."""
BODY = (400, 413, 415)
"""Errors of a request with a body."""
KNOWN = (401, 403, 429, 503)
"""Errors of every request that needs a token."""

PROBLEM: Object = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {"type": TEXT, "title": TEXT, "status": {"type": "integer"}, "detail": TEXT},
}
PAGE: Object = {
    "type": "object",
    "required": ["items", "continue"],
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/components/schemas/BuildView"}},
        "continue": {"type": ["string", "null"], "description": "Cursor of the next page: `continue` in the query."},
    },
}
HOOK_ANSWER: Object = {
    "type": "object",
    "required": ["builds"],
    "properties": {
        "builds": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "location"],
                "properties": {"name": TEXT, "location": TEXT},
            },
        },
        "reason": {**TEXT, "description": "Why no build was requested."},
    },
}
EVENT: Object = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {**TEXT, "minLength": 1},
        "source": {**TEXT, "format": "uri-reference", "minLength": 1},
        "type": {**TEXT, "minLength": 1},
        "data": {},
    },
}
HEALTH: Object = {
    "type": "object",
    "required": ["ok", "checks"],
    "properties": {"ok": {"type": "boolean"}, "checks": {"type": "array", "items": {"type": "object"}}},
}


def document(*, version: str, base_path: str) -> Object:
    """The OpenAPI document of this version of Kiln, whose routes are under `base_path`."""
    _, schemas = msgspec.json.schema_components([BuildView, BuildRequestBody], ref_template=_REFERENCE)
    own = {"Problem": PROBLEM, "Page": PAGE, "WebhookAnswer": HOOK_ANSWER, "Event": EVENT, "Health": HEALTH}
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Kiln",
            "version": version,
            "summary": "Builds container images of Git repositories on events.",
            "license": {"name": "BSD 3-Clause", "identifier": "BSD-3-Clause"},
        },
        "servers": [{"url": base_path.rstrip("/") or "/"}],
        "security": [{"token": []}],
        "paths": {**_api(), **_events(), **_binderhub(), **_documents()},
        "components": {
            "schemas": {**schemas, **own},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token, or a token of the Hub or issuer.",
                }
            },
        },
    }


_REFERENCE = "#/components/schemas/{name}"
_SINK = {
    "type": "object",
    "properties": {"sink": {"type": "string", "description": "Name of a sink in the build's `deliveries`."}},
    "required": ["sink"],
    "additionalProperties": False,
}


def _api() -> Object:
    build = _json("BuildView", "The build.")
    location = {"Location": {"schema": TEXT, "description": "The build's path."}}
    query = (
        _query("repository", {**TEXT, "format": "uri"}),
        _query("state", {"enum": [state.value for state in State]}),
        _query("ref", TEXT),
        _query("search", {**TEXT, "maxLength": MAX_TEXT}),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": 50}),
        _query("continue", TEXT),
    )
    attempt = _query("attempt", {"type": "integer", "minimum": 1})
    log = _answer(
        {PLAIN: {"schema": TEXT}, JSON_LINES: {"schema": TEXT}, STREAM: {"schema": TEXT}},
        "The log so far, as text or as JSON lines, or its events.",
    )
    return {
        "/api/v1/builds": {
            "post": _operation(
                "askForBuild",
                "Request a build.",
                {202: {**build, "headers": location}},
                (*BODY, *KNOWN, 422),
                body={JSON: {"schema": {"$ref": _REFERENCE.format(name="BuildRequestBody")}}},
            ),
            "get": _operation(
                "listBuilds",
                "List builds, newest first.",
                {200: _json("Page", "A page.")},
                (400, *KNOWN, 422),
                parameters=query,
            ),
        },
        "/api/v1/builds/{name}": {
            "parameters": [_path("name")],
            "get": _operation("getBuild", "Get a build.", {200: build}, (*KNOWN, 404)),
            "delete": _operation("cancelBuild", "Cancel a build.", {202: build}, (*KNOWN, 404, 409)),
        },
        "/api/v1/builds/{name}/rebuild": {
            "parameters": [_path("name")],
            "post": _operation(
                "rebuild",
                "Ask for the same build once more.",
                {202: {**build, "headers": location}},
                (*BODY, *KNOWN, 404, 422),
                body={JSON: {"schema": {"type": "object", "maxProperties": 0}}},
            ),
        },
        "/api/v1/builds/{name}/resend": {
            "parameters": [_path("name")],
            "post": _operation(
                "resend",
                "Send the last event of an ended build to a sink once more.",
                {202: build},
                (*BODY, *KNOWN, 404, 409),
                body={JSON: {"schema": _SINK}},
            ),
        },
        "/api/v1/builds/{name}/log": {
            "parameters": [_path("name")],
            "get": _operation(
                "getLog",
                "Get or follow a build's log.",
                {200: log},
                (400, *KNOWN, 404),
                parameters=(attempt, _header("Last-Event-ID")),
            ),
        },
    }


def _events() -> Object:
    event, batch = {"$ref": _REFERENCE.format(name="Event")}, {"type": "array"}
    body = {STRUCTURED: {"schema": event}, BATCH: {"schema": {**batch, "items": event}}, "*/*": {"schema": {}}}
    done = {
        202: {"description": "Builds were requested; `Location` is the first one."},
        204: {"description": "Nothing to do."},
    }
    post = _operation("postEvent", "Post CloudEvents, in any mode.", done, (*BODY, *KNOWN, 422), body=body)
    shake = _operation(
        "", "Answer the handshake of CloudEvents webhooks.", {200: {"description": "Permission to post."}}, (401, 403)
    )
    hook = _operation(
        "postWebhook",
        "Receive the webhook of a Git host, authenticated by its signature.",
        {202: _json("WebhookAnswer", "Builds were requested."), 200: _json("WebhookAnswer", "Nothing to do, and why.")},
        (*BODY, *KNOWN, 422),
        body={JSON: {"schema": {"type": "object"}}, "*/*": {"schema": {}}},
        public=True,
    )
    paths = {"/events": "Events", "/": "Root"}
    return {
        **{
            path: {
                "post": {**post, "operationId": f"post{name}"},
                "options": {**shake, "operationId": f"handshake{name}"},
            }
            for path, name in paths.items()
        },
        "/webhooks/{host}": {"parameters": [_path("host", {"enum": [*DIALECTS]})], "post": hook},
    }


def _binderhub() -> Object:
    stream = _answer({STREAM: {"schema": TEXT}}, "The progress of the build, as events; refusals too.")
    spec = {**_path("spec"), "description": "May contain `/`, which clients must not encode."}
    health = _operation(
        "health",
        "Whether registry and records answer.",
        {200: _json("Health", "Both answer."), 503: _json("Health", "One does not answer.")},
        (),
        public=True,
    )
    listed = _answer({JSON: {"schema": {"type": "array"}}}, "The providers.")
    about = _answer({JSON: {"schema": {"type": "object"}}}, "The versions.")
    return {
        "/build/{provider}/{spec}": {
            "parameters": [_path("provider", {"enum": [*PROVIDERS]}), spec],
            "get": _operation("binderhubBuild", "Request a build, as BinderHub's clients do.", {200: stream}, ()),
        },
        "/versions": {"get": _operation("versions", "The versions.", {200: about}, (), public=True)},
        "/health": {"get": health},
        "/api/repoproviders": {"get": _operation("providers", "The providers.", {200: listed}, (), public=True)},
    }


def _documents() -> Object:
    schema = _answer({JSON: {"schema": {"type": "object"}}}, "The document.")
    return {
        "/schemas/{name}.json": {
            "parameters": [_path("name", {"enum": ["build.v1", "request.v1"]})],
            "get": _operation("getSchema", "A JSON Schema.", {200: schema}, (404,), public=True),
        },
        "/badge.svg": {
            "get": _operation(
                "getBadge",
                "The result of the latest build of a repository, as an image.",
                {200: _answer({SVG: {"schema": TEXT}}, "The badge."), 304: {"description": "As in `If-None-Match`."}},
                (503,),
                parameters=(_query("repository", TEXT), _query("ref", TEXT)),
                public=True,
            )
        },
        "/asyncapi.json": {"get": _operation("asyncapi", "All events, as AsyncAPI.", {200: schema}, (), public=True)},
        "/openapi.json": {"get": _operation("openapi", "This document.", {200: schema}, (), public=True)},
    }


def _operation(
    name: str,
    summary: str,
    done: dict[int, Object],
    errors: Iterable[int],
    *,
    parameters: Iterable[Object] = (),
    body: Object | None = None,
    public: bool = False,
) -> Object:
    failed = {
        status: _answer({"application/problem+json": {"schema": _problem()}}, MEANINGS[status]) for status in errors
    }
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [*parameters],
        **({"requestBody": {"required": True, "content": body}} if body else {}),
        "responses": {str(status): one for status, one in sorted({**failed, **done}.items())},
        **({"security": []} if public else {}),
    }


def _problem() -> Object:
    return {"$ref": _REFERENCE.format(name="Problem")}


def _answer(content: Object, description: str) -> Object:
    return {"description": description, "content": content}


def _json(name: str, description: str) -> Object:
    return _answer({JSON: {"schema": {"$ref": _REFERENCE.format(name=name)}}}, description)


def _path(name: str, schema: Object = TEXT) -> Object:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: Object) -> Object:
    return {"name": name, "in": "query", "schema": schema}


def _header(name: str) -> Object:
    return {"name": name, "in": "header", "schema": TEXT}
