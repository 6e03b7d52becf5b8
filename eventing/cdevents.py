"""CDEvents 0.5 as values: the types that Kiln sends, their envelope, and their CloudEvents binding.

A CDEvent describes a change of a build or an artifact in a vocabulary that continuous delivery tools share.
`builds.chain` maps builds to CDEvents. https://github.com/cdevents/spec/tree/v0.5.1
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from eventing.event import Event, Scalar, timestamp

SPECVERSION = "0.5.1"

Name = Literal["build.queued", "build.started", "build.finished", "artifact.packaged", "artifact.published"]
"""Subject and predicate."""
TYPES: Mapping[Name, str] = {
    "build.queued": "dev.cdevents.build.queued.0.3.0",
    "build.started": "dev.cdevents.build.started.0.3.0",
    "build.finished": "dev.cdevents.build.finished.0.3.0",
    "artifact.packaged": "dev.cdevents.artifact.packaged.0.3.0",
    "artifact.published": "dev.cdevents.artifact.published.0.3.0",
}

Link = Mapping[str, object]


def cdevent(
    name: Name,
    *,
    id: str,  # noqa: A002  (CDEvents' word)
    source: str,
    time: datetime,
    chain_id: str,
    links: Sequence[Link],
    subject: str,
    content: Mapping[str, object],
    custom: Mapping[str, object],
    extensions: Mapping[str, Scalar],
) -> Event:
    """Wrap the CDEvent in a CloudEvent (cloudevents-binding.md): the data is the whole CDEvent.

    `custom` is JSON of the sender, `extensions` are CloudEvents extensions.
    """
    context: dict[str, Any] = {
        "specversion": SPECVERSION,
        "id": id,
        "source": source,
        "type": TYPES[name],
        "timestamp": timestamp(time.astimezone(UTC)),
        "chainId": chain_id,
        "links": [*links],
    }
    return Event(
        id=id,
        source=source,
        type=TYPES[name],
        subject=subject,
        time=time,
        datacontenttype="application/json",
        dataschema=schema_of(name),
        extensions=extensions,
        data={
            "context": context,
            "subject": {"id": subject, "content": {**content}},
            "customData": {**custom},
            "customDataContentType": "application/json",
        },
    )


def schema_of(name: Name) -> str:
    """Return the `$id` of the published JSON Schema of the event's type."""
    return f"https://cdevents.dev/{SPECVERSION}/schema/{name.replace('.', '-')}-event"


def path(from_id: str) -> Link:
    """Link from the preceding event, by its id (links.md)."""
    return {"linkType": "PATH", "from": {"contextId": from_id}}


def end(from_id: str) -> Link:
    """Mark this event as the end of its chain and name the preceding event."""
    return {"linkType": "END", "from": {"contextId": from_id}}


def triggered_by(ids: Iterable[str]) -> list[Link]:
    """Link to the events that triggered this one."""
    return [{"linkType": "RELATION", "linkKind": "TRIGGER", "target": {"contextId": each}} for each in ids]


def chain_id(digest: bytes) -> str:
    """Return a version 4 UUID, as CDEvents requires, from the first 16 bytes of a hash.

    The same chain therefore has the same id in every process.
    """
    return str(uuid.UUID(bytes=digest[:16], version=4))


def purl(repository: str, tag: str, digest: str) -> str:
    """Return the package URL of an image, by its digest
    (https://github.com/package-url/purl-spec/blob/main/types/oci-definition.json).

    The digest's colon is percent-encoded, as in all examples of CDEvents.
    """
    name = repository.rpartition("/")[2]
    where = f"repository_url={quote(repository, safe='/:')}&tag={quote(tag)}"
    return f"pkg:oci/{quote(name)}@{quote(digest, safe='')}?{where}"
