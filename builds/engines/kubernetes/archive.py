"""Logs that outlive their pods: compressed, in ConfigMaps that the record owns.

docs/decisions/010-logs-outlive-pods.md gives the reasons. A log that is larger than a ConfigMap is stored in parts. The
first part is written last, so its presence proves that the log is complete. All parts are immutable: web may patch
records, but no logs.
"""

from __future__ import annotations

import base64
import binascii
import logging
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from builds.build import Build
from builds.engines.kubernetes.api import Absent, AlreadyExists, Api
from builds.engines.kubernetes.jobs import LABEL_ATTEMPT, LABEL_BUILD
from builds.engines.kubernetes.records import Manifest, Release, owner_reference, selector

log = logging.getLogger(__name__)

COMPONENT, REST = "log", "log-rest"
"""Components of the first part of each log, by which logs are listed, and of the other parts."""
SIZE, PARTS = "kiln.dev/bytes", "kiln.dev/parts"
CONTENT = "log.gz"

PART = 900 << 10
"""Bytes of a log in one ConfigMap, which is limited to 1 MiB."""
LARGEST = 32 << 20
"""Bytes of a decompressed log: a builder writes at most a third of that."""
SPACE = 256 << 20
"""Compressed bytes of all logs of a release. By default, an etcd has 2 GiB for its whole cluster."""
FEW = 100
GZIP = 16 + zlib.MAX_WBITS


class Archive:
    """The archive of a release; safe to use from many threads. Its methods raise ApiError."""

    def __init__(self, api: Api, release: Release, space: int = SPACE) -> None:
        self._api = api
        self._release = release
        self._space = space

    def has(self, build: Build, attempt: int) -> bool:
        with suppress(Absent):
            return _owner(self._api.read("configmaps", _name(build.name, attempt), metadata_only=True)) == build.uid
        return False

    def keep(self, build: Build, attempt: int, content: bytes) -> None:
        """Stores the complete log of an ended attempt. Idempotent."""
        packer = zlib.compressobj(wbits=GZIP)
        packed = packer.compress(content) + packer.flush()
        sizes = {SIZE: str(len(packed)), PARTS: str(-(-len(packed) // PART))}
        for number, at in reversed([*enumerate(range(0, len(packed), PART))]):
            part = self._part(build, attempt, number, packed[at : at + PART], sizes)
            with suppress(AlreadyExists):
                self._api.create("configmaps", part)

    def read(self, build: Build, attempt: int) -> bytes | None:
        """The log; `None` if it was not stored, or belongs to another record."""
        content = b""
        try:
            first = self._api.read("configmaps", _name(build.name, attempt))
            count = int(first["metadata"]["annotations"][PARTS])
            for number in range(count):
                part = first if number == 0 else self._api.read("configmaps", _name(build.name, attempt, number))
                if _owner(part) != build.uid:
                    return None
                content += base64.b64decode(part["binaryData"][CONTENT], validate=True)
            return _unpacked(content)
        except Absent:
            return None
        except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
            log.warning("Archived log cannot be read: %r", error, extra={"build": build.name, "attempt": attempt})
            return None

    def make_room(self) -> Iterator[None]:
        """Deletes the oldest logs while the total size exceeds the space; one page per step."""
        labels = selector(self._release.of(COMPONENT))
        found: list[tuple[str, str, int, int]] = []
        for page in self._api.pages("configmaps", labels=labels, metadata_only=True, limit=FEW):
            found += [_listed(one["metadata"]) for one in page.items]
            yield None
        found.sort()
        taken = sum(size for _, _, size, _ in found)
        for _, name, size, parts in found:
            if taken <= self._space:
                return
            for number in range(parts):
                with suppress(Absent):
                    self._api.delete("configmaps", _part_name(name, number))
            taken -= size
            yield None

    def _part(
        self, build: Build, attempt: int, number: int, content: bytes, sizes: Mapping[str, str]
    ) -> dict[str, Any]:
        owner = {"metadata": {"name": build.name, "uid": build.uid}}
        component = REST if number else COMPONENT
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "immutable": True,
            "metadata": {
                "name": _name(build.name, attempt, number),
                "labels": {
                    **self._release.labels(component),
                    LABEL_BUILD: build.name,
                    LABEL_ATTEMPT: str(attempt),
                },
                "annotations": sizes,
                "ownerReferences": [owner_reference(owner, "v1", "ConfigMap")],
            },
            "binaryData": {CONTENT: base64.b64encode(content).decode()},
        }


def _name(build: str, attempt: int, number: int = 0) -> str:
    return _part_name(f"{build}-{attempt}-log", number)


def _part_name(first: str, number: int) -> str:
    return f"{first}-{number + 1}" if number else first


def _owner(part: Manifest) -> str | None:
    return next((one["uid"] for one in part["metadata"].get("ownerReferences", ())), None)


def _listed(metadata: Manifest) -> tuple[str, str, int, int]:
    """Its creation time, name, size and number of parts; the size of a damaged one counts as 0."""
    annotations = metadata.get("annotations") or {}
    size, parts = (annotations.get(name, "") for name in (SIZE, PARTS))
    counts = (int(size), int(parts)) if size.isdecimal() and parts.isdecimal() else (0, 1)
    return metadata["creationTimestamp"], metadata["name"], *counts


def _unpacked(packed: bytes) -> bytes:
    """Raises zlib.error, ValueError. The limit is needed because the content may decompress to more than the memory."""
    unpacker = zlib.decompressobj(wbits=GZIP)
    content = unpacker.decompress(packed, LARGEST)
    if not unpacker.eof:
        raise ValueError("it is cut off, or too large")
    return content
