"""Where an image lies: what is asked of a registry, and of a daemon about the images that stay with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from builds.clients.registry import Manifest


class ImageStore(Protocol):
    """`Registry` is one, `builds.builder.daemons.images.DaemonImages` the other. One thread at a time.

    All methods raise `builds.clients.errors.RegistryError`. `reference` is a tag or digest in the repository `image`.
    """

    def manifest(self, image: str, reference: str) -> Manifest | None:
        """`None` where it is not there."""

    def labels(self, image: str, reference: str) -> Mapping[str, str] | None:
        """The image's labels; `None` where it is not there."""

    def tag(self, image: str, reference: str, tag: str) -> None:
        """Gives the image one more tag. Raises RegistryRefused where the store does not let it be set."""

    def answers(self, image: str) -> bool:
        """Whether the store is up."""
