"""A build as a ConfigMap, and back: pure.

    metadata.labels        what selects: state, repository (hashed), open
    metadata.annotations   `kiln.dev/summary`: the build as a list shows it, so that lists need no data
    data.record            the build, whole but for its outbox
    binaryData.outbox      events that wait for a sink, compressed: fifty nearly equal ones take the room of one

The uid is the ConfigMap's own, and so is the revision (`resourceVersion`): both are known only once it has been stored.
A ConfigMap holds 1 MiB and its annotations 256 KiB; what could grow is bounded where it is made (`builds.build.MAX_…`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import lzma
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from builds.build import MAX_DELIVERIES_SHOWN, VERSION, Announcement, Build, Time
from builds.engines import UNREADABLE, Unavailable

COMPONENT = "build"
DAEMON = "dockerd"

LABEL_STATE = "kiln.dev/state"
LABEL_REPOSITORY = "kiln.dev/repository"
LABEL_OPEN = "kiln.dev/open"
SUMMARY = "kiln.dev/summary"

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""Of a record, as `builds.build.build_name` makes it."""

UNPACKED = 64 << 20
"""Bytes that an outbox, and reading it, may take in memory."""

WINDOW = 1 << 20
"""Bytes that a compressed outbox looks back, at most: so far that two of the largest events are in sight."""
LEAST_WINDOW = 4 << 10
"""https://tukaani.org/xz/xz-file-format.txt: the smallest dictionary of LZMA2."""

Manifest = Mapping[str, Any]
"""A Kubernetes object as plain JSON values."""


class Unreadable(Unavailable):
    """A record of another version, or a damaged one. Kiln does not change it."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of objects: several releases share a namespace, or a node, and must never see each other's."""

    name: str

    def labels(self, component: str) -> dict[str, str]:
        return {**self.of(component), "app.kubernetes.io/managed-by": "kiln"}

    def of(self, component: str) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "kiln",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": component,
        }


class _Made(msgspec.Struct):
    """The part of a summary that places it in a list."""

    created_at: Time


class _Versioned(msgspec.Struct):
    """All that may be assumed of a record before its version is known."""

    version: int


def manifest(build: Build, release: Release, owner: Manifest | None) -> dict[str, Any]:
    """The ConfigMap to create. `owner` is the ConfigMap with which all of the release goes away."""
    changes = patch(build)
    owners = [] if owner is None else [owner_reference(owner, "v1", "ConfigMap")]
    labels = {name: value for name, value in changes["metadata"]["labels"].items() if value is not None}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": build.name,
            "labels": {**release.labels(COMPONENT), **labels},
            "annotations": changes["metadata"]["annotations"],
            "ownerReferences": owners,
        },
        "data": changes["data"],
        "binaryData": {name: value for name, value in changes["binaryData"].items() if value is not None},
    }


def patch(build: Build) -> dict[str, Any]:
    """The merge patch (RFC 7386) that makes the stored record this one, if it is still of this one's revision."""
    outbox = build.status.outbox
    return {
        "metadata": {
            **({"resourceVersion": build.revision} if build.revision else {}),
            "labels": {
                LABEL_STATE: str(build.state),
                LABEL_REPOSITORY: hashed(build.request.repository),
                LABEL_OPEN: "true" if build.open else None,
            },
            "annotations": {SUMMARY: _encoded(_summary(build))},
        },
        "data": {"record": _encoded(replace(build, status=replace(build.status, outbox=())))},
        "binaryData": {"outbox": _packed(outbox) if outbox else None},
    }


def build_of(stored: Manifest) -> Build:
    """Raises Unreadable."""
    metadata = stored["metadata"]
    build = _decoded(metadata, stored.get("data", {}).get("record", ""))
    packed = stored.get("binaryData", {}).get("outbox")
    if not packed:
        return build
    try:
        outbox = msgspec.json.decode(_unpacked(packed), type=tuple[Announcement, ...])
    except (*UNREADABLE, lzma.LZMAError, binascii.Error, EOFError) as error:
        raise Unreadable(f"The outbox of {metadata['name']} cannot be read: {error}.") from error
    return replace(build, status=replace(build.status, outbox=outbox))


def summary_of(metadata: Manifest) -> Build:
    """The build as a list shows it, from the object's metadata alone. Raises Unreadable."""
    return _decoded(metadata, (metadata.get("annotations") or {}).get(SUMMARY, ""))


def made_at(metadata: Manifest) -> datetime:
    """When the build was asked for, from its metadata, at a fifth of the price. Raises Unreadable."""
    try:
        return msgspec.json.decode(metadata["annotations"][SUMMARY], type=_Made).created_at
    except (KeyError, TypeError, *UNREADABLE) as error:
        raise Unreadable(f"The record {metadata['name']} has no summary that can be read: {error}.") from error


def owner_reference(owner: Manifest, api_version: str, kind: str) -> dict[str, Any]:
    """https://kubernetes.io/docs/concepts/overview/working-with-objects/owners-dependents/"""
    metadata = owner["metadata"]
    return {"apiVersion": api_version, "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}


def selector(labels: Mapping[str, str]) -> str:
    """Labels as lists and watches are asked for them."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def hashed(repository: str) -> str:
    """A URL as the value of a label, which holds neither its characters nor its length."""
    return hashlib.sha256(repository.encode()).hexdigest()[:40]


def _summary(build: Build) -> Build:
    """Without what a list does not show; the deliveries that wait are kept, their events are not."""
    status = build.status
    waiting = (delivery for announcement in status.outbox for delivery in announcement.deliveries)
    shown = (*status.deliveries, *waiting)[-MAX_DELIVERIES_SHOWN:]
    return replace(build, status=replace(status, outbox=(), deliveries=shown, log_tail=""))


def _decoded(metadata: Manifest, text: str) -> Build:
    name = metadata["name"]
    try:
        version = msgspec.json.decode(text, type=_Versioned).version
        if version != VERSION:
            raise Unreadable(f"The record {name} has version {version}, and this version of Kiln knows only {VERSION}.")
        build = msgspec.json.decode(text, type=Build)
    except UNREADABLE as error:
        raise Unreadable(f"The record {name} cannot be read: {error}.") from error
    return replace(build, name=name, uid=metadata["uid"], revision=metadata["resourceVersion"])


def _encoded(build: Build) -> str:
    return msgspec.json.encode(replace(build, uid="", revision="")).decode()


def _packed(outbox: tuple[Announcement, ...]) -> str:
    """With a window no larger than the content: to set up one of a megabyte takes longer than to write the record."""
    content = msgspec.json.encode(outbox)
    window = min(max(len(content), LEAST_WINDOW), WINDOW)
    packing = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": window}]
    return base64.b64encode(lzma.compress(content, filters=packing)).decode()


def _unpacked(packed: str) -> bytes:
    """Raises LZMAError, EOFError, ValueError. A megabyte could unpack to more than a process may have."""
    decompressor = lzma.LZMADecompressor(memlimit=UNPACKED)
    content = decompressor.decompress(base64.b64decode(packed), UNPACKED)
    if not decompressor.eof:
        raise ValueError("it is cut off, or too large")
    return content
