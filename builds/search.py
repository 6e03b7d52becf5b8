"""Search a list of builds by text or by ref.

A search compares only facts that the API shows of a build and that every engine's list contains, so it reveals nothing
beyond the list itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from builds.build import Build
from builds.errors import Malformed
from builds.repository import full_names, is_abbreviated, is_commit, short_name

MAX_TEXT = 200
"""Characters of a search."""

Wanted = Callable[[Build], bool]


def anything(_: Build) -> bool:
    return True


def by_text(text: str) -> Wanted:
    """Match builds that contain every word of the text, ignoring case. Hexadecimal digits match the start of a commit.

    Raises Malformed for a text longer than MAX_TEXT.
    """
    if len(text) > MAX_TEXT:
        raise Malformed(f"The search is longer than {MAX_TEXT} characters.")
    words = text.casefold().split()
    return (lambda build: _contains(build, words)) if words else anything


def by_ref(ref: str) -> Wanted:
    """Match builds that were requested with the ref, given in full or by its short name."""
    names = {*full_names(ref)}
    return lambda build: any(cause.ref in names for cause in build.causes)


def _contains(build: Build, words: list[str]) -> bool:
    facts = [*map(str.casefold, _facts(build))]
    commit = build.request.commit
    return all(_is_of(commit, word) or any(word in fact for fact in facts) for word in words)


def _is_of(commit: str, word: str) -> bool:
    return (is_abbreviated(word) or is_commit(word)) and commit.startswith(word)


def _facts(build: Build) -> Iterator[str]:
    request, status = build.request, build.status
    yield from (build.name, request.repository, request.subdir, request.image, build.state)
    yield from filter(None, (status.reason, status.message, *(attempt.node for attempt in status.attempts[-1:])))
    for cause in build.causes:
        yield from filter(None, (cause.by, cause.trigger, cause.ref and short_name(cause.ref), *cause.tags))
