"""What every build of a trigger would be refused for, found when the rule is read and not by each of its events.

The checks are those of `builds.intake`, on texts with something harmless in place of what only an event tells. So a
rule is refused where nothing that an event could say would make it pass, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from builds.arguments import checked_arguments
from builds.errors import AskError, BuildsError, Malformed, RepositoryError, RuleError
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
from builds.triggers import Field, Template, Trigger

STAND_INS = ("a", "a/a", "a/a/a", "a.example", "https://a.example/a", "https://github.com/a/a")
"""What an event could say, for the parts of addresses and refs that it says."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
KNOWN = {"commit": COMMIT, "ref": "refs/heads/main", "ref_name": "main", "slug": "a-0123456789"}
WITHOUT_SLASH = frozenset({"commit", "slug"})


def refusals(trigger: Trigger, *, policy: Policy, images: ImagePolicy, hosts: Mapping[str, HostKind]) -> Iterator[str]:
    """A sentence with its place, such as `build.image: …`, for each part that no build would get past the policy."""
    checks: Mapping[str, Callable[[], object]] = {
        "repository": lambda: _check_repository(trigger.repository, policy, hosts),
        "ref": lambda: _check_ref(trigger.ref),
        "commit": lambda: _check_commit(trigger.commit, trigger.ref),
        "subdir": lambda: subdirectory(_filled(trigger.subdir)),
        "build_args": lambda: checked_arguments(_arguments(trigger)),
        "image": lambda: _check_image(trigger, images, hosts),
        "tags": lambda: _check_tags(trigger),
    }
    refused: set[str] = set()
    for place, check in checks.items():
        if place == "tags" and refused & {"subdir", "build_args"}:
            return  # which the image's own tag is made of
        try:
            check()
        except BuildsError as error:
            refused.add(place)
            yield f"build.{place}: {error}"


def _filled(template: Template, other: str = "a", known: Mapping[str, str] = KNOWN) -> str:
    return template.fill(lambda name: known.get(name, other)).text()


def _arguments(trigger: Trigger) -> Mapping[str, str]:
    return {name: _filled(value) for name, value in trigger.build_args.items()}


def _passes(template: Template, check: Callable[[str], object]) -> None:
    """Raises the first AskError of a check that no stand-in gets past."""
    errors: list[AskError] = []
    for other in STAND_INS if template.fields else ("",):
        try:
            check(_filled(template, other, {"ref": other, "ref_name": other, "commit": COMMIT}))
        except AskError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def _check_repository(template: Template | None, policy: Policy, hosts: Mapping[str, HostKind]) -> None:
    if template is None:
        return
    if isinstance(template.pieces[0] if template.pieces else "", str):  # else an event can say all of it
        _passes(template, lambda text: canonical(text, hosts))
    if not template.fields:
        policy.check(canonical(_filled(template), hosts))
        return
    if (place := _fixed_host(template, hosts)) is not None:
        policy.check_endpoint(place)
    glob = _glob(template).removesuffix("/").removesuffix(".git")
    if not any(globs_meet(glob.lower(), pattern.lower()) for pattern in policy.allowed):
        raise RuleError(f"No repository that '{glob}' can be is allowed here (KILN_ALLOWED_REPOSITORIES).")


def _fixed_host(template: Template, hosts: Mapping[str, HostKind]) -> Repository | None:
    """Some repository on the host that is written out before anything that an event says."""
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
            raise Malformed("The ref is a commit, and another one than the commit that is asked for.")
    if not all(re.fullmatch(r"[0-9a-fA-F]{1,64}", piece) for piece in template.pieces if isinstance(piece, str)):
        raise Malformed("The commit must be a whole one: 40 or 64 hexadecimal digits.")


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
            f"Images may be pushed under {images.prefix} and to what is allowed by name (allowed_images); "
            f"'{glob}' can be neither."
        )


def _check_tags(trigger: Trigger) -> None:
    own = tag_for(COMMIT, subdirectory(_filled(trigger.subdir)), checked_arguments(_arguments(trigger)))
    checked_tags([_filled(tag) for tag in trigger.tags], own=own, templated=True)
    checked_tags([_filled(tag) for tag in trigger.tags if not tag.fields], own=own, templated=False)
