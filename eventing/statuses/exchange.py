"""Conversations with the REST API of a Git host, without I/O: requests, answers, and their classification.

A conversation is a generator: it yields requests, receives their answers, and returns the outcome. Each host's API is
therefore a few pure functions, and `eventing.transport` alone does HTTP.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Generator, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Literal, TypeVar
from urllib.parse import urljoin, urlsplit

import msgspec

from eventing.sinks import LONGEST_RETRY_AFTER, Outcome, judge, seconds_until

T = TypeVar("T")

LIMITED_PAUSE = 60.0
"""Seconds to pause for a host that limits requests without naming a time: GitHub's recommendation
(https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api).
"""
MAX_REDIRECTS = 3
DELTA = 10**8
"""A reset below this is seconds from now, one above it a Unix time."""


class HostRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `body` is a JSON value."""

    method: Literal["GET", "POST", "PUT", "PATCH"]
    url: str
    body: object = None


class HostResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An answer: header names in lower case, the beginning of the body, and its time (aware)."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    at: datetime

    @property
    def fine(self) -> bool:
        return self.status // 100 == 2  # noqa: PLR2004

    def json(self, kind: type[T]) -> T | None:
        """Return the body as JSON; `None` if it is not JSON."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def says(self, words: str) -> bool:
        """Return whether the body matches the pattern `words`, ignoring case."""
        return re.search(words, self.body.decode(errors="replace"), re.IGNORECASE) is not None


Conversation = Generator[HostRequest, HostResponse, Outcome]

DONE = Outcome(delivered=True, final=True)


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A credential at a host: a token (no `user`), or a user with a password or token."""

    user: str | None = None
    secret: str

    def __repr__(self) -> str:
        return "Login(…)"

    @property
    def bearer(self) -> str:
        return f"Bearer {self.secret}"

    @property
    def basic(self) -> str:
        """Return the header for a user with a password (RFC 7617), if a user is set."""
        if self.user is None or self.user == TOKEN_USER:
            return self.bearer
        return f"Basic {base64.b64encode(f'{self.user}:{self.secret}'.encode()).decode()}"


TOKEN_USER = "x-token-auth"  # noqa: S105
"""The user name that Bitbucket prescribes for access tokens of a repository in git."""


def refused(error: str) -> Outcome:
    """Return a final outcome."""
    return Outcome(delivered=False, final=True, error=error)


def outcome_of(answer: HostResponse, host: str) -> Outcome:
    """Classify an answer. All are final except rate limits, 408, 409 and 5xx.

    404 is final here, unlike for a sink: hosts return it for a token without access to the repository.
    """
    if limited(answer):
        error = f"answered {answer.status}: rate limit"
        return Outcome(delivered=False, final=False, status=answer.status, error=error, retry_after=_pause(answer))
    outcome = judge(answer.status, seconds_until(answer.headers.get("retry-after"), answer.at))
    if outcome.delivered:
        return outcome
    final = outcome.final or answer.status == HTTPStatus.NOT_FOUND
    error = f"{(outcome.error or '').partition(';')[0]}{_HINTS.get(answer.status, '')}".replace("{host}", host)
    return Outcome(
        delivered=False,
        final=final,
        status=answer.status,
        error=error,
        retry_after=None if final else outcome.retry_after,
    )


_LET_IN = "the credential in statuses/{host}"
_HINTS = {
    301: "; redirects to other hosts are not followed",
    302: "; redirects to other hosts are not followed",
    307: "; redirects to other hosts are not followed",
    308: "; redirects to other hosts are not followed",
    401: f"; {_LET_IN} is not valid",
    403: f"; {_LET_IN} lacks the permission",
    404: f"; there is no such thing for {_LET_IN}",
    422: "; the host rejects this status, or the commit has too many",
}


def limited(answer: HostResponse) -> bool:
    """Return whether the host reports a rate limit: GitHub reports both of its limits with 403 or 429."""
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return True
    announced = "retry-after" in answer.headers or answer.headers.get("x-ratelimit-remaining") == "0"
    return answer.status == HTTPStatus.FORBIDDEN and (announced or answer.says(r"rate limit|abuse detection"))


def _pause(answer: HostResponse) -> float:
    """Return the seconds until the next request: `Retry-After`, the reset of the limit, or a minute."""
    after = seconds_until(answer.headers.get("retry-after"), answer.at)
    reset = answer.headers.get("ratelimit-reset") or answer.headers.get("x-ratelimit-reset") or ""
    used_up = answer.headers.get("x-ratelimit-remaining") == "0"
    counted = used_up or answer.status == HTTPStatus.TOO_MANY_REQUESTS
    if after is None and counted and re.fullmatch(r"[0-9]{1,12}", reset, re.ASCII):
        moment = int(reset)
        after = float(moment) if moment < DELTA else moment - answer.at.timestamp()
    return min(max(LIMITED_PAUSE if after is None else after, 1.0), LONGEST_RETRY_AFTER)


def redirected(request: HostRequest, answer: HostResponse) -> HostRequest | None:
    """Follow a redirect within the same host; return `None` if it leads elsewhere.

    GitHub redirects requests for renamed repositories. Kiln sends the token to no other host, port or scheme.
    """
    location = answer.headers.get("location")
    if answer.status not in (301, 302, 307, 308) or not location:
        return None
    try:
        target = urljoin(request.url, location)
        new, old = urlsplit(target), urlsplit(request.url)
        same = (new.scheme, new.hostname, new.port, new.username) == (old.scheme, old.hostname, old.port, None)
    except ValueError:
        return None
    return msgspec.structs.replace(request, url=target) if same and target.isascii() and target.isprintable() else None
