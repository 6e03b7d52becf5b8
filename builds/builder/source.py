"""Finds out, before git may fetch it, everything that a repository makes git fetch.

The commit is fetched bare, shallow and without file contents. Its `.gitmodules`, and those of its submodules, are read
as data. Every URL in them is checked against the policy and then permitted, with its host's redirects. The clone that
follows can reach only these URLs. A commit names its submodules' commits, so both fetch the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from builds.builder.lfs import Lfs
from builds.clients.git import Git
from builds.errors import CannotBuild, RepositoryRefused, RequestError, UnknownRef

MAX_DEPTH = 10
"""Levels of submodules below the repository."""
MAX_SUBMODULES = 200
"""Submodules on all levels together."""


_LINK = re.compile(rb"(?:\A|\0)160000 commit ([0-9a-f]+)\t([^\0]+)")
"""An entry of a tree listing: object and path of a submodule."""


class Submodule(NamedTuple):
    """A link in a tree, with its URL in `.gitmodules`."""

    path: str
    url: str
    commit: str

    @contextmanager
    def named(self) -> Iterator[None]:
        """Adds the submodule's path to errors within."""
        try:
            yield
        except RequestError as error:
            raise type(error)(f"Submodule '{self.path}': {error}") from None


class Source:
    """Checks one repository and all its submodules."""

    def __init__(self, git: Git, say: Callable[[str], None], refs: Sequence[str] = ()) -> None:
        """`say` writes a line to the log; `refs` are further refs (no branches or tags) that lead to the commit."""
        self._git = git
        self._refs = refs
        self._say = say
        self._lfs = Lfs(git, say)
        self._seen: set[tuple[str, str]] = set()
        self.committed_at: datetime | None = None
        """The commit's time by its committer; `None` if it is invalid, or not known yet."""

    def look_through(self, url: str, commit: str, depth: int = 0) -> None:
        """Permits everything that a clone with submodules will fetch, and fetches the LFS objects.

        `url` has the form in which git will get it. Raises RepositoryError, UnknownRef, CannotBuild (all the
        repository's fault), Unreachable, TryAgain; an error in a submodule names the submodule.
        """
        if (url, commit) in self._seen:
            return
        self._seen.add((url, commit))
        if len(self._seen) > MAX_SUBMODULES:
            raise CannotBuild(f"The repository has more than {MAX_SUBMODULES} submodules.")
        self._git.permit(without_user(url), named=url)
        bare = self._git.home / f"{len(self._seen)}.git"
        before = len(self._git.moved)
        try:
            self._git.reach(url, lambda: self._fetch(bare, url, commit, self._refs if depth == 0 else ()))
        finally:
            for sentence in self._git.moved[before:]:
                self._say(sentence)
        if depth == 0:
            self.committed_at = _time(self._git.run("show", "--no-patch", "--format=%ct", commit, at=bare))
        tree = self._git.run("ls-tree", "-r", "-z", "--full-tree", commit, at=bare)
        if re.search(rb"[\t/]\.gitattributes\0", tree):
            self._lfs.fetch(bare, self._git.permit(without_user(url), named=url), commit)
        for submodule in self._submodules(bare, commit, tree):
            with submodule.named():
                if depth == MAX_DEPTH:
                    raise CannotBuild(f"Submodules are nested deeper than {MAX_DEPTH} levels.")
                self.look_through(resolved(url, submodule.url), submodule.commit, depth + 1)

    def _fetch(self, bare: Path, url: str, commit: str, refs: Sequence[str]) -> None:
        run = self._git.run
        kind = "sha256" if len(commit) > 40 else "sha1"  # noqa: PLR2004 (hex digits of SHA-1)
        run("init", "--quiet", "--bare", f"--object-format={kind}", str(bare))
        run("config", "remote.origin.url", url, at=bare)
        options = ("--quiet", "--no-tags", "--filter=blob:none", "--no-write-fetch-head")
        try:
            run("fetch", *options, "--depth=1", "--", "origin", commit, at=bare)
        except UnknownRef as error:
            if not re.search("unadvertised|not valid", str(error)):
                raise
            # The host serves only commits that refs lead to, so fetch all refs.
            run("fetch", *options, "--", "origin", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", at=bare)
            for ref in refs:
                with suppress(UnknownRef):  # it may be gone
                    run("fetch", *options, "--", "origin", ref, at=bare)
            run("rev-parse", "--verify", f"{commit}^{{commit}}", at=bare)

    def _submodules(self, bare: Path, commit: str, tree: bytes) -> Iterator[Submodule]:
        """The submodules that `git clone --recursive` fetches: the tree links to them, and they lack `update = none`.

        gitmodules(5). A link without an entry is not a submodule. If a setting or a path occurs twice, the last
        occurrence counts. git may read the file differently, but it may fetch only permitted URLs.

        A few objects can make a tree of a million paths, so the listing is searched without splitting it.
        """
        if not _LINK.search(tree) or not re.search(rb"(?:\A|\0)100(?:644|755) blob [0-9a-f]+\t\.gitmodules\0", tree):
            return
        settings: dict[str, dict[str, str]] = {}
        owners: dict[str, str] = {}
        for name, variable, value in self._settings(bare, commit):
            settings.setdefault(name, {})[variable] = value
            if variable == "path":
                owners[value] = name
        for link in _LINK.finditer(tree):
            target, path = link[1].decode(), link[2].decode(errors="surrogateescape")
            known = settings.get(owners.get(path, ""), {})
            if known and not known.get("url"):
                raise CannotBuild(f"Submodule '{path}' has no URL in .gitmodules.")
            if known and known.get("update") != "none":
                yield Submodule(path, known["url"], target)

    def _settings(self, bare: Path, commit: str) -> Iterator[tuple[str, str, str]]:
        """Name, variable and value of each setting in `.gitmodules`, read as git reads it.

        For a working tree git ignores includes in this file, but with `--blob` it would follow them, to any file of
        this machine.
        """
        output = self._git.run("config", "--no-includes", "--blob", f"{commit}:.gitmodules", "--list", "-z", at=bare)
        for setting in output.decode(errors="surrogateescape").split("\0"):
            key, _, value = setting.partition("\n")
            named = re.fullmatch(r"submodule\.(.+)\.([^.]+)", key, re.DOTALL)
            if named:
                yield named[1], named[2], value


def _time(seconds: bytes) -> datetime | None:
    """The time of a commit, which may be out of range."""
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def without_user(url: str) -> str:
    """The URL without user name and password: the server has the credentials, and a repository has one URL."""
    return re.sub(r"^(https?://)[^/?#]*@", r"\1", url, flags=re.IGNORECASE)


def resolved(parent: str, address: str) -> str:
    """A submodule's address; relative ones (`./`, `../`) are resolved against the parent's as git does.

    git drops one part of the parent's address per `../`, even the host. This function does the same, and its result is
    checked against the policy. Raises RepositoryRefused if no part is left to drop.
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
