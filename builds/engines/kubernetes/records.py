"""Converts a build to a ConfigMap, and back. Pure.

- `metadata.labels`: the values of selectors, which are state, repository (hashed) and open
- `metadata.annotations`: `kiln.dev/summary`, the build as in a list, so that lists need no data
- `data.record`: the complete build without its outbox
- `binaryData.outbox`: the events that wait for a sink, compressed, because fifty similar ones take the space of one

Kubernetes assigns the uid and the revision (`resourceVersion`), so both are known only after the build has been stored.
A ConfigMap is limited to 1 MiB and its annotations to 256 KiB. Values that could grow are bounded where they are
created (`builds.build.MAX_…`).
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

from builds.build import MAX_DELIVERIES_SHOWN, VERSION, Announcement, Build, RecordVersion, Time
from builds.engines import UNREADABLE, Unavailable

COMPONENT = "build"
DAEMON = "dockerd"

LABEL_STATE = "kiln.dev/state"
LABEL_REPOSITORY = "kiln.dev/repository"
LABEL_OPEN = "kiln.dev/open"
SUMMARY = "kiln.dev/summary"

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""The form of a record's name, as `builds.build.build_name` makes it."""

UNPACKED = 64 << 20
"""Bytes of memory that an outbox, and its decompression, may take."""

WINDOW = 1 << 20
"""Maximum bytes of the compressor's window: enough for two of the largest events."""
LEAST_WINDOW = 4 << 10
"""The smallest dictionary of LZMA2, https://tukaani.org/xz/xz-file-format.txt."""

Manifest = Mapping[str, Any]
"""A Kubernetes object as plain JSON values."""


class Unreadable(Unavailable):
    """A record of another version, or a damaged one. Kiln does not change it."""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of objects. Several releases may share a namespace, or a node, and must never see each other's
    objects."""

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


def manifest(build: Build, release: Release, owner: Manifest | None) -> dict[str, Any]:
    """The ConfigMap to create. `owner` is the ConfigMap whose deletion removes the whole release."""
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
    """The merge patch (RFC 7386) that replaces the stored record, if the revision is still the same."""
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
    """The build as in a list, from the object's metadata alone. Raises Unreadable."""
    return _decoded(metadata, (metadata.get("annotations") or {}).get(SUMMARY, ""))


def made_at(metadata: Manifest) -> datetime:
    """The time of the build's first request, from its metadata, at a fifth of the cost of `summary_of`. Raises
    Unreadable."""
    try:
        return msgspec.json.decode(metadata["annotations"][SUMMARY], type=_Made).created_at
    except (KeyError, TypeError, *UNREADABLE) as error:
        raise Unreadable(f"The record {metadata['name']} has no summary that can be read: {error}.") from error


def owner_reference(owner: Manifest, api_version: str, kind: str) -> dict[str, Any]:
    """The owner reference, https://kubernetes.io/docs/concepts/overview/working-with-objects/owners-dependents/."""
    metadata = owner["metadata"]
    return {"apiVersion": api_version, "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}


def selector(labels: Mapping[str, str]) -> str:
    """Labels as the selector of a list or watch."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def hashed(repository: str) -> str:
    """A URL as a label's value, which allows neither its characters nor its length."""
    return hashlib.sha256(repository.encode()).hexdigest()[:40]


def _summary(build: Build) -> Build:
    """The build without the fields that a list does not show. Pending deliveries remain, their events do not."""
    status = build.status
    waiting = (delivery for announcement in status.outbox for delivery in announcement.deliveries)
    shown = (*status.deliveries, *waiting)[-MAX_DELIVERIES_SHOWN:]
    return replace(build, status=replace(status, outbox=(), deliveries=shown, log_tail=""))


def _decoded(metadata: Manifest, text: str) -> Build:
    name = metadata["name"]
    try:
        version = msgspec.json.decode(text, type=RecordVersion).version
        if version != VERSION:
            raise Unreadable(f"The record {name} has version {version}, and this version of Kiln knows only {VERSION}.")
        build = msgspec.json.decode(text, type=Build)
    except UNREADABLE as error:
        raise Unreadable(f"The record {name} cannot be read: {error}.") from error
    return replace(build, name=name, uid=metadata["uid"], revision=metadata["resourceVersion"])


def _encoded(build: Build) -> str:
    return msgspec.json.encode(replace(build, uid="", revision="")).decode()


def _packed(outbox: tuple[Announcement, ...]) -> str:
    """The compressed outbox. The window is no larger than the content: setting up a megabyte takes longer than the
    write."""
    content = msgspec.json.encode(outbox)
    window = min(max(len(content), LEAST_WINDOW), WINDOW)
    packing = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": window}]
    return base64.b64encode(lzma.compress(content, filters=packing)).decode()


def _unpacked(packed: str) -> bytes:
    """Raises LZMAError, EOFError, ValueError. The limit is needed because a megabyte could decompress to more than the
    memory."""
    decompressor = lzma.LZMADecompressor(memlimit=UNPACKED)
    content = decompressor.decompress(base64.b64decode(packed), UNPACKED)
    if not decompressor.eof:
        raise ValueError("it is cut off, or too large")
    return content
