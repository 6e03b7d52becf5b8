"""Tests a registry: pushes, pulls and removes a tiny image of Kiln's own.

A request for access proves nothing: registries answer `GET /v2/` to all clients, and only a push proves that a
credential may push. So the test pushes a whole image with one empty layer, and a different one each time. The image is
pushed by its digest and without a tag, so rules about tags do not apply. The registry treats an image that could not be
removed as garbage.
"""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from uuid import uuid4

from builds.clients.errors import RegistryError, RegistryUnreachable
from builds.clients.registry import MANIFEST, Registry, digest_of

NAME = "kiln-check"
"""The name of the image repository under a prefix. It cannot collide with a repository's own image, whose name ends in
a hash."""
LABEL = "dev.kiln.check"

_LAYER = bytes(1024)  # a tar archive without members


def push_and_pull(pushes: Registry, pulls: Registry, image: str) -> bool:
    """Whether the pushed image could be removed again. `pushes` requests permission to push, `pulls` does not.

    Raises RegistryError.
    """
    run = str(uuid4())
    layer, config = gzip.compress(_LAYER, mtime=0), _config(run)
    pushes.upload(image, layer)
    pushes.upload(image, config)
    manifest = _manifest(config, layer)
    digest = digest_of(manifest)
    pushes.put(image, digest, MANIFEST, manifest)
    labels = pulls.labels(image, digest)
    if labels is None or labels.get(LABEL) != run:
        raise RegistryUnreachable(f"The registry has taken the image {image}@{digest}, and gives another one or none.")
    with suppress(RegistryError):
        return pushes.remove(image, digest)
    return False


def _config(run: str) -> bytes:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {LABEL: run}},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(_LAYER)]},
    }
    return json.dumps(config).encode()


def _manifest(config: bytes, layer: bytes) -> bytes:
    """OCI image manifest (image-spec 1.1, manifest.md)."""
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": f"{kind}.config.v1+json", "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar+gzip", "digest": digest_of(layer), "size": len(layer)}],
    }
    return json.dumps(manifest).encode()
