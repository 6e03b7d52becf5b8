"""BinderHub's names for sources: `<provider>/<spec>`, as its clients write them into a URL.

A spec is split before it is decoded, so that a `%2F` stays inside its part. Clients disagree about the encoding: some
encode a repository that needs none, some encode it twice. Both forms are accepted; an ambiguous one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from builds.errors import CannotBuild, Malformed
from builds.repository import is_abbreviated

DEFAULT_BRANCHES = frozenset({"main", "master"})
"""Branch names in many old links, for default branches that have been renamed since."""


class NamedSource(msgspec.Struct, frozen=True, kw_only=True):
    """The target of a spec: a repository's address and a ref, both unchecked."""

    repository: str
    ref: str


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """`base` is the address of the provider's repositories; without it, the spec contains the complete address."""

    id: str
    base: str | None
    example: str
    name: str
    label: str
    regex: str
    encode: bool
    ref_needed: bool = True

    @property
    def display(self) -> dict[str, Any]:
        """The provider as BinderHub's pages expect it (`display_config` of its providers)."""
        shown: dict[str, Any] = {"displayName": self.name, "id": self.id, "spec": {"validateRegex": self.regex}}
        if self.base:
            host = self.base.removeprefix("https://")
            shown["detect"] = {"regex": f"^(https?://{host}/)?(?<repo>.*[^/])/?"}
        repo = {"label": self.label, "placeholder": f"example: {self.example}", "urlEncode": self.encode}
        return {**shown, "repo": repo, "ref": {"enabled": True, "default": "HEAD"}}


PROVIDERS: Mapping[str, Provider] = {
    provider.id: provider
    for provider in (
        Provider(
            id="gh",
            base="https://github.com",
            example="binder-examples/requirements",
            name="GitHub",
            label="GitHub repository name or URL",
            regex="[^/]+/[^/]+/.+",
            encode=False,
        ),
        Provider(
            id="gist",
            base="https://gist.github.com",
            example="user/0123456789abcdef0123456789abcdef",
            name="GitHub Gist",
            label="Gist ID (username/gistId) or URL",
            regex="[^/]+/[^/]+(/[^/]+)?",
            encode=False,
            ref_needed=False,
        ),
        Provider(
            id="git",
            base=None,
            example="https://git.example.com/repo",
            name="Git repository",
            label="Arbitrary git repository URL",
            regex="[^/]+/.+",
            encode=True,
        ),
        Provider(
            id="gl",
            base="https://gitlab.com",
            example="mosaik/examples/mosaik-tutorials-on-binder",
            name="GitLab",
            label="GitLab repository name or URL",
            regex="[^/]+/.+",
            encode=True,
        ),
    )
}


def source(provider: str, spec: str) -> NamedSource:
    """The target of `<provider>/<spec>`, with the spec as it is in the URL, percent-encoded.

    Raises CannotBuild for an unknown provider, Malformed for a spec without a repository and a ref.
    """
    known = PROVIDERS.get(provider)
    if known is None:
        raise CannotBuild(
            f"Unknown provider '{provider[:40]}'. Kiln builds from Git repositories: use {', '.join(PROVIDERS)}."
        )
    first, *rest = parts(spec) or [""]
    repository = _decoded(first)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:", repository):  # an address that is not encoded, or decoded on the way
        raise Malformed(f"The repository's address must be percent-encoded as one part: {_form(known)}.")
    if known.base is not None:
        repository = repository.strip("/")
    if known.base is not None and repository and "/" not in repository:
        repository = "/".join([repository, *map(_decoded, rest[:1])])
        rest = rest[1:]
    ref = "/".join(parts("/".join(map(unquote, rest)))) or ("" if known.ref_needed else "HEAD")
    if not repository or not ref:
        raise Malformed(f"The address must name a repository and a ref: {_form(known)}.")
    return NamedSource(repository=_address(known, repository), ref=ref)


def advice(ref: str) -> str:
    """A hint about a missing ref; empty for an abbreviated commit, whose error already has one."""
    return "" if is_abbreviated(ref) else "HEAD is always a repository's default branch."


def parts(path: str) -> list[str]:
    """Leaves out empty parts: no ref or repository has any, and clients join URLs with one `/` too many."""
    return [part for part in path.split("/") if part]


def _decoded(part: str) -> str:
    """A decoded part of a spec, even if it was encoded twice."""
    once = unquote(part)
    return unquote(once) if "/" not in once and "%2f" in once.lower() else once


def _address(provider: Provider, repository: str) -> str:
    """The complete address of a provider's own repository is accepted, too."""
    if provider.base is None:
        return repository
    host = re.escape(provider.base.removeprefix("https://"))
    path = re.sub(rf"^(?:https?://)?(?:www\.)?{host}/", "", repository, flags=re.IGNORECASE)
    if "://" in path:
        raise Malformed(f"Not a repository of {provider.base}. For others, use /build/git/<address>/<ref>.")
    return "/".join([provider.base, *parts(path)])


def _form(provider: Provider) -> str:
    example = re.sub(r"[:/]", lambda found: f"%{ord(found[0]):02X}", provider.example)
    return f"/build/{provider.id}/{example if provider.encode else provider.example}/HEAD"
