"""Build arguments: the permitted names and values.

An argument is meant for the repository's Dockerfile. A name to which the tool chain gives its own meaning is forbidden.
It would change how the build runs, and some of its effects would reach other users' images.

- `*_proxy`, in any case: predefined, and left out of the cache key unless the Dockerfile declares it. Layers fetched
  through one user's proxy would be shared with all others. (BuildKit, `dockerfile2llb/convert.go`,
  `proxyEnvFromBuildArgs`: HTTP, HTTPS, FTP, NO and ALL, compared without case; its Dockerfile reference, "Predefined
  ARGs".)
- `BUILDKIT_*`: SYNTAX replaces the frontend, CACHE_MOUNT_NS chooses whose cache mounts are used; CONTEXT_KEEP_GIT_DIR,
  MULTI_PLATFORM, SANDBOX_HOSTNAME, INLINE_CACHE, BUILD_NAME, HISTORY_PROVENANCE_V1, DOCKERFILE_CHECK, DISABLE_FILEOP,
  ATTEST_*, SBOM_SCAN_* and SCAN_*. (BuildKit v0.13.1 and v0.24.0: `frontend/dockerui/config.go`, `build.go`,
  `frontend/attestations`, `frontend/gateway`, its Dockerfile reference, "BuildKit built-in build args").
- `SOURCE_DATE_EPOCH`: the times in the image (`frontend/dockerui/config.go`).
- `TARGET*` and `BUILD*` of a platform, and TARGETSTAGE: set by BuildKit, and an argument wins over it
  (`dockerfile2llb/platform.go`, `getPlatformArgs`).
- `NB_USER`, `NB_UID`, `REPO_DIR`: repo2docker sets them (`repo2docker/app.py`, `Repo2Docker.build`), and its templates
  create the image's user and folder from them (`repo2docker/buildpacks/base.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from builds.errors import Malformed

MAX_ARGUMENTS = 50
MAX_BYTES = 32 * 1024
"""Bytes of all names and values together, as JSON, because a record and each item of a list are limited in size."""
MAX_VALUE = 4096
"""Characters of a name or of a value."""

_PLATFORM = ("PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT")
RESERVED = frozenset(
    {
        "SOURCE_DATE_EPOCH",
        "TARGETSTAGE",
        *(f"{whose}{what}" for whose in ("TARGET", "BUILD") for what in _PLATFORM),
        *("NB_USER", "NB_UID", "REPO_DIR"),
    }
)


def checked_arguments(arguments: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the arguments unchanged. Raises Malformed."""
    if len(arguments) > MAX_ARGUMENTS:
        raise Malformed(f"Too many build arguments. Give at most {MAX_ARGUMENTS}.")
    for name, value in arguments.items():
        check_name(name)
        check_value(value)
    if len(msgspec.json.encode(arguments)) > MAX_BYTES:
        raise Malformed(f"The build arguments are too long. Together, as JSON, they may take {MAX_BYTES >> 10} KiB.")
    return arguments


def check_name(name: str) -> None:
    """Raises Malformed."""
    if len(name) > MAX_VALUE or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise Malformed("Invalid name of a build argument. Use letters, digits and '_', and do not begin with a digit.")
    upper = name.upper()
    if upper in RESERVED or upper.startswith("BUILDKIT_") or upper.endswith("_PROXY"):
        raise Malformed(
            f"The build argument {name} is reserved: BuildKit or repo2docker gives it a meaning of its own. Rename it."
        )


def check_value(value: str) -> None:
    """Raises Malformed."""
    if len(value) > MAX_VALUE or "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise Malformed(f"Invalid build argument. A value is text of at most {MAX_VALUE} characters, without NUL.")
