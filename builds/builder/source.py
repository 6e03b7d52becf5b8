"""What a repository would make git fetch, found out before git may fetch it.

The commit is fetched bare, shallow and without file contents; its `.gitmodules`, and those of what they name, are read
as data. Every address in them is held against the policy and then permitted, so the clone that follows reaches the same
hosts at the same addresses and nothing else. A commit names its submodules' commits, so both see the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from builds.clients.git import Git
from builds.errors import CannotBuild, RepositoryError, RepositoryRefused, UnknownRef

MAX_DEPTH = 10
"""Levels of submodules below the repository."""
MAX_SUBMODULES = 200
"""Of all levels together."""


class Source:
    """Looks through one repository and all its submodules."""

    def __init__(self, git: Git) -> None:
        self._git = git
        self._seen: set[tuple[str, str]] = set()

    def look_through(self, url: str, commit: str, depth: int = 0) -> None:
        """Permits everything that a clone with submodules will fetch.

        Raises RepositoryError, UnknownRef, CannotBuild (all the repository's fault), Unreachable, TryAgain.
        """
        if (url, commit) in self._seen:
            return
        self._seen.add((url, commit))
        if len(self._seen) > MAX_SUBMODULES:
            raise CannotBuild(f"The repository has more than {MAX_SUBMODULES} submodules.")
        self._git.permit(url)
        bare = self._git.home / f"{len(self._seen)}.git"
        self._fetch(bare, url, commit)
        for address, commits in self._submodules(bare, commit):
            if depth == MAX_DEPTH:
                raise CannotBuild(f"The repository has submodules nested deeper than {MAX_DEPTH} levels.")
            where = resolved(url, address)
            try:
                self._git.permit(where)
            except RepositoryError as error:
                raise RepositoryRefused(f"A submodule is refused: {error}") from None
            for wanted in commits:
                self.look_through(where, wanted, depth + 1)

    def _fetch(self, bare: Path, url: str, commit: str) -> None:
        run = self._git.run
        kind = "sha256" if len(commit) > 40 else "sha1"  # noqa: PLR2004 (hex digits of SHA-1)
        run("init", "--quiet", "--bare", f"--object-format={kind}", str(bare))
        run("config", "remote.origin.url", url, at=bare)
        options = ("--quiet", "--no-tags", "--filter=blob:none", "--no-write-fetch-head")
        try:
            run("fetch", *options, "--depth=1", "--", "origin", commit, at=bare)
        except UnknownRef as error:
            if "unadvertised" not in str(error):
                raise
            # A host that gives only what branches and tags lead to; so all of that.
            run("fetch", *options, "--", "origin", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", at=bare)
            run("rev-parse", "--verify", f"{commit}^{{commit}}", at=bare)

    def _submodules(self, bare: Path, commit: str) -> Iterator[tuple[str, list[str]]]:
        """Every address in `.gitmodules`, with the commits that are wanted from it; nothing if the tree links to none.

        A name may be configured more than once and git takes one of them; here all count.
        """
        listed = self._git.run("ls-tree", "-r", "-z", "--full-tree", commit, at=bare).decode(errors="surrogateescape")
        entries = {path: meta.split() for meta, _, path in (entry.partition("\t") for entry in listed.split("\0"))}
        links = {path: meta[2] for path, meta in entries.items() if meta[:2] == ["160000", "commit"]}
        if not links:
            return
        if entries.get(".gitmodules", [""])[0] not in ("100644", "100755"):
            raise CannotBuild(
                "The repository links to submodules, but has no .gitmodules file that says what they are."
            )
        wanted: dict[str, list[str]] = {}
        addresses: list[tuple[str, str]] = []
        for name, variable, value in self._settings(bare, commit):
            if variable == "path" and value in links:
                wanted.setdefault(name, []).append(links[value])
            elif variable == "url":
                addresses.append((name, value))
        for name, address in addresses:
            yield address, wanted.get(name, [])

    def _settings(self, bare: Path, commit: str) -> Iterator[tuple[str, str, str]]:
        """Name, variable and value of each setting in `.gitmodules`, read as git reads it."""
        output = self._git.run("config", "--blob", f"{commit}:.gitmodules", "--list", "-z", at=bare)
        for setting in output.decode(errors="surrogateescape").split("\0"):
            key, _, value = setting.partition("\n")
            named = re.fullmatch(r"submodule\.(.+)\.([^.]+)", key, re.DOTALL)
            if named:
                yield named[1], named[2], value


def resolved(parent: str, address: str) -> str:
    """A submodule's address, relative ones (`./`, `../`) resolved against the parent's as git does.

    git drops one part per `../` from the text of the parent's address, be it the host; so this does the same, and what
    comes out is held against the policy. Raises RepositoryRefused where nothing is left to drop.
    """
    if not address.startswith(("./", "../")):
        return address
    base = parent.removesuffix("/")
    while address.startswith(("./", "../")):
        if address.startswith("../"):
            base, slash, _ = base.rpartition("/")
            if not slash:
                raise RepositoryRefused(f"A submodule's relative address leads out of {parent}.")
        address = address.partition("/")[2]
    return f"{base}/{address}".removesuffix("/")
