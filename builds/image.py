"""Images: the name of each repository's image, and the names that requests may choose.

The name depends on nothing but the repository's canonical URL, and contains a hash of it. So two spellings of one
repository give one image, and two repositories never share a name, a tag or an existing image.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from builds.build import fingerprint, readable, stays_with_daemon
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


@lru_cache(maxsize=1024)  # each webhook needs it twice, for few repositories
def slug_for(repository: Repository) -> str:
    """`<path, readable, at most 60>-<first 10 hex digits of SHA-256 of the canonical URL>`: unique to it."""
    digest = hashlib.sha256(repository.url.encode()).hexdigest()[:10]
    return f"{readable(repository.path, MAX_READABLE) or 'repository'}-{digest}"


def tag_for(commit: str, subdir: str = "", build_args: Mapping[str, str] | None = None) -> str:
    """The commit; with a subdir or build arguments, also 16 hex digits of their hash.

    The hash is SHA-256 over RFC 8785 JSON of `[subdir, build_args]`.
    """
    if not subdir and not build_args:
        return commit
    return f"{commit}-{fingerprint([subdir, {**(build_args or {})}])[:16]}"


def is_reserved(tag: str) -> bool:
    """Whether the tag has the form of a commit's tag, which only Kiln may set."""
    return re.fullmatch(r"(?:[0-9a-f]{40}|[0-9a-f]{64})(?:-[0-9a-f]{16})?", tag) is not None


def legal_tag(text: str) -> str:
    """Any text as a tag: illegal characters become `-` (at the beginning `_`); it is cut after 128.

    Raises Malformed for an empty text. The grammar is that of the OCI distribution specification.
    """
    if not text:
        raise Malformed("A tag is empty.")
    tag = re.sub(r"[^A-Za-z0-9_.-]", "-", text[:MAX_TAG])
    return f"_{tag[1:]}" if tag[0] in "-." else tag


def image_pattern(text: str) -> str:
    """Returns a pattern of image repositories unchanged. Raises RuleError for one that can match none, and suggests a
    form that can."""
    named = re.sub(r"^[a-z]+://", "", text.strip().lower())
    named, _, _digest = named.partition("@")
    form = re.sub(r":[^/:]*$", "", named) if "/" in named.rpartition(":")[0] else named
    form = re.sub(r"/+$", "/**", form)
    form = f"{form}/**" if form and "/" not in form and ("." in form or ":" in form) and "*" not in form else form
    if form == text and _NAME.fullmatch(re.sub(r"\*+", "a", text)):
        return text
    form = form if _NAME.fullmatch(re.sub(r"\*+", "a", form)) else "registry.example/org/*"
    raise RuleError(
        f"The pattern '{text}' can match no image. A pattern is for lower-case names with their registry, without tag, "
        f"digest and scheme, and only * and ** are special. Write {form}."
    )


def tag_owner(ref: str, refs: Iterable[str]) -> str:
    """The ref, among a repository's full refs, that owns the tag made of this ref's name.

    `legal_tag` makes one tag of several names, and of a branch and a tag with the same name. A ref with exactly the
    tag's name comes first, then branches, then the order of names. So an image's tag does not alternate between refs.
    """
    tag = legal_tag(short_name(ref))
    rivals = {other for other in refs if legal_tag(short_name(other)) == tag} | {ref}
    return min(rivals, key=lambda other: (short_name(other) != tag, not other.startswith("refs/heads/"), other))


class ImagePolicy:
    """The permitted image names: each repository's own under the prefix, and requested names.

    `allowed` are the patterns of `allowed_images` (globs over the name). All images of `private` repositories, and no
    others, lie under `private_prefix`, which has a credential of its own.
    """

    def __init__(
        self,
        prefix: str,
        allowed: Sequence[str] = (),
        *,
        private_prefix: str | None = None,
        private: Callable[[Repository], bool] = lambda _: False,
    ) -> None:
        """Raises RuleError for an invalid prefix, or for two prefixes that overlap."""
        for name, given in {"KILN_IMAGE_PREFIX": prefix, "private_image_prefix": private_prefix}.items():
            if given is None:
                continue
            if not given or not _NAME.fullmatch(f"{given}a-0") or len(given) > MAX_NAME // 2:
                raise RuleError(
                    f"{name}: The image prefix '{given}' is invalid. Give the beginning of an image's name in lower "
                    "case, such as registry.example/org/."
                )
        if private_prefix is not None and prefix.startswith(private_prefix):
            raise RuleError(
                f"Images under {prefix} would lie under private_image_prefix ({private_prefix}), which is reserved for "
                "private repositories. Choose two prefixes that do not overlap."
            )
        self.prefix = prefix
        self.allowed = tuple(allowed)
        self.private_prefix = private_prefix
        self._private = private

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns for all permitted image names."""
        prefixes = (self.prefix, self.private_prefix)
        return (*(f"{prefix}**" for prefix in prefixes if prefix is not None), *self.allowed)

    @property
    def pushed_prefixes(self) -> tuple[str, ...]:
        """The prefixes that name a registry."""
        prefixes = filter(None, (self.prefix, self.private_prefix))
        return tuple(prefix for prefix in prefixes if not stays_with_daemon(prefix))

    def own(self, repository: Repository) -> str:
        """The repository's default image."""
        return image_for(self._prefix(repository), repository)

    def is_private(self, image: str) -> bool:
        """Whether the image belongs to a private repository."""
        return self.private_prefix is not None and image.startswith(self.private_prefix)

    def check_form(self, image: str) -> str:
        """Returns the image unchanged if its name is valid. Raises Malformed."""
        if len(image) > MAX_NAME or not _NAME.fullmatch(image):
            raise Malformed(
                "Invalid image. Give a lower-case repository with its registry, without tag and digest, such as "
                f"{self.prefix}name."
            )
        return image

    def check(self, image: str, repository: Repository) -> str:
        """Returns the requested image if a build of the repository may push it. Raises Malformed, Forbidden."""
        self.check_form(image)
        if image == self.own(repository):
            return image
        private = self._prefix(repository) == self.private_prefix
        if private != self.is_private(image):
            where = f"must be under {self.private_prefix}" if private else f"may not be under {self.private_prefix}"
            raise Forbidden(f"Images of private repositories are kept apart from others: {image} {where}.")
        if self._is_somebodys(image):
            raise Forbidden(
                f"{image} has the form of a repository's own image. Choose a name that does not end in '-' and ten "
                "hexadecimal digits, or one in a subfolder."
            )
        prefix = self._prefix(repository)
        if (image.startswith(prefix) and image != prefix) or any(
            glob_match(pattern, image) for pattern in self.allowed
        ):
            return image
        raise Forbidden(f"{image} is not allowed. Images may be under {self.prefix}, or match `allowed_images`.")

    def _is_somebodys(self, image: str) -> bool:
        """Whether a repository could have it as its own image."""
        prefixes = (self.prefix, self.private_prefix)
        return any(prefix and image.startswith(prefix) and _SLUG.fullmatch(image, len(prefix)) for prefix in prefixes)

    def _prefix(self, repository: Repository) -> str:
        if self.private_prefix is not None and self._private(repository):
            return self.private_prefix
        return self.prefix
