"""All events that Kiln receives and sends, as an AsyncAPI 3 document: the machine-readable form of docs/events.md.

The schemas are generated from the structs that the code reads and writes. The meaning of each type is written here; a
type without a description makes the generation fail.
https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from builds.chain import BuildCustomData
from builds.plan import Word
from builds.report import BuildView, schema_id
from builds.triggers import HUB_TYPES, REQUESTED, BuildRequestBody
from eventing import cdevents, hops
from eventing.cdevents import Name
from eventing.hosts import DIALECTS

Object = dict[str, Any]

SENT: Mapping[Word, str] = {
    Word.QUEUED: "The build was requested, and waits.",
    Word.STARTED: "An attempt runs.",
    Word.RETRYING: "An attempt ended, and another one follows.",
    Word.SUCCEEDED: "The image is in the registry.",
    Word.FAILED: "The build ended without an image; reason and message say why.",
    Word.CANCELLED: "A user cancelled the build, or a newer push superseded it.",
}
CDEVENTS: Mapping[Name, str] = {
    "build.queued": "The build was requested, and waits; or another attempt follows.",
    "build.started": "An attempt runs.",
    "build.finished": "The build has ended; customData.outcome says how.",
    "artifact.packaged": "An image was made of this change.",
    "artifact.published": "The image is in the registry.",
}
EXTENSIONS: Mapping[str, str] = {
    "repository": "The repository's canonical URL.",
    "ref": "The full ref of the request, where it has one.",
    "commit": "The commit to build.",
    "image": "The pushed image, `name:tag@sha256:…`.",
    "reason": "Why the build, or the attempt, ended as it did.",
    "partitionkey": "The repository, so that brokers keep the order of its events.",
    "traceparent": "The trace context of the event that requested the build (W3C Trace Context).",
    "tracestate": "As `traceparent`.",
    hops.EXTENSION: "How many more brokers the event may pass, where an event that requested the build set a limit.",
}
"""Extensions of the events that Kiln sends."""
COUNTED = {**EXTENSIONS, hops.OWN: "How many more builds may follow from it, each requested by the one before."}
"""Extensions of CDEvents."""
KNOWN: Mapping[str, str] = {
    "traceparent": "The trace that the event belongs to (W3C Trace Context). The build's events continue it.",
    "tracestate": "As `traceparent`.",
    hops.EXTENSION: "How many more brokers the event may pass. The build's events have one less; 0 requests nothing.",
    hops.OWN: "The same limit for builds that follow from one another.",
}
"""Extensions of incoming events that Kiln itself reads. Triggers see all extensions."""

TEXT: Object = {"type": "string"}
SERVER_ACTION: Object = {
    "type": "object",
    "required": ["action", "username", "servername"],
    "properties": {"action": {"enum": ["start", "stop"]}, "username": TEXT, "servername": TEXT},
}


def document(*, version: str, public_url: str | None) -> Object:
    """The AsyncAPI document of this version of Kiln; `public_url` is `KILN_PUBLIC_URL`."""
    messages = {_key(message["name"]): message for message in _messages(public_url)}
    groups = {tag: [key for key, message in messages.items() if message["tags"] == [{"name": tag}]] for tag in TAGS}
    _, schemas = msgspec.json.schema_components(
        [BuildView, BuildRequestBody, BuildCustomData], ref_template="#/components/schemas/{name}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Kiln",
            "version": version,
            "description": "CloudEvents 1.0 over HTTP, in binary and structured mode; Kiln accepts batches, too. "
            "The headers are those of binary mode.",
            "license": {"name": "BSD-3-Clause"},
        },
        "defaultContentType": "application/json",
        **({"servers": {"web": _server(public_url)}} if public_url else {}),
        "channels": {
            "events": _channel("/events", "Kiln receives events here.", groups["in"]),
            "webhooks": {
                **_channel("/webhooks/{host}", "Git hosts post their webhooks here.", groups["webhook"]),
                "parameters": {"host": {"enum": [*DIALECTS]}},
            },
            "sinks": _channel(None, "The address of each sink.", [*groups["out"], *groups["cdevents"]]),
        },
        "operations": {
            "receiveEvent": _operation("receive", "events", "Builds what the triggers select.", groups["in"]),
            "receiveWebhook": _operation("receive", "webhooks", "Builds what the triggers select.", groups["webhook"]),
            "sendEvent": _operation("send", "sinks", "Sends to sinks of the format `kiln`.", groups["out"]),
            "sendCDEvent": _operation("send", "sinks", "Sends to sinks of the format `cdevents`.", groups["cdevents"]),
        },
        "components": {"messages": messages, "schemas": {**schemas, "ServerAction": SERVER_ACTION}},
    }


TAGS = ("in", "webhook", "out", "cdevents")
"""The tag of a message selects its channel and operation."""


def _server(public_url: str) -> Object:
    url = urlsplit(public_url)
    return {"host": url.netloc, "protocol": url.scheme, "pathname": url.path or "/"}


def _channel(address: str | None, summary: str, keys: Iterable[str]) -> Object:
    messages = {key: {"$ref": f"#/components/messages/{key}"} for key in keys}
    return {"address": address, "summary": summary, "messages": messages}


def _operation(action: str, channel: str, summary: str, keys: Iterable[str]) -> Object:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{key}"} for key in keys],
    }


def _key(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name)


def _messages(public_url: str | None) -> Iterator[Object]:
    yield from _taken()
    for word, says in SENT.items():
        yield _message(
            "out",
            f"dev.kiln.build.{word}.v1",
            says,
            _ref("BuildView"),
            EXTENSIONS,
            subject="The build's name.",
            dataschema=schema_id("build.v1.json", public_url),
        )
    for name, about in CDEVENTS.items():
        subject = "The build's name." if name.startswith("build.") else "The image's package URL."
        schema, payload = cdevents.schema_of(name), _cdevent(name)
        kind = cdevents.TYPES[name]
        yield _message("cdevents", kind, about, payload, COUNTED, subject=subject, dataschema=schema)


def _taken() -> Iterator[Object]:
    asks = "Requests a build; needs no trigger."
    yield _message("in", REQUESTED, asks, _ref("BuildRequestBody"), KNOWN)
    for word, dialect in DIALECTS.items():
        for kind in sorted(dialect.pushes):
            about = f"A push; its data is the payload of the host's webhook ({word})."
            yield _message("in", kind, about, {"type": "object"}, KNOWN)
        for kind in dialect.requests:
            about = f"A pull request; its data is the payload of the host's webhook ({word})."
            begins = {**TEXT, "pattern": rf"^{re.escape(kind)}(\.|$)"}
            yield {**_message("in", kind, about, {"type": "object"}, KNOWN), "headers": _headers(begins, KNOWN)}
        yield {
            "name": f"webhook {word}",
            "summary": f"A signed webhook of a {word} host.",
            "tags": [{"name": "webhook"}],
            "payload": {"type": "object"},
        }
    for kind in HUB_TYPES:
        about = "A user server of a JupyterHub was started or stopped; a trigger selects the build."
        yield _message("in", kind, about, _ref("ServerAction"), KNOWN)
    yield {
        "name": "any other",
        "summary": "An event of any other type; a trigger selects the build.",
        "tags": [{"name": "in"}],
        "headers": _headers({**TEXT, "not": {"pattern": r"^dev\.kiln\."}}, KNOWN),
        "payload": {},
    }


def _message(
    tag: str,
    kind: str,
    summary: str,
    payload: Object,
    extensions: Mapping[str, str],
    *,
    subject: str | None = None,
    dataschema: str | None = None,
) -> Object:
    headers = _headers({"const": kind}, extensions)
    if subject:
        headers["properties"]["ce-subject"] = {**TEXT, "description": subject}
    if dataschema:
        headers["properties"]["ce-dataschema"] = {"const": dataschema}
    return {"name": kind, "summary": summary, "tags": [{"name": tag}], "headers": headers, "payload": payload}


def _headers(kind: Object, extensions: Mapping[str, str]) -> Object:
    """The headers of binary mode: the attributes and the known extensions."""
    return {
        "type": "object",
        "required": ["ce-specversion", "ce-id", "ce-source", "ce-type"],
        "properties": {
            "ce-specversion": {"const": "1.0"},
            "ce-id": {**TEXT, "minLength": 1},
            "ce-source": {**TEXT, "format": "uri-reference", "minLength": 1},
            "ce-type": kind,
            "ce-time": {**TEXT, "format": "date-time"},
            **{f"ce-{name}": {**TEXT, "description": says} for name, says in extensions.items()},
        },
    }


def _ref(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


def _cdevent(name: Name) -> Object:
    """The payload as Kiln sends it: narrower than the published schema, which `dataschema` names."""
    context: Object = {
        "specversion": {"const": cdevents.SPECVERSION},
        "id": TEXT,
        "source": {**TEXT, "format": "uri-reference"},
        "type": {"const": cdevents.TYPES[name]},
        "timestamp": {**TEXT, "format": "date-time"},
        "chainId": {**TEXT, "format": "uuid"},
        "links": {"type": "array", "items": {"type": "object", "required": ["linkType"]}},
    }
    subject: Object = {"id": TEXT, "content": {"type": "object"}}
    return _whole(
        {
            "context": _whole(context),
            "subject": _whole(subject),
            "customData": _ref("BuildCustomData"),
            "customDataContentType": {"const": "application/json"},
        }
    )


def _whole(properties: Object) -> Object:
    """An object that requires all of its properties and allows no others."""
    return {
        "type": "object",
        "required": [*properties],
        "properties": properties,
        "additionalProperties": False,
    }
