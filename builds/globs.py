"""Lists of globs, as rules have them: taken in order, and one after `!` takes back what those before it have chosen.

As in GitHub Actions, but only `*` and `**` have a meaning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from builds.errors import Malformed, RuleError
from builds.repository import checked_ref, glob_match


def chosen(globs: Sequence[str], text: str) -> bool:
    """By the last glob that matches."""
    for glob in reversed(globs):
        if glob_match(glob.removeprefix("!"), text):
            return not glob.startswith("!")
    return False


def check_order(globs: Sequence[str]) -> None:
    """Raises RuleError where globs in this order can match nothing."""
    if not globs:
        raise RuleError("the list is empty, so nothing matches; leave it out, or write ['**'].")
    if globs[0].startswith("!"):
        raise RuleError("nothing is chosen before what is taken away; begin with a pattern such as '**'.")
    if not any(_remains(glob, globs[index:]) for index, glob in enumerate(globs) if not glob.startswith("!")):
        raise RuleError("all that is chosen is taken away again, so nothing matches; the last that matches decides.")


def _remains(glob: str, later: Sequence[str]) -> bool:
    """Whether something that a glob chooses is not taken away by a later one."""
    samples = {glob.replace("**", deep) for deep in ("*", "*/*")}
    return not any(
        other.startswith("!") and all(glob_match(other[1:], sample) for sample in samples) for other in later
    )


def check_glob(glob: str, *, paths: bool) -> None:
    """Raises RuleError for one that can match nothing, or means something else to who knows GitHub Actions."""
    if special := re.search(r"[?\[\]{}\\]", glob):
        raise RuleError(f"'{special[0]}' has no meaning in '{glob}', only * and ** have; write several patterns.")
    if "+" in glob:  # which repeats what is before it in GitHub Actions
        raise RuleError(f"'+' has no meaning in '{glob}', only * and ** have; write '{glob.replace('+', '*')}'.")
    form = re.sub(r"^(?:refs/(?:heads|tags)/|(?:\./|/)+|!+)", "", glob.strip(" \t\r\n"))
    form = re.sub(r"//+", "/", re.sub(r"/+$", "/**", form))
    if form != glob or not form:
        raise RuleError(f"'{glob}' can match nothing; write '{form or '**'}'.")
    sample = re.sub(r"\*+", "a", glob)
    if paths:
        if {".", ".."} & {*sample.split("/")}:
            raise RuleError(f"'{glob}' can match nothing: paths are those of the repository, without '.' and '..'.")
        return
    try:
        checked_ref(sample)
    except Malformed:
        form = re.sub(r"[\^~:\s]|\.\.+|\.lock$|\.$|@\{", "", re.sub(r"(^|/)\.\*+", r"\1**", glob)) or "**"
        raise RuleError(f"'{glob}' can match nothing, as no branch or tag can be called so; write '{form}'.") from None
