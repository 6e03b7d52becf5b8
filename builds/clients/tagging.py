"""Sets further tags on an image that is in its store.

Registries may forbid moving a tag (the immutable tags of ECR and Harbor). Such a refusal is reported and fails nothing:
the image is available under its own tag and digest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from builds.build import Image, RefusedTag, shortened
from builds.clients.errors import RegistryRefused
from builds.clients.store import ImageStore

log = logging.getLogger(__name__)

MAX_TAGS = 100
MAX_REFUSED = 10
MAX_MESSAGE = 400
"""Limits on the record of an image: tags (the latest) and refusals, and bytes of each message as JSON. All are
logged."""


def with_tags(store: ImageStore, image: Image, names: Iterable[str]) -> Image:
    """The image with the tags that the store set, and those that it refused.

    Raises RegistryError if the store does not answer.
    """
    tags = dict.fromkeys(image.tags)
    refused = {one.name: one for one in image.refused_tags}
    for name in names:
        if name in tags:
            continue
        try:
            store.tag(image.repository, image.digest, name)
            tags[name] = None
            refused.pop(name, None)
        except RegistryRefused as error:
            log.warning("The tag %s of %s is not set: %s", name, image.repository, error)
            refused[name] = RefusedTag(name=name, message=shortened(str(error), MAX_MESSAGE))
    kept = tuple(tags)[-MAX_TAGS:]
    return msgspec.structs.replace(image, tags=kept, refused_tags=tuple(refused.values())[:MAX_REFUSED])
