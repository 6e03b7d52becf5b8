"""Conversations with the REST API of a Git host, without any I/O: requests, answers, and what an answer means.

A conversation is a generator: it yields requests, is sent their answers, and returns the outcome. So each host's API is
a few pure functions, and `eventing.transport` is the one place that speaks HTTP.
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
"""Seconds to stay away from a host that says that it was asked too much, and not until when: what GitHub asks for
(https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api)."""
MAX_REDIRECTS = 3
DELTA = 10**8
"""A reset below this is seconds from now, one above it a moment (Unix time)."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `body` is a JSON value."""

    method: Literal["GET", "POST", "PUT", "PATCH"]
    url: str
    body: object = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back: header names in lower case, the beginning of the body, and when (aware)."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    at: datetime

    @property
    def fine(self) -> bool:
        return self.status // 100 == 2  # noqa: PLR2004

    def json(self, kind: type[T]) -> T | None:
        """The body; `None` where it is nothing of that kind."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def says(self, words: str) -> bool:
        """Whether the body holds what the pattern `words` matches, in any case."""
        return re.search(words, self.body.decode(errors="replace"), re.IGNORECASE) is not None


Conversation = Generator[Request, Answer, Outcome]

DONE = Outcome(delivered=True, final=True)


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """What lets in at a host: a token (no `user`), or a user with a password or token."""

    user: str | None = None
    secret: str

    def __repr__(self) -> str:
        return "Login(…)"

    @property
    def bearer(self) -> str:
        return f"Bearer {self.secret}"

    @property
    def basic(self) -> str:
        """As a user with a password, where there is a user (RFC 7617)."""
        if self.user is None or self.user == TOKEN_USER:
            return self.bearer
        return f"Basic {base64.b64encode(f'{self.user}:{self.secret}'.encode()).decode()}"


TOKEN_USER = "x-token-auth"  # noqa: S105
"""The user that Bitbucket gives access tokens of a repository where git asks for one."""


def refused(error: str) -> Outcome:
    """There is nothing more to try."""
    return Outcome(delivered=False, final=True, error=error)


def outcome_of(answer: Answer, host: str) -> Outcome:
    """What an answer to our request means. The host's last word but for limits, 408, 409 and 5xx.

    404 is the last word here, unlike a sink's: hosts answer so to a token that may not see the repository.
    """
    if limited(answer):
        error = f"answered {answer.status}: asked too much"
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
    301: "; a redirect that leads elsewhere is not followed",
    302: "; a redirect that leads elsewhere is not followed",
    307: "; a redirect that leads elsewhere is not followed",
    308: "; a redirect that leads elsewhere is not followed",
    401: f"; {_LET_IN} is not valid",
    403: f"; {_LET_IN} may not do this",
    404: f"; there is no such thing for {_LET_IN}",
    422: "; the host takes no such status, or no more of them for this commit",
}


def limited(answer: Answer) -> bool:
    """Whether the host says that it was asked too much: GitHub tells both of its limits with 403 or 429."""
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return True
    told = "retry-after" in answer.headers or answer.headers.get("x-ratelimit-remaining") == "0"
    return answer.status == HTTPStatus.FORBIDDEN and (told or answer.says(r"rate limit|abuse detection"))


def _pause(answer: Answer) -> float:
    """Seconds until it may be asked again: `Retry-After`, or when the limit is reset, or a minute."""
    after = seconds_until(answer.headers.get("retry-after"), answer.at)
    reset = answer.headers.get("ratelimit-reset") or answer.headers.get("x-ratelimit-reset") or ""
    used_up = answer.headers.get("x-ratelimit-remaining") == "0"
    counted = used_up or answer.status == HTTPStatus.TOO_MANY_REQUESTS
    if after is None and counted and re.fullmatch(r"[0-9]{1,12}", reset, re.ASCII):
        moment = int(reset)
        after = float(moment) if moment < DELTA else moment - answer.at.timestamp()
    return min(max(LIMITED_PAUSE if after is None else after, 1.0), LONGEST_RETRY_AFTER)


def redirected(request: Request, answer: Answer) -> Request | None:
    """The same request where the host has moved what it is about, on the same host; `None` where it leads elsewhere.

    GitHub answers so for a repository that was renamed. The token goes to no other host, port or scheme, so a redirect
    that leads there is not followed.
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
