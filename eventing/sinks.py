"""Who is told of an event, what an answer means, and when it is tried again: all of the delivery policy, and no I/O.

The sending itself is `eventing.delivery`. The plan keeps the schedule in the record, so it needs `wanted` and `pause`
without an HTTP client behind them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from eventing.errors import DecodeError
from eventing.event import CONTEXT, Format, Scalar
from eventing.http import event_of

LONGEST_PAUSE = 300.0
"""Seconds: between two tries of a sink that says nothing about when to come back."""
LONGEST_RETRY_AFTER = 3600.0
"""Seconds: however long a sink asks us to stay away."""


MAX_EXTENSION = 2048
"""Characters of a value: receivers limit the length of a header, and of all together."""


class Sink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where completion events go (an element of `sinks:` in the configuration, or what a SinkBinding injects).

    A malformed field raises ValueError, which msgspec turns into a ValidationError that names the place.
    """

    name: str
    """Also the name of the file that holds its headers, `headers/<name>` among the secrets."""
    url: str
    types: tuple[str, ...] = ("dev.kiln.build.*",)
    """Globs over event types; `*` matches any text. A CDEvent has two: its own, and that of the event of Kiln's that it
    stands for."""
    mode: Literal["binary", "structured"] = "binary"
    format: Format = "kiln"
    ca: str | None = None
    """Certificates (PEM) to trust in addition to the system's."""
    token_file: str | None = None
    """A file with a bearer token, read at each try because it rotates; no token where there is no such file."""
    extensions: Mapping[str, Scalar] = {}
    """Added to every event, in place of its own of the same name."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", self.name):
            raise ValueError("a sink's name is at most 63 letters, digits, '.', '_' and '-', as it names a file")
        if why := _unusable(self.url):
            raise ValueError(f"the URL of sink {self.name} {why}")
        if not self.types:
            raise ValueError("types is empty, so the sink would be told nothing: leave it out for all of Kiln's events")
        for extension in self.extensions:
            if not re.fullmatch(r"[a-z0-9]+", extension) or extension in {*CONTEXT, "specversion", "data"}:
                raise ValueError(
                    f"{extension!r} cannot be an extension: lower-case letters and digits, not a core name"
                )
        if any(len(str(value)) > MAX_EXTENSION for value in self.extensions.values()):
            raise ValueError(f"these extensions cannot be sent: more than {MAX_EXTENSION} characters are no header")
        if self.token_file == "":
            raise ValueError("token_file is empty, so it names no file")
        try:
            event_of({"specversion": "1.0", "id": "1", "source": "/", "type": "t", **self.extensions})
        except DecodeError as error:
            raise ValueError(f"these extensions cannot be sent: {error}") from None

    def __repr__(self) -> str:
        """The name alone: people's hook addresses are as good as passwords."""
        return f"Sink({self.name!r})"


Headers = Callable[[str], Mapping[str, str]]
"""From a sink's name to the secret headers it is sent, asked at each try, so that a rotated secret is used at once."""


def wanted(sink: Sink, *types: str) -> bool:
    """Whether the sink is to be told of an event that has any of these types."""
    return any(fnmatchcase(each, glob) for each in types for glob in sink.types)


def keeps_order(name: str) -> bool:
    """Whether what goes to the sink of that name is of use in its order only: a status replaces the one before it.

    Those have names with a `/`, which the configured ones have not.
    """
    return "/" in name


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one send."""

    delivered: bool
    final: bool
    """There is nothing more to try: it was delivered, or refused for good."""
    status: int | None = None
    """`None`: no answer."""
    error: str | None = None
    """Why it was not delivered. Never holds anything of the request or of the answer's text."""
    retry_after: float | None = None
    """Seconds that the sink asks us to stay away, at most `LONGEST_RETRY_AFTER`."""


AGAIN = frozenset(
    {
        404,  # a broker or route that is being deployed answers so
        408,  # it gave up waiting for us: the next try may be quicker
        409,  # somebody else was at the same thing
        429,  # too many: it says when, by Retry-After
    }
)
"""What is tried again beside 5xx and no answer, as Knative's senders do (its data plane specification, and its code for
408). Every other status is the sink's last word: 3xx too, as following one could carry our headers to a stranger."""


def judge(status: int, retry_after: float | None = None) -> Outcome:
    """What an HTTP status says of a delivery."""
    phrase = f" ({HTTPStatus(status).phrase})" if status in _KNOWN else ""
    error = f"answered {status}{phrase}"
    match status // 100:
        case 2:
            return Outcome(delivered=True, final=True, status=status)
        case 3:
            error += "; redirects are not followed, so the sink's URL must be the final one"
        case hundreds if hundreds == 5 or status in AGAIN:  # noqa: PLR2004
            return Outcome(delivered=False, final=False, status=status, error=error, retry_after=retry_after)
    return Outcome(delivered=False, final=True, status=status, error=error)


def unanswered(error: str) -> Outcome:
    """There was no answer: it is tried again."""
    return Outcome(delivered=False, final=False, error=error)


STOPPED = unanswered("Kiln stopped before it was delivered")


def pause(tries: int, retry_after: float | None = None) -> float:
    """Seconds from the end of the `tries`-th send (counted from 1) to the next: 1, 2, 4 … 300, or as long as asked."""
    backoff = min(2.0 ** min(max(tries - 1, 0), 10), LONGEST_PAUSE)
    return max(backoff, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


def seconds_until(retry_after: str | None, now: datetime) -> float | None:
    """The `Retry-After` header (RFC 9110 §10.2.3: seconds or a date) as seconds, 0 … 3600; `None` if it says none."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"[0-9]+", text):
        return min(float(text), LONGEST_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)  # the C library's old form has no zone: it means UTC
    return min(max((date - now).total_seconds(), 0.0), LONGEST_RETRY_AFTER)


_KNOWN = frozenset(HTTPStatus)


def _unusable(url: str) -> str | None:
    """What is wrong with a sink's address, without repeating it."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        return "is malformed"
    if parts.scheme not in ("http", "https") or not host or port == 0:
        return "must be http:// or https:// with a host"
    if re.search(r"[^\x21-\x7e]|[\"<>\\^`{|}]|%(?![0-9A-Fa-f]{2})", url):
        return "holds a character that no URL has: encode it with %"
    if "#" in url:
        return "must not hold a fragment ('#…'): that is never sent"
    if parts.username is not None or parts.password is not None:
        return "must not hold a password: put an Authorization header into the secret headers/<sink>"
    return None
