"""Lists of globs in rules. The last matching glob decides, and one after `!` excludes.

As in GitHub Actions, but only `*` and `**` are special.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from builds.errors import Malformed, RuleError
from builds.repository import checked_ref, glob_match


def chosen(globs: Sequence[str], text: str) -> bool:
    """Whether the last matching glob includes the text."""
    for glob in reversed(globs):
        if glob_match(glob.removeprefix("!"), text):
            return not glob.startswith("!")
    return False


def check_order(globs: Sequence[str]) -> None:
    """Raises RuleError if globs in this order can match nothing."""
    if not globs:
        raise RuleError("the list is empty, so nothing matches; leave it out, or write ['**'].")
    if globs[0].startswith("!"):
        raise RuleError("the first pattern excludes, so nothing matches; begin with a pattern such as '**'.")
    if not any(_remains(glob, globs[index:]) for index, glob in enumerate(globs) if not glob.startswith("!")):
        raise RuleError("later patterns exclude everything, so nothing matches; the last pattern that matches decides.")


def _remains(glob: str, later: Sequence[str]) -> bool:
    """Whether later globs leave something of what this glob includes."""
    samples = {glob.replace("**", deep) for deep in ("*", "*/*")}
    return not any(
        other.startswith("!") and all(glob_match(other[1:], sample) for sample in samples) for other in later
    )


def check_glob(glob: str, *, paths: bool) -> None:
    """Raises RuleError for a glob that can match nothing, or that means something else in GitHub Actions."""
    if special := re.search(r"[?\[\]{}\\]", glob):
        raise RuleError(f"'{special[0]}' has no meaning in '{glob}', only * and ** have; write several patterns.")
    if "+" in glob:  # in GitHub Actions, repeats the preceding character
        raise RuleError(f"'+' has no meaning in '{glob}', only * and ** have; write '{glob.replace('+', '*')}'.")
    form = re.sub(r"^(?:refs/(?:heads|tags)/|(?:\./|/)+|!+)", "", glob.strip(" \t\r\n"))
    form = re.sub(r"//+", "/", re.sub(r"/+$", "/**", form))
    if form != glob or not form:
        raise RuleError(f"'{glob}' can match nothing; write '{form or '**'}'.")
    sample = re.sub(r"\*+", "a", glob)
    if paths:
        if {".", ".."} & {*sample.split("/")}:
            raise RuleError(f"'{glob}' can match nothing: paths in a repository have no '.' and '..' parts.")
        return
    try:
        checked_ref(sample)
    except Malformed:
        form = re.sub(r"[\^~:\s]|\.\.+|\.lock$|\.$|@\{", "", re.sub(r"(^|/)\.\*+", r"\1**", glob)) or "**"
        raise RuleError(f"'{glob}' can match nothing, as no branch or tag has such a name; write '{form}'.") from None
