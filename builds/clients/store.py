"""The interface of an image store: a registry, or a daemon for images that stay with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from builds.clients.registry import Manifest


class ImageStore(Protocol):
    """An image store: `Registry` or `builds.builder.daemons.images.DaemonImages`. One thread at a time.

    All methods raise `builds.clients.errors.RegistryError`. `reference` is a tag or digest in the repository `image`.
    """

    def manifest(self, image: str, reference: str) -> Manifest | None:
        """The manifest; `None` if it does not exist."""

    def labels(self, image: str, reference: str) -> Mapping[str, str] | None:
        """The image's labels; `None` if the image does not exist."""

    def tag(self, image: str, reference: str, tag: str) -> None:
        """Adds a tag to the image. Raises RegistryRefused if the store refuses the tag."""

    def answers(self, image: str) -> bool:
        """Whether the store answers."""
