"""GitHub's REST API, where Kiln has a token for the repository: what a ref points at, in a request that may be free.

With a token GitHub counts requests by the hour, and counts none that it answers with 304, Not Modified; so what it has
said is kept with its `ETag`, and asked for again on that condition. Without a token there are sixty requests an hour
for everybody behind one address: then Git itself is asked, whom nobody counts. Git is asked as well wherever the API
says anything but yes: what is wrong with a repository or a ref is told in one way only.

https://docs.github.com/en/rest/git/refs, https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
import requests

from builds.clients.answers import content_of
from builds.repository import HostKind, Repository, is_commit

log = logging.getLogger(__name__)

T = TypeVar("T")

LIMIT = 3.0
"""Seconds for one answer; Git is asked after that, and needs its time as well."""
PAUSE = 60.0
"""Seconds for which an API that did not answer, or says that it was asked too much, is left alone."""
LONGEST_PAUSE = 3600.0
"""GitHub counts by the hour."""
MOST_KEPT = 1024
LARGEST = 1 << 20
VERSION = "2022-11-28"


class _Object(msgspec.Struct):
    type: str
    sha: str


class _Ref(msgspec.Struct):
    ref: str
    object: _Object


class _About(msgspec.Struct):
    default_branch: str


class _Answer(NamedTuple):
    status: int
    etag: str
    content: bytes


class _UnclearError(Exception):
    """Git has to be asked."""


class GitHub:
    """Of github.com and of every configured host of that kind. Safe to use from many threads."""

    def __init__(self, *, limit: float = LIMIT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[str, bytes]] = OrderedDict()
        self._resting: dict[str, float] = {}

    def default_branch(self, repository: Repository, token: str, deadline: float) -> str | None:
        """The full name of the branch that HEAD is; `None` where the API does not say. `deadline` is of
        `time.monotonic`."""
        try:
            about = self._get(repository, "", token, deadline, _About)
        except _UnclearError:
            return None
        return f"refs/heads/{about.default_branch}" if about else None

    def commit(
        self, repository: Repository, refs: Sequence[str], token: str, deadline: float
    ) -> tuple[str, str] | None:
        """The first of these full refs that is there, and the commit that it points at; `None` where the API does not
        say, or where it is a tag with a message of its own."""
        try:
            for ref in refs:
                found = self._get(repository, f"/git/ref/{quote(ref.removeprefix('refs/'))}", token, deadline, _Ref)
                if found is not None:
                    exact = found.ref == ref and found.object.type == "commit" and is_commit(found.object.sha)
                    return (ref, found.object.sha) if exact else None
        except _UnclearError:
            pass
        return None

    def _get(self, repository: Repository, path: str, token: str, deadline: float, kind: type[T]) -> T | None:
        """`None` for what is not there. Raises _UnclearError for all that is neither that nor an answer."""
        if repository.kind is not HostKind.GITHUB or self._rests(repository.host):
            raise _UnclearError
        url = f"{_api(repository)}/repos/{repository.path}{path}"
        key = hashlib.sha256(f"{url} {token}".encode()).digest()  # nobody is told what another's token was told
        with self._lock:
            etag, content = self._kept.get(key, ("", b""))
        condition = {"If-None-Match": etag} if etag else {}
        answer = self._asked(repository.host, url, token, condition, min(self._limit, deadline - time.monotonic()))
        if answer.status == requests.codes.not_found:
            return None
        if answer.status == requests.codes.ok:
            content = answer.content
            self._keep(key, answer.etag, content)
        elif answer.status != requests.codes.not_modified:
            raise _UnclearError
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, RecursionError):
            raise _UnclearError from None

    def _asked(self, host: str, url: str, token: str, condition: dict[str, str], seconds: float) -> _Answer:
        """Raises _UnclearError without an answer."""
        if seconds <= 0:
            raise _UnclearError

        def authorized(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {token}"  # in place of what a netrc may have
            return request

        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": VERSION, **condition}
        try:
            with requests.get(
                url, headers=headers, auth=authorized, timeout=seconds, allow_redirects=False, stream=True
            ) as answer:
                content = content_of(answer, LARGEST, seconds)
        except (requests.RequestException, OSError) as error:
            self._rest(host, PAUSE, type(error).__name__)
            raise _UnclearError from None
        if answer.status_code >= requests.codes.server_error or _counted_out(answer):
            self._rest(host, _pause(answer), f"status {answer.status_code}")
        return _Answer(answer.status_code, answer.headers.get("ETag", ""), content)

    def _keep(self, key: bytes, etag: str, content: bytes) -> None:
        with self._lock:
            if not etag:
                self._kept.pop(key, None)
                return
            self._kept[key] = (etag, content)
            self._kept.move_to_end(key)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)

    def _rests(self, host: str) -> bool:
        return time.monotonic() < self._resting.get(host, 0.0)

    def _rest(self, host: str, seconds: float, why: str) -> None:
        self._resting[host] = time.monotonic() + seconds
        log.warning("The API of %s is left alone for %.0f s (%s); Git is asked instead", host, seconds, why)


def _api(repository: Repository) -> str:
    """Where the API of the repository's host is."""
    if repository.host == "github.com":
        return "https://api.github.com"
    return f"{repository.url.removesuffix(repository.path).rstrip('/')}/api/v3"


def _counted_out(answer: requests.Response) -> bool:
    """Whether it says that it was asked too much: both limits of GitHub's are told with either status."""
    told = "Retry-After" in answer.headers or answer.headers.get("X-RateLimit-Remaining") == "0"
    return answer.status_code == requests.codes.too_many_requests or (
        answer.status_code == requests.codes.forbidden and told
    )


def _pause(answer: requests.Response) -> float:
    """Seconds until it may be asked again."""
    after, reset = answer.headers.get("Retry-After", ""), answer.headers.get("X-RateLimit-Reset", "")
    if re.fullmatch(r"\d{1,9}", after):
        seconds = float(after)
    elif re.fullmatch(r"\d{1,12}", reset):
        seconds = float(reset) - time.time()
    else:
        seconds = PAUSE
    return min(max(seconds, 1.0), LONGEST_PAUSE)
