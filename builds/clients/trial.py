"""Tries a registry out: a tiny image of Kiln's own is pushed, pulled and removed.

Looking whether somebody is let in tells nothing: registries answer `GET /v2/` to everybody, and only a push shows that
a credential may push. So it is a whole image, of one layer with nothing in it, and each time another. It is put there
by its digest and without a tag, so no rule about tags is in its way, and what cannot be removed is garbage to the
registry.
"""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from uuid import uuid4

from builds.clients.errors import RegistryError, RegistryUnreachable
from builds.clients.registry import MANIFEST, Registry, digest_of

NAME = "kiln-check"
"""The image repository under a prefix; no repository's own image is called so, for those end in a hash."""
LABEL = "dev.kiln.check"

_LAYER = bytes(1024)  # a tar archive without members


def push_and_pull(pushes: Registry, pulls: Registry, image: str) -> bool:
    """Whether what was pushed and pulled could be removed again. `pushes` asks for leave to push, `pulls` does not.

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
