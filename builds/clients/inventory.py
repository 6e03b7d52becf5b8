"""Lists the images of a repository in a registry, and their artifacts.

The content of a manifest is determined by its digest, so it is cached. Tags move, so each tag is resolved every time. A
registry lists tags only: a manifest without a tag is found only if a caller names it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

import msgspec

from builds.builder.spec import LABEL_BUILD
from builds.clients.referrers import fallback_tag
from builds.clients.registry import DOCKER_LIST, INDEX, Descriptor, Manifest, Registry
from builds.retention import Pushed

MAX_NESTED = 4
"""Levels of nested indexes that are followed."""
MAX_KNOWN = 50_000
"""Manifests whose content is cached."""

REFERRERS = re.compile(r"sha256-[0-9a-f]{64}(?:\..*)?")
"""The tag of the artifacts that belong to an image: the index of a registry without the referrers API (OCI Distribution
1.1, "Referrers Tag Schema"), or cosign's own. The tag does not show which build needs the image."""


class _Index(msgspec.Struct):
    manifests: list[Descriptor] = []


class _Content(NamedTuple):
    build: str | None
    parts: tuple[str, ...]


class Inventory:
    """Caches the content of manifests across calls. For one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Content] = {}

    def images(self, registry: Registry, repository: str, named: Collection[str] = ()) -> list[Pushed]:
        """The tagged images, and those of the digests `named` that exist. Raises RegistryError."""
        tags: dict[str, list[str]] = {}
        found: dict[str, Manifest] = {}
        listed = registry.tags(repository)
        for tag in sorted(listed, key=lambda tag: REFERRERS.fullmatch(tag) is not None):
            manifest = registry.manifest(repository, tag)
            if manifest and (manifest.digest in found or not REFERRERS.fullmatch(tag)):
                found[manifest.digest] = manifest
                tags.setdefault(manifest.digest, []).append(tag)
        for digest in {*named} - {*found}:
            if manifest := registry.manifest(repository, digest):
                found[digest] = manifest
        return [
            self._described(registry, repository, manifest, tuple(sorted(tags.get(digest, ()))))
            for digest, manifest in found.items()
        ]

    def _described(self, registry: Registry, repository: str, manifest: Manifest, tags: tuple[str, ...]) -> Pushed:
        key = (repository, manifest.digest)
        if key not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            labels = registry.labels(repository, manifest.digest) or {}
            parts = tuple(_parts(registry, repository, manifest, MAX_NESTED))
            self._known[key] = _Content(labels.get(LABEL_BUILD), parts)
        content = self._known[key]
        return Pushed(
            repository=repository,
            digest=manifest.digest,
            media_type=manifest.media_type,
            tags=tags,
            build=content.build,
            parts=content.parts,
        )


def is_index(media_type: str) -> bool:
    return media_type.partition(";")[0].strip() in (INDEX, DOCKER_LIST)


def _parts(registry: Registry, repository: str, manifest: Manifest, nested: int) -> Iterator[str]:
    """The digests that an index refers to, including nested indexes. Raises RegistryError."""
    if not is_index(manifest.media_type) or not nested:
        return
    whole = registry.manifest(repository, manifest.digest, body=True)
    for part in _descriptors(whole):
        yield part.digest
        inner = Manifest(digest=part.digest, media_type=part.media_type)
        yield from _parts(registry, repository, inner, nested - 1)


def _descriptors(manifest: Manifest | None) -> list[Descriptor]:
    try:
        return msgspec.json.decode((manifest and manifest.body) or b"{}", type=_Index).manifests
    except msgspec.MsgspecError:
        return []


def artifacts(registry: Registry, repository: str, digest: str) -> list[str]:
    """The digests of an image's artifacts (provenance, signatures), and of the index that lists them.

    Found by the referrers API and by the tag that replaces it (OCI Distribution 1.1). Raises RegistryError.
    """
    found = [one.digest for one in registry.referrers(repository, digest) or ()]
    fallback = registry.manifest(repository, fallback_tag(digest), body=True)
    if fallback and is_index(fallback.media_type):
        found += [*(one.digest for one in _descriptors(fallback)), fallback.digest]
    return [*dict.fromkeys(found)]
