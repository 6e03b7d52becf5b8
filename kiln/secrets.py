"""The folder of secrets: `webhooks/<word>/<any>`, `api-tokens/<name>`, `git-credentials`, `headers/<sink>`.

A file is a secret. Files are looked at on every use and read again when they changed, so that a rotated Secret (in
Kubernetes a swapped symlink) holds from then on without a restart. What is wrong with a file is told at the start;
later it is logged once and that file counts for nothing: an empty file must never become an empty password.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from kiln.errors import SecretsError

log = logging.getLogger("kiln.secrets")

FOLDERS = ("webhooks", "api-tokens", "git-credentials", "headers")
LATER = frozenset({"statuses", "gitlab", "bitbucket", "bitbucket-server"})
"""Known names for parts that are not in this version: a folder that serves a newer one as well is no mistake."""
LARGEST = 64 * 2**10

_HEADER = re.compile(r"(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(?P<value>[\x20-\x7e]*?)[ \t]*")

_Seen = tuple[tuple[str, int, int, int], ...]


class Secrets:
    """Reads the folder at `root`; without one there are no secrets. Safe to use from many threads.

    Shows its folder and nothing of what lies in it.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._read: dict[str, tuple[_Seen, dict[str, bytes]]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Secrets({str(self.root)!r})"

    def webhooks(self, word: str) -> tuple[bytes, ...]:
        """Every valid signing secret of a host's route."""
        return tuple(self._folder(f"webhooks/{word}").values())

    def api_tokens(self) -> Mapping[str, bytes]:
        """Tokens by name."""
        return self._folder("api-tokens")

    def headers(self, sink: str) -> Mapping[str, str]:
        """Headers for what is sent to a sink."""
        secret = self._folder("headers").get(sink)
        return {} if secret is None else _headers(secret)

    @property
    def git_credentials(self) -> Path | None:
        """Where credentials in git's store format are, if anywhere: a file, or a folder of such files."""
        return None if self.root is None else self.root / "git-credentials"

    def check(self, *, words: Collection[str], sinks: Collection[str]) -> None:
        """Raises SecretsError with all that is wrong; `words` are the webhook routes, `sinks` the sinks there are."""
        if self.root is None:
            return
        if not self.root.is_dir():
            raise SecretsError([f"KILN_SECRETS_DIR: {self.root} is not a folder"])
        problems = [*_strangers(self.root, FOLDERS), *_strangers(self.root / "webhooks", words)]
        for path in self._folders():
            if path.is_dir() or path == self.git_credentials:
                files = _visible(path) if path.is_dir() else [path]
                problems += [f"{file}: {wrong}" for file, wrong in _load(files)[1].items()]
            else:
                problems.append(f"{path}: must be a folder of secrets")
        problems += _strangers(self.root / "headers", sinks)
        if problems:
            raise SecretsError(problems)

    def _folders(self) -> list[Path]:
        if self.root is None:
            return []
        found = [path for path in _visible(self.root) if path.name in FOLDERS and path.name != "webhooks"]
        return found + _visible(self.root / "webhooks")

    def _folder(self, folder: str) -> dict[str, bytes]:
        if self.root is None:
            return {}
        path = self.root / folder
        seen = _seen(path)
        with self._lock:
            before = self._read.get(folder)
            if before is not None and before[0] == seen:
                return before[1]
        values, wrong = _load(_visible(path))
        for file, problem in wrong.items():
            log.error("The secret %s is left out: %s", file, problem)
        with self._lock:
            self._read[folder] = (seen, values)
        return values


def _strangers(folder: Path, known: Collection[str]) -> Iterator[str]:
    """Names that nothing will ever read."""
    for path in _visible(folder):
        if path.name in LATER:
            log.warning("The secrets in %s are for a part that is not in this version of Kiln.", path)
        elif path.name not in known:
            yield f"{path}: nothing reads this; known here: {', '.join(sorted(known)) or 'none'}"


def _load(files: Iterable[Path]) -> tuple[dict[str, bytes], dict[Path, str]]:
    """The secrets in these files by file name, and what is wrong with the others."""
    values: dict[str, bytes] = {}
    wrong: dict[Path, str] = {}
    for path in files:
        try:
            values[path.name] = _secret(path, header=path.parent.name == "headers")
        except OSError as error:
            wrong[path] = f"cannot be read ({error.strerror})"
        except ValueError as error:
            wrong[path] = str(error)
    return values, wrong


def _secret(path: Path, *, header: bool) -> bytes:
    """The file without one trailing newline. Raises ValueError, which never tells what the file holds."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"is larger than {LARGEST // 2**10} KiB")
    secret = path.read_bytes().removesuffix(b"\n")
    if not secret:
        raise ValueError("is empty")
    if header:
        _headers(secret)
    return secret


def _headers(secret: bytes) -> dict[str, str]:
    lines = [line.removesuffix("\r") for line in secret.decode("latin-1").split("\n")]
    found = [_HEADER.fullmatch(line) for line in lines if line]
    if not all(found):
        raise ValueError(f"line {found.index(None) + 1} is not of the form `Name: value`")
    return {match["name"]: match["value"] for match in found if match}


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, by name; Kubernetes' own `..data` and the like left out. Empty without the folder."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _seen(folder: Path) -> _Seen:
    """Changes whenever a file of the folder does. Asked for by every webhook, so without pathlib."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as files:
        for file in files:
            with suppress(OSError):
                stat = file.stat()  # follows symlinks: the target is what changes
                found.append((file.name, stat.st_mtime_ns, stat.st_ino, stat.st_size))
    return tuple(sorted(found))
