"""Git LFS: fetches the objects for a commit's pointer files before anything is checked out.

The API is the batch API with the `basic` transfer (git-lfs/docs/api/batch.md, docs/spec.md for pointers). The git-lfs
command is not suitable: it is written in Go, whose HTTP client never uses a proxy for a loopback address. So an LFS
server could lead it to any service of this machine past the guard. git's own filter copies the objects from the folder
of this module (gitattributes(5), `SMUDGE`), and reports each pointer whose object is missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
import requests

from builds.clients.git import Git
from builds.clients.git.process import TRUST
from builds.clients.guard import ANYTHING
from builds.errors import CannotBuild, RepositoryError, RepositoryRefused, RequestError, TryAgain, Unreachable
from builds.repository import Repository, canonical

MAX_BYTES = 4 << 30
"""Bytes of all objects of an attempt. Objects beyond that are not fetched."""

MAX_FILES = 10_000
"""Pointer files of one repository that are processed."""

MAX_POINTER = 1024
"""Bytes, by the specification."""

BATCH = 100
"""Objects per request, as in git-lfs."""

TIMEOUT = (10, 60)
"""Seconds for a connection, and for the next bytes of a response."""

MAX_ANSWER = 4 << 20
"""Bytes of the response to a batch request."""

MEDIA_TYPE = "application/vnd.git-lfs+json"

SMUDGE = """\
# git gives what the repository holds on standard input, and the file's path as the argument.
# A program that is killed must make this fail (and so git: `required`), or the file would hold its pointer unseen.
held=$(mktemp) || exit 1
trap 'rm -f "$held"' EXIT
cat > "$held" || exit 1
size=$(wc -c < "$held") || exit 1
object=
if [ "$size" -le {most} ]; then
    object=$(sed -n -e '1{{/^version https:\\/\\/git-lfs/!q}}' \\
        -e 's/^oid sha256:\\([0-9a-f]\\{{64\\}}\\)$/\\1/p' "$held") || exit 1
fi
if [ -n "$object" ] && [ -f {store}/"$object" ]; then
    cat {store}/"$object"
else
    [ -z "$object" ] || printf 'LFS object not fetched, so the file holds only its pointer: %s\\n' "$1" >&2
    cat "$held"
fi
"""


class Pointer(NamedTuple):
    """A file's path, and its object: SHA-256 in hexadecimal, size in bytes."""

    path: str
    oid: str
    size: int


class DownloadAction(msgspec.Struct, frozen=True):
    """The address of an object's download, and its header fields."""

    href: str
    header: Mapping[str, str] = {}


class ObjectError(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


class Found(msgspec.Struct, frozen=True):
    """The server's answer about one object."""

    oid: str
    actions: Mapping[str, DownloadAction] | None = None
    error: ObjectError | None = None


class BatchResponse(msgspec.Struct, frozen=True):
    """The response to a batch request."""

    objects: Sequence[Found]


class Lfs:
    """Fetches the objects of one attempt into `Git.lfs`."""

    def __init__(self, git: Git, say: Callable[[str], None]) -> None:
        """`say` writes a line to the log."""
        self._git = git
        self._say = say
        self._left = MAX_BYTES
        git.lfs.mkdir()
        script = SMUDGE.format(store=shlex.quote(str(git.lfs)), most=MAX_POINTER)
        (git.lfs / "smudge").write_text(script)
        self._session = _Session()
        self._session.trust_env = False  # neither proxy nor netrc, except for those set here
        self._session.proxies = dict.fromkeys(("http", "https"), git.guard.proxy(ANYTHING))
        self._session.verify = os.environ.get(TRUST) or ssl.get_default_verify_paths().cafile or True

    def fetch(self, bare: Path, repository: Repository, commit: str) -> None:
        """Fetches the objects of the commit's pointers, and logs those that it cannot fetch.

        Raises RepositoryRefused for an LFS server or a download that the policy refuses. Raises CannotBuild for a
        server that does not give this build the objects, Unreachable.
        """
        pointers = list(self._pointers(bare, commit))
        wanted = {one.oid: one for one in pointers if not (self._git.lfs / one.oid).exists()}
        if not wanted:
            return
        endpoint = self._endpoint(bare, repository, commit)
        self._say(f"Fetching {len(wanted)} LFS objects from {_shown(endpoint)}.")
        todo = [one for one in wanted.values() if self._fits(one)]
        for start in range(0, len(todo), BATCH):
            part = {one.oid: one for one in todo[start : start + BATCH]}
            for found in self._batch(endpoint, list(part.values())):
                if pointer := part.pop(found.oid, None):
                    self._download(pointer, found)
            for pointer in part.values():
                self._missing(pointer, "the server does not list it")

    def _fits(self, pointer: Pointer) -> bool:
        if pointer.size > self._left:
            self._missing(
                pointer, f"its {pointer.size} bytes exceed the {MAX_BYTES >> 30} GiB for all objects of a build"
            )
            return False
        self._left -= pointer.size
        return True

    def _missing(self, pointer: Pointer, why: str) -> None:
        self._say(f"LFS object of {pointer.path} not fetched: {why}. The file contains only its pointer.")

    # The commit's pointers

    def _pointers(self, bare: Path, commit: str) -> Iterator[Pointer]:
        """The pointer files to which the commit's attributes apply the LFS filter."""
        self._git.run("read-tree", commit, at=bare)
        empty = self._git.home / "empty"
        empty.mkdir(exist_ok=True)
        listed = self._git.run(f"--work-tree={empty}", "ls-files", "-z", "--stage", "--", ":(attr:filter=lfs)", at=bare)
        found = re.finditer(rb"(?:\A|\0)100[0-7]+ ([0-9a-f]+) 0\t([^\0]+)", listed)
        files = [(one[1].decode(), one[2].decode(errors="surrogateescape")) for one in islice(found, MAX_FILES)]
        if next(found, None):
            self._say(f"Only the first {MAX_FILES} LFS files are fetched; the others stay pointers.")
        self._prefetch(bare, [blob for blob, _ in files])
        for blob, path in files:
            if pointer := self._pointer(bare, path, blob):
                yield pointer

    def _prefetch(self, bare: Path, blobs: Sequence[str]) -> None:
        """Fetches all blobs in a few requests: git would fetch each one separately. A refusal is ignored here."""
        partial = self._git.run("config", "--default", "false", "--get", "remote.origin.promisor", at=bare)
        if partial.strip() != b"true":
            return
        options = ("-c", "fetch.negotiationAlgorithm=noop", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head")
        for start in range(0, len(blobs), BATCH):
            with suppress(RequestError):
                self._git.run(*options, "--filter=blob:none", "--", "origin", *blobs[start : start + BATCH], at=bare)

    def _pointer(self, bare: Path, path: str, blob: str) -> Pointer | None:
        """`None` for a file that was committed without LFS."""
        if int(self._git.run("cat-file", "-s", blob, at=bare)) > MAX_POINTER:
            return None
        text = self._git.run("cat-file", "blob", blob, at=bare).decode(errors="replace")
        oid, size = re.search(r"(?m)^oid sha256:([0-9a-f]{64})$", text), re.search(r"(?m)^size ([0-9]{1,18})$", text)
        if not text.startswith("version https://git-lfs") or not oid or not size:
            return None
        return Pointer(path, oid[1], int(size[1]))

    def _endpoint(self, bare: Path, repository: Repository, commit: str) -> str:
        """The server's URL: named by `.lfsconfig`, or derived from the repository's. Raises RepositoryError."""
        named = self._configured(bare, commit)
        if not named:
            url = repository.clone_url.removesuffix("/")
            return f"{url}/info/lfs" if url.endswith(".git") else f"{url}.git/info/lfs"
        parts = urlsplit(named)
        try:
            path = parts.path.strip("/").removesuffix("info/lfs").rstrip("/")
            place = canonical(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{path or '-/-'}")
            if place.scheme not in ("http", "https"):
                raise RepositoryRefused("Use http or https.")
            self._git.policy.check_endpoint(place)
        except RepositoryError as error:
            raise RepositoryRefused(
                f"The LFS server {_shown(named)}, which .lfsconfig names, is refused: {error}"
            ) from None
        return f"{place.url.removesuffix(place.path)}{parts.path.strip('/')}"

    def _configured(self, bare: Path, commit: str) -> str:
        try:
            listed = self._git.run("config", "--no-includes", "--blob", f"{commit}:.lfsconfig", "--list", "-z", at=bare)
        except CannotBuild:  # the file is missing or unreadable
            return ""
        entries = [entry.partition("\n") for entry in listed.decode(errors="replace").split("\0")]
        settings = {key: value for key, _, value in entries}
        return next((settings[key] for key in ("lfs.url", "remote.origin.lfsurl") if settings.get(key)), "")

    # The server's answers

    def _batch(self, endpoint: str, pointers: Sequence[Pointer]) -> Sequence[Found]:
        asked = [{"oid": one.oid, "size": one.size} for one in pointers]
        body = {"operation": "download", "transfers": ["basic"], "objects": asked, "hash_algo": "sha256"}
        fields = {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE}
        with suppress(RepositoryError):
            if authorization := self._git.authorization(canonical(endpoint.removesuffix(".git/info/lfs"))):
                fields["Authorization"] = self._session.stored = authorization
        with self._asked("POST", f"{endpoint}/objects/batch", fields, msgspec.json.encode(body)) as answer:
            _check(answer, _shown(endpoint))
            content = b"".join(_up_to(answer, MAX_ANSWER))
        try:
            return msgspec.json.decode(content, type=BatchResponse).objects
        except msgspec.MsgspecError:
            raise CannotBuild(f"The LFS server {_shown(endpoint)} gave an invalid response.") from None

    def _download(self, pointer: Pointer, found: Found) -> None:
        action = (found.actions or {}).get("download")
        if found.error or not action:
            self._missing(pointer, f"the server says: {(found.error or ObjectError()).message[:200] or 'no download'}")
            return
        part, digest = self._git.lfs / "part", hashlib.sha256()
        with self._asked("GET", action.href, action.header) as answer, part.open("wb") as file:
            _check(answer, _shown(action.href))
            for piece in _up_to(answer, pointer.size):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() == pointer.oid:
            part.rename(self._git.lfs / pointer.oid)
        else:
            self._missing(pointer, f"{_shown(action.href)} returned other content")

    def _asked(self, method: str, url: str, fields: Mapping[str, str], body: bytes | None = None) -> requests.Response:
        """The response, its body not read yet. Raises the guard's refusal, Unreachable, CannotBuild."""
        self._git.trouble()
        headers = {**fields, "Accept-Encoding": "identity"}
        try:
            answer = self._session.request(method, url, headers=headers, data=body, stream=True, timeout=TIMEOUT)
        except (requests.RequestException, ValueError) as error:
            raise self._named(self._git.trouble(), url) or _unreachable(url, error) from None
        refused = self._named(self._git.trouble(), url)
        if refused:  # over plain http a refusal comes as a response
            answer.close()
            raise refused
        return answer

    def _named(self, error: RequestError | None, url: str) -> RequestError | None:
        return error and type(error)(f"An LFS request to {_shown(url)} was not made: {error}")


class _Session(requests.Session):
    """Removes `stored`, Kiln's own `Authorization`, at each redirect; requests itself keeps it on the same host."""

    stored: str | None = None

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
        if prepared_request.headers.get("Authorization") == self.stored:
            prepared_request.headers.pop("Authorization", None)


def _unreachable(url: str, error: Exception) -> RequestError:
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return Unreachable(f"The LFS server {_shown(url)} could not be reached ({type(error).__name__}).")
    return CannotBuild(f"The LFS server gave an invalid URL: {_shown(url)} ({type(error).__name__}).")


def _check(answer: requests.Response, where: str) -> None:
    """Raises TryAgain for a status that may be temporary, CannotBuild for every other error."""
    status = answer.status_code
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise TryAgain(f"The LFS server {where} answered {status}.")
    if not answer.ok:
        raise CannotBuild(f"The LFS server {where} answered {status}.")


def _up_to(answer: requests.Response, most: int) -> Iterator[bytes]:
    """The content, cut if it is longer than `most` bytes. Raises Unreachable."""
    left = most
    try:
        for piece in answer.iter_content(1 << 16):
            yield piece[: left + 1]  # one byte too many, so that the digest differs
            left -= len(piece)
            if left < 0:
                return
    except requests.RequestException as error:
        raise _unreachable(answer.url, error) from None


def _shown(url: str) -> str:
    """The URL without possible secrets, for a log."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300]
