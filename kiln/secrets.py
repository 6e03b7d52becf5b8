"""The folder of secrets: `webhooks/<word>/<any>`, `api-tokens/<name>`, `git-credentials`, `headers/<sink>`,
`statuses/<host>`, `oidc/client-secret`.

A file is a secret. Files are checked on every use and read again when they changed, so that a rotated Secret (in
Kubernetes a swapped symlink) takes effect without a restart. An invalid file is an error at the start; later it is
logged once and ignored. An empty file must never become an empty password. The marks of an editor (a byte order mark, a
carriage return, a blank) must never become a part of a secret.
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

FOLDERS = ("webhooks", "api-tokens", "git-credentials", "headers", "statuses", "oidc")
OIDC_CLIENT = "client-secret"
LARGEST = 64 * 2**10

OURS = frozenset(
    {
        *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("content-encoding", "content-length", "content-type"),
    }
)
"""Headers that describe the transfer of a message, which only the HTTP client sets; so are all `ce-…`."""
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff"
"""Characters without width."""
MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
"""Byte order marks: UTF-8's and UTF-16's."""

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

    def statuses(self, host: str) -> str | None:
        """The credential to set statuses at a host: a token, or lines in git's store format."""
        found = self._folder("statuses")
        secret = next((found[name] for name in _file_names(host) if name in found), None)
        return None if secret is None else secret.decode()

    def oidc_client(self) -> str | None:
        """The secret by which an OIDC issuer knows this client."""
        secret = self._folder("oidc").get(OIDC_CLIENT)
        return None if secret is None else secret.decode()

    @property
    def git_credentials(self) -> Path | None:
        """The path of credentials in git's store format: a file, or a folder of such files. It may not exist."""
        return None if self.root is None else self.root / "git-credentials"

    def check(self, *, words: Collection[str], sinks: Collection[str], hosts: Collection[str]) -> None:
        """Raises SecretsError with every problem. `words` are the webhook routes, `sinks` the sinks' names, `hosts` the
        hosts that receive statuses."""
        if self.root is None:
            return
        if not self.root.is_dir():
            raise SecretsError([f"KILN_SECRETS_DIR: {self.root} is not a folder"])
        try:
            problems = list(self._problems(self.root, words, sinks, hosts))
        except OSError as error:
            problems = [f"{error.filename}: cannot be read ({error.strerror})"]
        if problems:
            raise SecretsError(problems)

    def _problems(
        self, root: Path, words: Collection[str], sinks: Collection[str], hosts: Collection[str]
    ) -> Iterator[str]:
        yield from _unknown_files(root, FOLDERS)
        yield from _unknown_files(root / "webhooks", words)
        for path in self._folders():
            if path.is_dir() or path == self.git_credentials:
                files = _visible(path) if path.is_dir() else [path]
                wrong = _load(files, path.relative_to(root).parts[0])[1]
                yield from (f"{file}: {problem}" for file, problem in wrong.items())
            else:
                yield f"{path}: must be a folder of secrets"
        yield from _unknown_files(root / "headers", sinks)
        yield from _unknown_files(root / "statuses", [name for host in hosts for name in _file_names(host)])
        yield from _unknown_files(root / "oidc", [OIDC_CLIENT])
        yield from _shared_tokens(root / "api-tokens")

    def _folders(self) -> list[Path]:
        if self.root is None:
            return []
        found = [path for path in _visible(self.root) if path.name in FOLDERS and path.name != "webhooks"]
        return found + _visible(self.root / "webhooks")

    def _folder(self, folder: str) -> dict[str, bytes]:
        if self.root is None:
            return {}
        seen = _seen(f"{self.root}/{folder}")
        with self._lock:
            before = self._read.get(folder)
            if before is not None and before[0] == seen:
                return before[1]
        values, wrong = _load(_visible(self.root / folder), folder.partition("/")[0])
        for file, problem in wrong.items():
            log.error("The secret %s is ignored: %s", file, problem)
        with self._lock:
            self._read[folder] = (seen, values)
        return values


def _unknown_files(folder: Path, known: Collection[str]) -> Iterator[str]:
    """Files that Kiln never reads."""
    for path in _visible(folder):
        if path.name not in known:
            yield f"{path}: nothing reads this; known here: {', '.join(sorted(known)) or 'none'}"


def _file_names(host: str) -> tuple[str, ...]:
    """Names that a host's file may have: the keys of a Secret in Kubernetes have no colon."""
    return tuple(dict.fromkeys((host, host.replace(":", "_"))))


def _shared_tokens(folder: Path) -> Iterator[str]:
    """Tokens with two names: a caller that sends one would be either of them."""
    names: dict[bytes, str] = {}
    for name, token in _load(_visible(folder), "api-tokens")[0].items():
        first = names.setdefault(token, name)
        if first != name:
            yield f"{folder / name}: is the token of {first} as well; each name has its own"


def _load(files: Iterable[Path], kind: str) -> tuple[dict[str, bytes], dict[Path, str]]:
    """The secrets in these files of a folder (`kind`) by file name, and the problems of the other files."""
    values: dict[str, bytes] = {}
    wrong: dict[Path, str] = {}
    for path in files:
        try:
            values[path.name] = _secret(path, kind)
        except OSError as error:
            wrong[path] = f"cannot be read ({error.strerror})"
        except ValueError as error:
            wrong[path] = str(error)
    return values, wrong


def _secret(path: Path, kind: str) -> bytes:
    """The file without one trailing newline. Raises ValueError, whose message never has the content."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"is larger than {LARGEST // 2**10} KiB")
    secret = path.read_bytes().removesuffix(b"\n")
    if not secret.strip():
        raise ValueError("is empty")
    if secret.startswith(MARKS):
        raise ValueError("begins with a byte order mark: save it as plain UTF-8, without one")
    match kind:
        case "headers":
            _headers(secret)
        case "git-credentials":
            _check_credentials(secret)
        case "statuses" if b"://" in secret:
            _check_credentials(secret)
        case _:
            _check_one_line(secret)
            if kind in ("api-tokens", "statuses", "oidc") and not re.fullmatch(rb"[\x20-\x7e]+", secret):
                raise ValueError("holds what no Authorization header can: printable ASCII only")
    return secret


def _check_one_line(secret: bytes) -> None:
    """Raises ValueError for marks that an editor has left around a secret."""
    if secret.endswith(b"\r"):
        raise ValueError("ends with a carriage return: save it with Unix line endings, or write it by printf %s")
    text = secret.decode(errors="replace")  # copied from a page, it may have a blank of Unicode's at its end
    if secret != secret.strip() or text != text.strip().strip(UNSEEN):
        raise ValueError("begins or ends with a blank or an empty line, which would be a part of the secret: remove it")
    if re.search(rb"[\r\n]", secret):
        raise ValueError("holds several lines: one secret per file")


def _headers(secret: bytes) -> dict[str, str]:
    lines = [line.removesuffix("\r") for line in secret.decode("latin-1").split("\n")]
    headers: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        match = _HEADER.fullmatch(line)
        if match is None:
            raise ValueError(
                f"line {number} is not of the form `Name: value`, with no blank before the colon and ASCII only"
            )
        name, value = match["name"], match["value"]
        if not value:
            raise ValueError(f"line {number} has no value: {name} would be sent empty")
        if name.lower() in OURS or name.lower().startswith("ce-"):
            raise ValueError(f"line {number}: only Kiln itself sets {name}")
        if name.lower() in map(str.lower, headers):
            raise ValueError(f"line {number}: {name} is repeated, and only one would be sent")
        headers[name] = value
    return headers


def _check_credentials(content: bytes) -> None:
    """Raises ValueError for a line that git's store would pass over."""
    from builds.clients.git import is_credential  # noqa: PLC0415

    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#") and not is_credential(line.strip()):
            raise ValueError(
                f"line {number} is no credential: write https://user:token@host, each reserved character encoded with %"
            )


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder, by name, without Kubernetes' own `..data` and the like. Empty without the folder."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _seen(folder: str) -> _Seen:
    """Changes whenever a file of the folder does. Asked for by every webhook, so without pathlib."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as files:
        for file in files:
            with suppress(OSError):
                stat = file.stat()  # follows symlinks: the target is what changes
                found.append((file.name, stat.st_mtime_ns, stat.st_ino, stat.st_size))
    return tuple(sorted(found))
