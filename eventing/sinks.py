"""The delivery policy, without I/O: which sinks receive an event, how to classify an answer, and when to retry.

`eventing.delivery` sends. The plan keeps the schedule in the record, so it needs `wanted` and `pause` without an HTTP
client.
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
"""Seconds between two tries of a sink that sends no `Retry-After`."""
LONGEST_RETRY_AFTER = 3600.0
"""Upper bound, in seconds, for the `Retry-After` of a sink."""


MAX_EXTENSION = 2048
"""Characters of a value: receivers limit the length of each header and of all headers."""


class Sink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A receiver of completion events (an element of `sinks:` in the configuration, or injected by a SinkBinding).

    A malformed field raises ValueError, which msgspec turns into a ValidationError that names the place.
    """

    name: str
    """Also the name of the file that holds its headers, `headers/<name>` among the secrets."""
    url: str
    types: tuple[str, ...] = ("dev.kiln.build.*",)
    """Globs over event types; `*` matches any text. A CDEvent has two types: its own and that of the corresponding
    event of Kiln.
    """
    mode: Literal["binary", "structured"] = "binary"
    format: Format = "kiln"
    ca: str | None = None
    """Additional trusted certificates (PEM)."""
    token_file: str | None = None
    """A file with a bearer token, read at each try because it rotates; without the file, no token."""
    extensions: Mapping[str, Scalar] = {}
    """Added to every event; these replace existing extensions of the same name."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", self.name):
            raise ValueError("a sink's name must have at most 63 letters, digits, '.', '_' and '-': it names a file")
        if why := _unusable(self.url):
            raise ValueError(f"the URL of sink {self.name} {why}")
        if not self.types:
            raise ValueError("types is empty, so the sink would receive nothing: omit it for all events of Kiln")
        for extension in self.extensions:
            if not re.fullmatch(r"[a-z0-9]+", extension) or extension in {*CONTEXT, "specversion", "data"}:
                raise ValueError(
                    f"{extension!r} cannot be an extension: lower-case letters and digits, not a core name"
                )
        if any(len(str(value)) > MAX_EXTENSION for value in self.extensions.values()):
            raise ValueError(f"these extensions cannot be sent: a header cannot exceed {MAX_EXTENSION} characters")
        if self.token_file == "":
            raise ValueError("token_file must not be empty")
        try:
            event_of({"specversion": "1.0", "id": "1", "source": "/", "type": "t", **self.extensions})
        except DecodeError as error:
            raise ValueError(f"these extensions cannot be sent: {error}") from None

    def __repr__(self) -> str:
        """Show the name alone: a sink's URL may contain a credential."""
        return f"Sink({self.name!r})"


Headers = Callable[[str], Mapping[str, str]]
"""From a sink's name to its secret headers, read at each try, so that a rotated secret takes effect immediately."""


def wanted(sink: Sink, *types: str) -> bool:
    """Return whether the sink accepts an event with any of these types."""
    return any(fnmatchcase(each, glob) for each in types for glob in sink.types)


def keeps_order(name: str) -> bool:
    """Return whether deliveries to the sink must stay in order: each status replaces its predecessor.

    Their names contain a `/`; names of configured sinks do not.
    """
    return "/" in name


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one send."""

    delivered: bool
    final: bool
    """No further try follows: the sink has accepted the event, or refused it permanently."""
    status: int | None = None
    """`None`: no answer."""
    error: str | None = None
    """The reason of a failure. Never contains parts of the request or of the answer's text."""
    retry_after: float | None = None
    """The sink's `Retry-After` in seconds, at most `LONGEST_RETRY_AFTER`."""


RETRYABLE = frozenset(
    {
        404,  # a broker or route during its deployment
        408,  # the sink timed out waiting for the request
        409,  # a conflicting request was in progress
        429,  # too many requests: Retry-After tells when
    }
)
"""Retryable statuses besides 5xx, as in Knative's senders (its data plane specification, and its code for 408). All
others are final. So are redirects: following one could send our headers to a stranger.
"""


def judge(status: int, retry_after: float | None = None) -> Outcome:
    """Classify a delivery by its HTTP status."""
    phrase = f" ({HTTPStatus(status).phrase})" if status in _KNOWN else ""
    error = f"answered {status}{phrase}"
    match status // 100:
        case 2:
            return Outcome(delivered=True, final=True, status=status)
        case 3:
            error += "; redirects are not followed: configure the final URL"
        case hundreds if hundreds == 5 or status in RETRYABLE:  # noqa: PLR2004
            return Outcome(delivered=False, final=False, status=status, error=error, retry_after=retry_after)
    return Outcome(delivered=False, final=True, status=status, error=error)


def unanswered(error: str) -> Outcome:
    """Return the retryable outcome of a try without an answer."""
    return Outcome(delivered=False, final=False, error=error)


STOPPED = unanswered("Kiln stopped before the delivery")


def pause(tries: int, retry_after: float | None = None) -> float:
    """Return the seconds from the end of send number `tries` (from 1) to the next: 1, 2, 4 … 300, or `Retry-After`."""
    backoff = min(2.0 ** min(max(tries - 1, 0), 10), LONGEST_PAUSE)
    return max(backoff, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


def seconds_until(retry_after: str | None, now: datetime) -> float | None:
    """Parse a `Retry-After` header (RFC 9110 §10.2.3: seconds or a date) to seconds, 0 … 3600; `None` without one."""
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
    """Return what is wrong with a sink's URL, without quoting it."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        return "is malformed"
    if parts.scheme not in ("http", "https") or not host or port == 0:
        return "must be http:// or https:// with a host"
    if re.search(r"[^\x21-\x7e]|[\"<>\\^`{|}]|%(?![0-9A-Fa-f]{2})", url):
        return "contains a character that URLs do not allow: percent-encode it"
    if "#" in url:
        return "must not have a fragment ('#…'), which is never sent"
    if parts.username is not None or parts.password is not None:
        return "must not have a password: put an Authorization header into the secret headers/<sink>"
    return None
