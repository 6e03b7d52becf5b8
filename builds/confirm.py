"""What an image's store knows: is the image of an ended build still there, did an attempt that says nothing make one?

In the one case later causes are answered with it, in the other the build has succeeded; nothing is built again.

Those who asked may want tags of their own. Such a tag is set only while the cause's ref still points at the commit, as
after a build: a tag like `course:main` must never go back to where the branch was yesterday.
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
    """`store` makes a client for an image: one is for one thread at a time, and this may be called from several."""

    def __init__(
        self, *, store: Callable[[str], ImageStore], resolver: Resolver, hosts: Mapping[str, HostKind] | None = None
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._hosts = hosts

    def __call__(self, build: Build) -> Image | None:
        """The build's image with the tags that are set now, or `None` where it has gone.

        Raises RegistryError, TryAgain.
        """
        image = build.status.image
        if image is None:
            return None
        store = self._store(image.repository)
        try:
            if store.manifest(image.repository, image.digest) is None:
                return None
        except Unauthorized:  # there are registries that say so of what is not there
            return None
        return self._tagged(store, build, image, build.unanswered)

    def inspect(self, build: Build, attempt: Attempt) -> Image | None:
        """The image that this very attempt has pushed, with the tags that are set now; `None` where it has not.

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
        """The image with the tags that these causes want as well, as far as they may be set."""
        for cause in causes:
            if {*cause.tags} - {*image.tags} and self._is_current(build, cause):
                image = with_tags(store, image, cause.tags)
        return image

    def _is_current(self, build: Build, cause: Cause) -> bool:
        """Whether the cause's ref (if any) still points at the commit; not, where nobody may know."""
        if cause.tagged_by is None:
            return True
        try:
            repository = canonical(build.request.clone_url, self._hosts)
            return self._resolver.resolve(repository, cause.tagged_by).commit == build.request.commit
        except TryAgain:
            raise
        except RequestError:
            return False
