"""The images that stay with the daemon that built them (`builds.build.LOCAL_IMAGES`), as an `ImageStore`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builds.builder.daemons import Daemon, connect
from builds.builder.outcome import Failure
from builds.builder.spec import Surroundings
from builds.clients.errors import RegistryRefused, RegistryUnreachable
from builds.clients.registry import Manifest


class DaemonImages:
    """The images of one daemon. The image's ID takes the place of a manifest's digest."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @classmethod
    def of(cls, around: Surroundings) -> DaemonImages:
        """The images of the daemon in these surroundings, with this user's access: no method needs a registry's
        credential."""
        return cls(connect(around, None, Path()))

    def manifest(self, image: str, reference: str) -> Manifest | None:
        found = self._inspected(image, reference)
        return None if found is None else Manifest(digest=_id(found), media_type="")

    def labels(self, image: str, reference: str) -> Mapping[str, str] | None:
        found = self._inspected(image, reference)
        return None if found is None else found["Config"].get("Labels") or {}

    def tag(self, image: str, reference: str, tag: str) -> None:
        done = self._daemon.run("tag", _name(image, reference), f"{image}:{tag}")
        if done.returncode:
            raise RegistryRefused(done.stderr.decode(errors="replace").strip())

    def answers(self, image: str) -> bool:  # noqa: ARG002
        try:
            return self._daemon.trouble() is None
        except Failure:
            return False

    def _inspected(self, image: str, reference: str) -> Mapping[str, Any] | None:
        """Raises RegistryUnreachable if the daemon does not answer."""
        try:
            found = self._daemon.inspected(_name(image, reference))
            trouble = None if found else self._daemon.trouble()
        except (Failure, OSError) as error:
            raise RegistryUnreachable(f"The {self._daemon.idiom.daemon} cannot be asked: {error}") from None
        if trouble is not None:
            raise RegistryUnreachable(f"The {self._daemon.idiom.daemon} does not answer: {trouble}")
        named = found is not None and any(name.startswith(f"{image}:") for name in found["RepoTags"] or ())
        return found if named else None


def _name(image: str, reference: str) -> str:
    """The name for the daemon: an ID names an image without its repository."""
    return reference if reference.startswith("sha256:") else f"{image}:{reference}"


def _id(found: Mapping[str, Any]) -> str:
    """The ID with its algorithm, which Podman omits."""
    return f"sha256:{found['Id'].removeprefix('sha256:')}"
