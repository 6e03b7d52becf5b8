"""What a repository would make git fetch, found out before git may fetch it.

The commit is fetched bare, shallow and without file contents; its `.gitmodules`, and those of what they name, are read
as data. Every URL in them is held against the policy and then permitted, with the redirects that its host answers; the
clone that follows reaches these and nothing else. A commit names its submodules' commits, so both see the same.
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
"""Of all levels together."""


_LINK = re.compile(rb"(?:\A|\0)160000 commit ([0-9a-f]+)\t([^\0]+)")
"""In a listing of a tree: object and path of a submodule."""


class Submodule(NamedTuple):
    """A link in a tree, with the URL that `.gitmodules` has for it."""

    path: str
    url: str
    commit: str

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors within say which submodule they are about."""
        try:
            yield
        except RequestError as error:
            raise type(error)(f"Submodule '{self.path}': {error}") from None


class Source:
    """Looks through one repository and all its submodules."""

    def __init__(self, git: Git, say: Callable[[str], None], refs: Sequence[str] = ()) -> None:
        """`say` writes a line to the log; `refs` are other refs than branches and tags that may lead to the commit."""
        self._git = git
        self._refs = refs
        self._say = say
        self._lfs = Lfs(git, say)
        self._seen: set[tuple[str, str]] = set()
        self.committed_at: datetime | None = None
        """When the committer says that the commit was made; `None` where that is no time, or not known yet."""

    def look_through(self, url: str, commit: str, depth: int = 0) -> None:
        """Permits everything that a clone with submodules will fetch, and fetches the LFS objects.

        `url` is as git will be given it. Raises RepositoryError, UnknownRef, CannotBuild (all the repository's fault),
        Unreachable, TryAgain; an error of a submodule names the submodule.
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
            # A host that gives only what refs lead to; so all of that.
            run("fetch", *options, "--", "origin", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", at=bare)
            for ref in refs:
                with suppress(UnknownRef):  # it may be gone
                    run("fetch", *options, "--", "origin", ref, at=bare)
            run("rev-parse", "--verify", f"{commit}^{{commit}}", at=bare)

    def _submodules(self, bare: Path, commit: str, tree: bytes) -> Iterator[Submodule]:
        """Those that `git clone --recursive` fetches: the tree links to them, and not `update = none`.

        gitmodules(5). A link without an entry is no submodule. Of a setting that is there more than once, and of two
        entries with one path, the last counts. What git may take otherwise, it was not permitted to fetch.

        A few objects can make a tree of a million paths, so its listing is searched as it is.
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

        git includes no other file there, but with `--blob` it would: whatever file of this machine is named.
        """
        output = self._git.run("config", "--no-includes", "--blob", f"{commit}:.gitmodules", "--list", "-z", at=bare)
        for setting in output.decode(errors="surrogateescape").split("\0"):
            key, _, value = setting.partition("\n")
            named = re.fullmatch(r"submodule\.(.+)\.([^.]+)", key, re.DOTALL)
            if named:
                yield named[1], named[2], value


def _time(seconds: bytes) -> datetime | None:
    """Of a commit, which may say anything."""
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def without_user(url: str) -> str:
    """The URL without user name and password: credentials are the server's, and a repository has one URL."""
    return re.sub(r"^(https?://)[^/?#]*@", r"\1", url, flags=re.IGNORECASE)


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
