"""Reject a trigger whose builds would all be refused when the rule is read, rather than at each event.

The checks are those of `builds.intake`, with harmless stand-ins for the values that only an event has. A rule is
rejected only if no value in an event could make it pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from builds.arguments import checked_arguments
from builds.errors import BuildsError, Malformed, RepositoryError, RequestError, RuleError
from builds.image import ImagePolicy, tag_for
from builds.intake import checked_tags
from builds.repository import (
    HostKind,
    Policy,
    Repository,
    canonical,
    checked_ref,
    commit_id,
    globs_meet,
    is_commit,
    subdirectory,
)
from builds.triggers import Field, Template, Trigger, template

change = msgspec.structs.replace

STAND_INS = ("a", "a/a", "a/a/a", "a.example", "https://a.example/a", "https://github.com/a/a")
"""Possible values from an event, for parts of addresses and refs."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
KNOWN = {"commit": COMMIT, "ref": "refs/heads/main", "ref_name": "main", "slug": "a-0123456789"}
WITHOUT_SLASH = frozenset({"commit", "slug"})


def refusals(trigger: Trigger, *, policy: Policy, images: ImagePolicy, hosts: Mapping[str, HostKind]) -> Iterator[str]:
    """A sentence with its place, such as `build.image: …`, for each part that the policy would always refuse, and the
    nearest permitted form if there is one."""
    checks: Mapping[str, Callable[[Trigger], object]] = {
        "repository": lambda each: _check_repository(each.repository, policy, hosts),
        "ref": lambda each: _check_ref(each.ref),
        "commit": lambda each: _check_commit(each.commit, each.ref),
        "subdir": lambda each: subdirectory(_filled(each.subdir)),
        "build_args": lambda each: checked_arguments(_arguments(each)),
        "image": lambda each: _check_image(each, images, hosts),
        "tags": _check_tags,
    }
    refused: set[str] = set()
    for place, check in checks.items():
        if place == "tags" and refused & {"subdir", "build_args"}:
            return  # the image's own tag depends on them
        if error := _error(check, trigger):
            refused.add(place)
            form = _form(trigger, place, check, images.prefix)
            yield f"build.{place}: {error}" + (f" Write '{form}'." if form and form not in error else "")


def _error(check: Callable[[Trigger], object], trigger: Trigger) -> str | None:
    try:
        check(trigger)
    except BuildsError as error:
        return str(error)
    return None


def _form(trigger: Trigger, place: str, check: Callable[[Trigger], object], prefix: str) -> str | None:
    """The form that the author may have meant, if it passes the check."""
    meant: Mapping[str, Callable[[str], Sequence[str]]] = {
        "repository": _addresses,
        "subdir": lambda text: [text.strip("/")],
        "image": lambda text: _images(text, prefix),
    }
    written: Template | None = getattr(trigger, place) if place in meant else None
    for form in meant[place](written.written) if written else ():
        if not _error(check, change(trigger, **{place: template(form)})):
            return form
    return None


def _addresses(text: str) -> Sequence[str]:
    bare = re.sub(r"^(?:[a-z+]*://)?(?:[^/@{]*@)?", "", text)
    bare = re.sub(r"^([A-Za-z0-9.-]+\.[A-Za-z]+):(?![0-9])", r"\1/", bare)
    page = re.sub(r"^([^/]+/[^/]+/[^/?#]+).*", r"\1", bare)
    return [f"https://{bare}", f"https://{page}"]


def _images(text: str, prefix: str) -> Sequence[str]:
    bare = re.sub(r"^[a-z]+://", "", text)
    bare = re.sub(r"[:@][^/]*$", "", bare) if "/" in bare else bare
    bare = bare if "{" in bare else bare.lower()
    return [bare, f"{prefix}{bare.partition('/')[2] or bare}"]


def _filled(part: Template, other: str = "a", known: Mapping[str, str] = KNOWN) -> str:
    return part.fill(lambda name: known.get(name, other)).text()


def _arguments(trigger: Trigger) -> Mapping[str, str]:
    return {name: _filled(value) for name, value in trigger.build_args.items()}


def _passes(part: Template, check: Callable[[str], object]) -> None:
    """Raises the first RequestError of a check that no stand-in passes."""
    errors: list[RequestError] = []
    for other in STAND_INS if part.fields else ("",):
        try:
            check(_filled(part, other, {"ref": other, "ref_name": other, "commit": COMMIT}))
        except RequestError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def _check_repository(template: Template | None, policy: Policy, hosts: Mapping[str, HostKind]) -> None:
    if template is None:
        return
    if isinstance(template.pieces[0] if template.pieces else "", str):  # else an event may supply the whole address
        _passes(template, lambda text: canonical(text, hosts))
    if not template.fields:
        policy.check(canonical(_filled(template), hosts))
        return
    if (place := _fixed_host(template, hosts)) is not None:
        policy.check_endpoint(place)
    glob = _glob(template).removesuffix("/").removesuffix(".git")
    if not any(globs_meet(glob.lower(), pattern.lower()) for pattern in policy.allowed):
        raise RuleError(f"KILN_ALLOWED_REPOSITORIES allows no repository of the form '{glob}'. Add a pattern for it.")


def _fixed_host(template: Template, hosts: Mapping[str, HostKind]) -> Repository | None:
    """Some repository on the host that the template names literally, before its first field."""
    head = template.pieces[0] if template.pieces else ""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]+/", head) if isinstance(head, str) else None
    try:
        return canonical(f"{found[0]}a/a", hosts) if found else None
    except RepositoryError:
        return None


def _glob(template: Template) -> str:
    def part(piece: str | Field) -> str:
        if isinstance(piece, str):
            return piece
        return "*" if piece.name in WITHOUT_SLASH else "**"

    return "".join(map(part, template.pieces))


def _check_ref(template: Template | None) -> None:
    if template is not None and not is_commit(_filled(template)):
        _passes(template, checked_ref)


def _check_commit(template: Template | None, ref: Template | None) -> None:
    if template is None:
        return
    if not template.fields:
        commit = commit_id(_filled(template))
        if ref is not None and not ref.fields and is_commit(_filled(ref)) and commit_id(_filled(ref)) != commit:
            raise Malformed("The ref and the commit are two different commits. Give one of them.")
    if not all(re.fullmatch(r"[0-9a-fA-F]{1,64}", piece) for piece in template.pieces if isinstance(piece, str)):
        raise Malformed("The commit must be complete: 40 or 64 hexadecimal digits.")


def _check_image(trigger: Trigger, images: ImagePolicy, hosts: Mapping[str, HostKind]) -> None:
    template, repository = trigger.image, trigger.repository
    if template is None:
        return
    image = images.check_form(_filled(template))
    if not template.fields and repository is not None and not repository.fields:
        images.check(image, canonical(_filled(repository), hosts))
        return
    glob = _glob(template)
    if not any(globs_meet(glob, pattern) for pattern in images.patterns):
        raise RuleError(
            f"Images may be under {images.prefix}, or match `allowed_images`; no image of the form '{glob}' can."
        )


def _check_tags(trigger: Trigger) -> None:
    own = tag_for(COMMIT, subdirectory(_filled(trigger.subdir)), checked_arguments(_arguments(trigger)))
    checked_tags([_filled(tag) for tag in trigger.tags], own=own, templated=True)
    checked_tags([_filled(tag) for tag in trigger.tags if not tag.fields], own=own, templated=False)
