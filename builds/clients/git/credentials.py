"""Stored credentials for Git hosts, and the choice of the one for a repository."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from builds.errors import RepositoryError
from builds.repository import Repository, canonical


class Credential(NamedTuple):
    """A user name and password for one host, or for the repositories below one path (`path` is empty or canonical)."""

    origin: str
    path: str
    user: str
    password: str

    def fits(self, repository: Repository) -> bool:
        below = not self.path or repository.path == self.path or repository.path.startswith(f"{self.path}/")
        return self.origin == _origin(repository) and below

    @property
    def authorization(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}"


def credentials(place: str | os.PathLike[str] | None) -> tuple[Credential, ...]:
    """The credentials in a file in the format of git-credential-store(1), or in a folder of such files. Other lines are
    skipped."""
    if place is None or not Path(place).exists():
        return ()
    inside = sorted(Path(place).iterdir()) if Path(place).is_dir() else [Path(place)]
    files = [file for file in inside if file.is_file() and not file.name.startswith(".")]
    return tuple(each for file in files for each in credentials_in(file.read_text(encoding="utf-8")))


def credentials_in(text: str) -> tuple[Credential, ...]:
    """The credentials in the content of such a file."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(credential for line in lines if (credential := _credential(line)))


class Stored:
    """The stored credentials, cached for a second, because a list of builds asks for them once per build."""

    def __init__(self, place: str | os.PathLike[str] | None) -> None:
        self._place = place
        self._read: tuple[float, tuple[Credential, ...]] = (-1.0, ())

    def __call__(self) -> tuple[Credential, ...]:
        at, known = self._read
        if not at <= time.monotonic() <= at + 1 or at < 0:
            known = credentials(self._place)
            self._read = (time.monotonic(), known)
        return known

    def fits(self, repository: Repository) -> bool:
        """Whether a credential applies to this repository."""
        return credential_for(repository, self()) is not None


def credential_for(repository: Repository, known: Sequence[Credential]) -> Credential | None:
    """The credential with the longest path among those for this host and path."""
    return max((one for one in known if one.fits(repository)), key=lambda one: len(one.path), default=None)


def is_credential(line: str) -> bool:
    """Whether a line of such a file is a credential."""
    return _credential(line) is not None


def _credential(line: str) -> Credential | None:
    try:
        parts = urlsplit(line)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.username or parts.password is None:
        return None
    base, asked = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.strip("/")
    for added in range(3):  # with more parts, the address of a host or an owner may become a repository's
        try:
            found = canonical("/".join([base, *([asked] if asked else []), *["x"] * added]))
        except RepositoryError:
            continue
        path = "/".join(found.path.split("/")[: -added or None])
        return Credential(_origin(found), path, unquote(parts.username), unquote(parts.password))
    return None


def _origin(repository: Repository) -> str:
    return f"{repository.scheme}://{repository.host}:{repository.port}"
