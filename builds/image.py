"""Images: what each repository's image is called, and which names may be asked for.

A name is made of the repository's canonical URL and of nothing else, and holds a hash of it. So two spellings of one
repository give one image, and no two repositories share a name, nor with it tags, or an image that is "there already".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from builds.build import LOCAL_IMAGES, fingerprint, readable
from builds.errors import Forbidden, Malformed, RuleError
from builds.repository import Repository, glob_match, short_name

MAX_NAME = 255
MAX_TAG = 128
MAX_READABLE = 60

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN = r"(?:localhost|[a-z0-9-]+(?:\.[a-z0-9-]+)+|\[[0-9a-f:]+\]|[a-z0-9-]+(?=:))(?::[0-9]{1,5})?"
_NAME = re.compile(rf"(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*")
_SLUG = re.compile(r"[a-z0-9-]+-[0-9a-f]{10}")


def image_for(prefix: str, repository: Repository) -> str:
    """The repository's own image: `prefix` and its slug."""
    return f"{prefix}{slug_for(repository)}"


@lru_cache(maxsize=1024)  # asked for twice by every webhook, of few repositories
def slug_for(repository: Repository) -> str:
    """`<path, readable, at most 60>-<first 10 hex digits of SHA-256 of the canonical URL>`: this repository's alone."""
    digest = hashlib.sha256(repository.url.encode()).hexdigest()[:10]
    return f"{readable(repository.path, MAX_READABLE) or 'repository'}-{digest}"


def tag_for(commit: str, subdir: str = "", build_args: Mapping[str, str] | None = None) -> str:
    """The commit; with a subdir or build arguments also 16 hex digits of them.

    These are of SHA-256 over RFC 8785 JSON of `[subdir, build_args]`.
    """
    if not subdir and not build_args:
        return commit
    return f"{commit}-{fingerprint([subdir, {**(build_args or {})}])[:16]}"


def is_reserved(tag: str) -> bool:
    """Whether it could be the tag of some commit: those are given by Kiln alone."""
    return re.fullmatch(r"(?:[0-9a-f]{40}|[0-9a-f]{64})(?:-[0-9a-f]{16})?", tag) is not None


def legal_tag(text: str) -> str:
    """Any text as a tag: illegal characters become `-` (at the beginning `_`), and it ends after 128.

    Raises Malformed where there is nothing to make one of. The grammar is the OCI distribution specification's.
    """
    if not text:
        raise Malformed("A tag is empty.")
    tag = re.sub(r"[^A-Za-z0-9_.-]", "-", text[:MAX_TAG])
    return f"_{tag[1:]}" if tag[0] in "-." else tag


def image_pattern(text: str) -> str:
    """A pattern of image repositories as it was given. Raises RuleError for one that can match none, with the form that
    can."""
    named = re.sub(r"^[a-z]+://", "", text.strip().lower())
    named, _, _digest = named.partition("@")
    form = re.sub(r":[^/:]*$", "", named) if "/" in named.rpartition(":")[0] else named
    form = re.sub(r"/+$", "/**", form)
    form = f"{form}/**" if form and "/" not in form and ("." in form or ":" in form) and "*" not in form else form
    if form == text and _NAME.fullmatch(re.sub(r"\*+", "a", text)):
        return text
    form = form if _NAME.fullmatch(re.sub(r"\*+", "a", form)) else "registry.example/org/*"
    raise RuleError(
        f"The pattern '{text}' can match no image: it is for names in lower case with their registry, without tag, "
        f"digest and scheme, and only * and ** have a meaning. Write {form}."
    )


def tag_owner(ref: str, refs: Iterable[str]) -> str:
    """The one of a repository's full refs that a tag made of this ref's name belongs to.

    `legal_tag` makes one tag of several names, and of a branch and a tag that are called alike. The ref that is called
    exactly so comes first, then branches, then by name: an image's tag does not wander between them.
    """
    tag = legal_tag(short_name(ref))
    rivals = {other for other in refs if legal_tag(short_name(other)) == tag} | {ref}
    return min(rivals, key=lambda other: (short_name(other) != tag, not other.startswith("refs/heads/"), other))


class ImagePolicy:
    """Where images may go: each repository's own under the prefix, and names that are asked for beside those.

    `allowed` are the patterns of `allowed_images` (globs over the name). Images of repositories that are `private` lie
    under `private_prefix`, all of them, and no others do: there they have a credential of their own.
    """

    def __init__(
        self,
        prefix: str,
        allowed: Sequence[str] = (),
        *,
        private_prefix: str | None = None,
        private: Callable[[Repository], bool] = lambda _: False,
    ) -> None:
        """Raises RuleError where no image could be called after a prefix, or the two do not keep images apart."""
        for name, given in {"KILN_IMAGE_PREFIX": prefix, "private_image_prefix": private_prefix}.items():
            if given is None:
                continue
            if not given or not _NAME.fullmatch(f"{given}a-0") or len(given) > MAX_NAME // 2:
                raise RuleError(
                    f"{name}: The image prefix '{given}' must be the beginning of an image's name in lower case, such "
                    "as registry.example/org/."
                )
        if private_prefix is not None and prefix.startswith(private_prefix):
            raise RuleError(
                f"Images under {prefix} would lie under private_image_prefix ({private_prefix}), which is for private "
                "repositories alone."
            )
        self.prefix = prefix
        self.allowed = tuple(allowed)
        self.private_prefix = private_prefix
        self._private = private

    @property
    def patterns(self) -> tuple[str, ...]:
        """All that images may be called."""
        prefixes = (self.prefix, self.private_prefix)
        return (*(f"{prefix}**" for prefix in prefixes if prefix is not None), *self.allowed)

    @property
    def pushed_prefixes(self) -> tuple[str, ...]:
        """The prefixes that name a registry."""
        prefixes = filter(None, (self.prefix, self.private_prefix))
        return tuple(prefix for prefix in prefixes if not prefix.startswith(LOCAL_IMAGES))

    def own(self, repository: Repository) -> str:
        """The image that a repository has without asking for one."""
        return image_for(self._prefix(repository), repository)

    def is_private(self, image: str) -> bool:
        """Whether it is one of a private repository."""
        return self.private_prefix is not None and image.startswith(self.private_prefix)

    def check_form(self, image: str) -> str:
        """The image, which can be some repository's. Raises Malformed."""
        if len(image) > MAX_NAME or not _NAME.fullmatch(image):
            raise Malformed(
                "The image must be a repository in lower case with its registry, without tag and digest, such as "
                f"{self.prefix}name."
            )
        return image

    def check(self, image: str, repository: Repository) -> str:
        """The image as it was asked for, for a build of the repository. Raises Malformed, Forbidden."""
        self.check_form(image)
        if image == self.own(repository):
            return image
        private = self._prefix(repository) == self.private_prefix
        if private != self.is_private(image):
            where = f"must be under {self.private_prefix}" if private else f"may not be under {self.private_prefix}"
            raise Forbidden(f"Images of private repositories lie apart from others: {image} {where}.")
        if self._is_somebodys(image):
            raise Forbidden(
                f"{image} is the name of one repository's image, and of no other's. Choose a name that does not end in "
                "'-' and ten hexadecimal digits, or one in a folder of its own."
            )
        prefix = self._prefix(repository)
        if (image.startswith(prefix) and image != prefix) or any(
            glob_match(pattern, image) for pattern in self.allowed
        ):
            return image
        raise Forbidden(f"Images may be pushed under {self.prefix} and to what is allowed by name; {image} is neither.")

    def _is_somebodys(self, image: str) -> bool:
        """Whether a repository could have it for its own."""
        prefixes = (self.prefix, self.private_prefix)
        return any(prefix and image.startswith(prefix) and _SLUG.fullmatch(image, len(prefix)) for prefix in prefixes)

    def _prefix(self, repository: Repository) -> str:
        if self.private_prefix is not None and self._private(repository):
            return self.private_prefix
        return self.prefix
