"""Images: what each repository's image is called, and which names may be asked for.

Names are BinderHub's, so that the images that it has built are found again. They are made of the canonical repository,
because two spellings of one repository must give one image. So on hosts that ignore case the name is made of the
lower-cased path, while BinderHub hashes capitals as they are typed: there, only repositories that were asked for in
lower case are found again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from builds.build import fingerprint
from builds.errors import Forbidden, Malformed, RuleError
from builds.repository import HostKind, Repository, glob_match

MAX_NAME = 255
MAX_TAG = 128

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN = r"(?:localhost|[a-z0-9-]+(?:\.[a-z0-9-]+)+|\[[0-9a-f:]+\]|[a-z0-9-]+(?=:))(?::[0-9]{1,5})?"
_NAME = re.compile(rf"(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*")


def image_for(prefix: str, repository: Repository) -> str:
    """The repository's image: `prefix` and the slug, at most 255 characters."""
    # A path's component cannot begin with `-`; BinderHub would fail to push such a name.
    slug = slug_for(prefix, repository)
    return f"{prefix}{slug.lstrip('-') if prefix.endswith('/') else slug}"


@lru_cache(maxsize=1024)  # asked for twice by every webhook, of few repositories
def slug_for(prefix: str, repository: Repository) -> str:
    """BinderHub's slug (binderhub/builder.py, `_safe_build_slug`), of a length that leaves room for the prefix.

    The provider's slug with every character but ASCII letters and digits written as `-` and its UTF-8 in hexadecimal;
    `-`; 6 hex digits of the provider's slug's SHA-256; in lower case.
    """
    slug = provider_slug(repository)
    digest = hashlib.sha256(slug.encode()).hexdigest()[:6]
    escaped = re.sub(rb"[^A-Za-z0-9]", lambda found: b"-%02x" % found[0][0], slug.encode()).decode()
    readable = escaped[: MAX_NAME - len(prefix) - len(digest) - 1].rstrip("-")
    return f"{readable}-{digest}".lower()


def provider_slug(repository: Repository) -> str:
    """As BinderHub's provider for that host makes it (`get_build_slug`): `gh`, `gl`, and `git` for all other hosts."""
    if repository.kind is HostKind.GITHUB:
        return repository.path.replace("/", "-")
    if repository.kind is HostKind.GITLAB:
        return "-".join(part.replace("-", "_-") for part in repository.path.split("/"))
    return repository.url


def tag_for(commit: str, subdir: str = "", build_args: Mapping[str, str] | None = None) -> str:
    """The commit, as in BinderHub; with a subdir or build arguments also 8 hex digits of them.

    These are of SHA-256 over RFC 8785 JSON of `[subdir, build_args]`.
    """
    if not subdir and not build_args:
        return commit
    return f"{commit}-{fingerprint([subdir, {**(build_args or {})}])[:8]}"


def is_reserved(tag: str) -> bool:
    """Whether it could be the tag of some commit: those are given by Kiln alone."""
    return re.fullmatch(r"(?:[0-9a-f]{40}|[0-9a-f]{64})(?:-[0-9a-f]{8})?", tag) is not None


def legal_tag(text: str) -> str:
    """Any text as a tag: illegal characters become `-` (at the beginning `_`), and it ends after 128.

    Raises Malformed where there is nothing to make one of. The grammar is the OCI distribution specification's.
    """
    if not text:
        raise Malformed("A tag is empty.")
    tag = re.sub(r"[^A-Za-z0-9_.-]", "-", text[:MAX_TAG])
    return f"_{tag[1:]}" if tag[0] in "-." else tag


class ImagePolicy:
    """Where images may go: under the prefix, or where a pattern of `allowed_images` (globs over the name) says."""

    def __init__(self, prefix: str, allowed: Sequence[str] = ()) -> None:
        """Raises RuleError where no image could be called after the prefix."""
        if not prefix or not _NAME.fullmatch(f"{prefix}a-0") or len(prefix) > MAX_NAME // 2:
            raise RuleError(
                f"The image prefix '{prefix}' must be the beginning of an image's name in lower case, such as "
                "registry.example/org/."
            )
        self.prefix = prefix
        self.allowed = tuple(allowed)

    def check(self, image: str) -> str:
        """The image as it was asked for. Raises Malformed, Forbidden."""
        if len(image) > MAX_NAME or not _NAME.fullmatch(image):
            raise Malformed(
                "The image must be a repository in lower case with its registry, without tag and digest, such as "
                f"{self.prefix}name."
            )
        inside = image.startswith(self.prefix) and image != self.prefix
        if inside or any(glob_match(pattern, image) for pattern in self.allowed):
            return image
        raise Forbidden(f"Images may be pushed under {self.prefix} and to what is allowed by name; {image} is neither.")
