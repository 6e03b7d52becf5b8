"""Is the image of an ended build still there? Then later causes are answered with it, instead of building it again.

They may want tags of their own. Such a tag is set only while the cause's ref still points at the commit, as after a
build: a tag like `course:main` must never go back to where the branch was yesterday.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from builds.build import Build, Cause, Image
from builds.clients.registry import Registry
from builds.errors import AskError, TryAgain
from builds.intake import Resolver
from builds.repository import HostKind, canonical


class Confirmer:
    """`registry` makes a client: one is for one thread at a time, and this may be called from several."""

    def __init__(
        self, *, registry: Callable[[], Registry], resolver: Resolver, hosts: Mapping[str, HostKind] | None = None
    ) -> None:
        self._registry = registry
        self._resolver = resolver
        self._hosts = hosts

    def __call__(self, build: Build) -> Image | None:
        """The image with the tags that are set now, or `None` where it has gone. Raises RegistryError, TryAgain."""
        image = build.status.image
        if image is None:
            return None
        registry = self._registry()
        if registry.manifest(image.repository, image.digest) is None:
            return None
        tags = dict.fromkeys(image.tags)
        for cause in build.unanswered:
            wanted = [tag for tag in cause.tags if tag not in tags]
            if wanted and self._is_current(build, cause):
                for tag in wanted:
                    registry.tag(image.repository, image.digest, tag)
                tags |= dict.fromkeys(wanted)
        return msgspec.structs.replace(image, tags=tuple(tags))

    def _is_current(self, build: Build, cause: Cause) -> bool:
        """Whether the cause's ref (if any) still points at the commit; not, where nobody may know."""
        if cause.ref is None:
            return True
        try:
            repository = canonical(build.request.clone_url, self._hosts)
            return self._resolver.resolve(repository, cause.ref).commit == build.request.commit
        except TryAgain:
            raise
        except AskError:
            return False
