"""Further tags of an image that is in its store.

Registries may forbid that a tag is moved (the immutable tags of ECR and Harbor). Such a tag is told of and fails
nothing: the image is there under its own tag and digest.
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
"""Tags (the latest) and refusals that are kept with an image, and bytes of each message as JSON. All are logged."""


def with_tags(store: ImageStore, image: Image, names: Iterable[str]) -> Image:
    """The image with those of the tags that the store would set now, and those that it refused.

    Raises RegistryError where the store does not answer.
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
