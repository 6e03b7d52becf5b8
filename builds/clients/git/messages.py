"""Classifies git's error messages: the kind of error, and a sentence for the user."""

from __future__ import annotations

import re
from collections.abc import Sequence

from builds.errors import CannotBuild, RepositoryRefused, RequestError, TryAgain, UnknownRef, Unreachable


class Redirected(RepositoryRefused):
    """The host answers with a redirect."""


class NotShown(CannotBuild):
    """The host denies access, at least without another credential."""


class NoSuchRepository(CannotBuild):
    """The host reports that it has no such repository."""


MESSAGES: Sequence[tuple[str, type[RequestError], str]] = (
    (r" of signal \d|external filter .* failed|smudge filter lfs failed", TryAgain, "git was ended from outside."),
    (r"returned error: 30\d|redirect", Redirected, "The Git host redirects too often, or not to a repository."),
    (r"transport '.*' not allowed|protocol '.*' is not supported", RepositoryRefused, "The protocol is not allowed."),
    (
        r"not our ref|want [0-9a-f]+ not valid|unadvertised object|not a tree|find remote ref|Needed a single revision",
        UnknownRef,
        "The repository has no such commit.",
    ),
    (
        r"could not read (Username|Password)|Authentication failed|returned error: 40[13]",
        NotShown,
        "The Git host denies access to this repository: it does not exist, or requires a credential.",
    ),
    (r"repository '.*' not found|returned error: 4(04|10)", NoSuchRepository, "The Git host has no such repository."),
    (
        r"does not appear to be a git repository|is this a git repository",
        CannotBuild,
        "No Git repository has this address.",
    ),
    (r"bad config", CannotBuild, "The repository's .gitmodules cannot be read."),
    (r"does not support shallow", CannotBuild, "The Git host does not speak the smart HTTP protocol."),
    (r"No space left on device", TryAgain, "The disk has no space for the repository."),
    (r"unable to create file|File name too long", CannotBuild, "The repository has a file that cannot be written."),
    (
        (
            r"unable to access|Could not resolve|Failed to connect|[Cc]onnection|[Tt]imed? ?out|early EOF|RPC failed"
            r"|hung up|unexpected disconnect|returned error: (5\d\d|429)|expected flush|curl \d+|SSL|TLS"
            r"|bad line length|protocol error|invalid server response"
        ),
        Unreachable,
        "The Git host could not be reached.",
    ),
)
"""Patterns in git's messages, matched in this order. Any other message is the repository's fault."""


def diagnosis(complaint: str) -> RequestError:
    """The error that a message of git's means, with git's own last words."""
    said = [line.partition(": ")[2] for line in complaint.splitlines() if line.startswith(("fatal: ", "error: "))]
    words = f" git says: {said[0][:300]}" if said else ""
    for pattern, kind, sentence in MESSAGES:
        if re.search(pattern, complaint):
            return kind(sentence + words)
    return CannotBuild(f"git cannot read this repository.{words}") if said else TryAgain("git failed without a word.")
