"""What an installation has repo2docker do in every build: the section `repo2docker` of the YAML file.

The names are those of repo2docker's own options
(https://repo2docker.readthedocs.io/en/latest/usage/#command-line-api). The user in the image is 1000, `jovyan`, always:
JupyterHub's user servers expect it.
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
"""Characters: a build's pod has them in an annotation."""

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
"""The build packs of `repo2docker.buildpacks`, in repo2docker's own order."""

_IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._-]*(?::[0-9]+)?(?:/[a-z0-9._-]+)*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_FOLDER = re.compile(r"(?:/[\w.-]+)+")


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`None` and nothing stand for repo2docker's own defaults."""

    base_image: str | None = None
    """The image that all build packs but `dockerfile` begin with."""
    buildpacks: Annotated[tuple[BuildPack, ...], msgspec.Meta(min_length=1)] | None = None
    """Those that are tried; where none is for the repository, it is built as `python`."""
    appendix: str | None = None
    """Dockerfile instructions at the end of what all build packs but `dockerfile` make."""
    build_args: Mapping[str, str] = {}
    """A request's own arguments win over them."""
    target_repo_dir: str | None = None
    """Where the repository is in the image."""
    pull: bool = False
    """Whether base images are looked up in their registry for each build."""

    @property
    def label(self) -> str:
        """16 hex digits of the options, for an image's label; empty for the defaults.

        `pull` is not among them: it is about when, not what.
        """
        told = [self.base_image, [*self.classes], self.appendix, {**self.build_args}, self.target_repo_dir]
        return fingerprint(told)[:16] if any(told) else ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of repo2docker's classes that are tried, in its order; none for its default."""
        chosen = self.buildpacks or ()
        return tuple(name for pack, names in CLASSES.items() if pack in chosen for name in names)

    def problems(self) -> Iterator[str]:
        """What cannot be done, each beginning with the name of the option."""
        if self.base_image is not None and not _IMAGE.fullmatch(self.base_image):
            yield "base_image: must be an image such as docker.io/library/buildpack-deps:24.04"
        if self.buildpacks and len({*self.buildpacks}) < len(self.buildpacks):
            yield "buildpacks: names one twice"
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
        yield "holds no instruction; leave it out"
    elif lines[0].split()[0].upper() == "FROM":
        yield "must not begin another stage (FROM): the image would be that stage's"
    elif lines[0].split()[0].upper() not in _INSTRUCTIONS:
        yield f"must be instructions of a Dockerfile, such as RUN or ENV; '{lines[0][:40]}' is none"
    if len(text) > MAX_APPENDIX:
        yield f"is longer than {MAX_APPENDIX} characters"
    if "\0" in text:
        yield "holds a NUL character"
