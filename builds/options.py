"""The installation's options for repo2docker: the section `repo2docker` of the YAML file.

The names are those of repo2docker's own options
(https://repo2docker.readthedocs.io/en/latest/usage/#command-line-api). The user in the image is always 1000, `jovyan`,
as JupyterHub's user servers expect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import msgspec

from builds.arguments import checked_arguments
from builds.build import fingerprint
from builds.errors import Malformed

MAX_APPENDIX = 16 * 1024
"""Characters; an annotation of a build's pod contains them."""

BuildPack = Literal["dockerfile", "julia", "nix", "r", "conda", "pipfile", "python"]

CLASSES: Mapping[BuildPack, tuple[str, ...]] = {
    "dockerfile": ("LegacyBinderDockerBuildPack", "DockerBuildPack"),
    "julia": ("JuliaProjectTomlBuildPack", "JuliaRequireBuildPack"),
    "nix": ("NixBuildPack",),
    "r": ("RBuildPack",),
    "conda": ("CondaBuildPack",),
    "pipfile": ("PipfileBuildPack",),
    "python": ("PythonBuildPack",),
}
"""The build packs of `repo2docker.buildpacks`, in repo2docker's order."""

_IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._-]*(?::[0-9]+)?(?:/[a-z0-9._-]+)*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_FOLDER = re.compile(r"(?:/[\w.-]+)+")


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """repo2docker's options. `None` and empty values stand for its defaults."""

    base_image: str | None = None
    """The base image of all build packs but `dockerfile`."""
    buildpacks: Annotated[tuple[BuildPack, ...], msgspec.Meta(min_length=1)] | None = None
    """The build packs to try; if none fits the repository, it is built as `python`."""
    appendix: str | None = None
    """Dockerfile instructions appended by all build packs but `dockerfile`."""
    build_args: Mapping[str, str] = {}
    """The arguments of a request override them."""
    target_repo_dir: str | None = None
    """The repository's folder in the image."""
    pull: bool = False
    """Whether each build looks up its base images in their registry."""

    @property
    def label(self) -> str:
        """16 hex digits of the options, for an image's label; empty for the defaults.

        `pull` is left out: it changes when images are looked up, not what is built.
        """
        values = [self.base_image, [*self.classes], self.appendix, {**self.build_args}, self.target_repo_dir]
        return fingerprint(values)[:16] if any(values) else ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of repo2docker's classes to try, in its order; empty for its default."""
        chosen = self.buildpacks or ()
        return tuple(name for pack, names in CLASSES.items() if pack in chosen for name in names)

    def problems(self) -> Iterator[str]:
        """The invalid options, each sentence beginning with the option's name."""
        if self.base_image is not None and not _IMAGE.fullmatch(self.base_image):
            yield "base_image: must be an image such as docker.io/library/buildpack-deps:24.04"
        if self.buildpacks and len({*self.buildpacks}) < len(self.buildpacks):
            yield "buildpacks: a name is listed twice"
        if self.target_repo_dir is not None and not _is_folder(self.target_repo_dir):
            yield "target_repo_dir: must be an absolute path, such as /srv/repo"
        yield from (f"appendix: {problem}" for problem in _appendix(self.appendix))
        try:
            checked_arguments(self.build_args)
        except Malformed as error:
            yield f"build_args: {error}"


def _is_folder(path: str) -> bool:
    return _FOLDER.fullmatch(path) is not None and not {".", ".."} & {*path.split("/")}


_INSTRUCTIONS = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN", "SHELL"),
    *("STOPSIGNAL", "USER", "VOLUME", "WORKDIR", "MAINTAINER"),
)


def _appendix(text: str | None) -> Iterator[str]:
    if text is None:
        return
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        yield "contains no instruction; leave it out"
    elif lines[0].split()[0].upper() == "FROM":
        yield "must not begin another stage (FROM), which would replace the image"
    elif lines[0].split()[0].upper() not in _INSTRUCTIONS:
        yield f"must be Dockerfile instructions, such as RUN or ENV; '{lines[0][:40]}' is not one"
    if len(text) > MAX_APPENDIX:
        yield f"is longer than {MAX_APPENDIX} characters"
    if "\0" in text:
        yield "contains a NUL character"
