"""Checks stored images: that of an ended build, and that of an attempt without a readable result.

If the image of an ended build still exists, later causes are answered with it. If an attempt without a result did push
its image, the build has succeeded. In both cases nothing is built again.

Later causes may request tags of their own. Such a tag is set only while the cause's ref still points at the commit, as
after a build: a tag like `course:main` must never move back to yesterday's commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from builds.build import Attempt, Build, Cause, Image
from builds.builder.spec import LABEL_ATTEMPT, attempt_label
from builds.clients.errors import Unauthorized
from builds.clients.store import ImageStore
from builds.clients.tagging import with_tags
from builds.errors import RequestError, TryAgain
from builds.image import tag_for
from builds.intake import Resolver
from builds.repository import HostKind, canonical


class RegistryConfirmer:
    """`store` makes a client for an image. A client serves one thread at a time; this class may be called from
    several."""

    def __init__(
        self, *, store: Callable[[str], ImageStore], resolver: Resolver, hosts: Mapping[str, HostKind] | None = None
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._hosts = hosts

    def __call__(self, build: Build) -> Image | None:
        """The build's image with the tags that are set now, or `None` if the image is gone.

        Raises RegistryError, TryAgain.
        """
        image = build.status.image
        if image is None:
            return None
        store = self._store(image.repository)
        try:
            if store.manifest(image.repository, image.digest) is None:
                return None
        except Unauthorized:  # some registries answer so for an image that does not exist
            return None
        return self._tagged(store, build, image, build.unanswered)

    def inspect(self, build: Build, attempt: Attempt) -> Image | None:
        """The image that this attempt has pushed, with the tags that are set now; `None` if it pushed none.

        Raises RegistryError, TryAgain.
        """
        request = build.request
        store, tag = self._store(request.image), tag_for(request.commit, request.subdir, request.build_args)
        try:
            manifest = store.manifest(request.image, tag)
            labels = store.labels(request.image, manifest.digest) if manifest else None
        except Unauthorized:
            return None
        if manifest is None or labels is None or labels.get(LABEL_ATTEMPT) != attempt_label(build, attempt):
            return None
        image = Image(repository=request.image, tag=tag, digest=manifest.digest)
        return self._tagged(store, build, image, build.causes)

    def _tagged(self, store: ImageStore, build: Build, image: Image, causes: Sequence[Cause]) -> Image:
        """The image with the tags that these causes request, as far as they may be set."""
        for cause in causes:
            if {*cause.tags} - {*image.tags} and self._is_current(build, cause):
                image = with_tags(store, image, cause.tags)
        return image

    def _is_current(self, build: Build, cause: Cause) -> bool:
        """Whether the cause's ref (if any) still points at the commit. False if the look-up is not permitted."""
        if cause.tagged_by is None:
            return True
        try:
            repository = canonical(build.request.clone_url, self._hosts)
            return self._resolver.resolve(repository, cause.tagged_by).commit == build.request.commit
        except TryAgain:
            raise
        except RequestError:
            return False
