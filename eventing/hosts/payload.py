"""Shared parts of the dialects: HMAC signatures, payloads as JSON or in a form, commits and refs.

A helper belongs here if two hosts need it. Differences between hosts stay in their modules.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Annotated, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Meta

from eventing.errors import DecodeError
from eventing.event import Event
from eventing.http import attribute_text, event_of
from eventing.wire import each, essence, load_json, load_object

Path = tuple[str, ...]
T = TypeVar("T")

Hash = Annotated[str, Meta(pattern=r"\A(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")]
Ref = Annotated[str, Meta(pattern=r"\Arefs/[^\x00-\x20\x7f~^:?*\[\\]+\Z")]  # git check-ref-format(1)
RefName = Annotated[str, Meta(pattern=r"\A[^\x00-\x20\x7f~^:?*\[\\]+\Z")]
Number = Annotated[int, Meta(ge=1, le=2**53)]

NO_REPOSITORY = "This event has no repository. Nothing to build."
"""The reason for an event that is neither a push nor has a source."""
DELETED = "The branch or tag was deleted. Nothing to build."
CREATED = "Kiln uses the push event of this branch or tag instead."
TEST = "The webhook works (test delivery without a push)."

FORM = "application/x-www-form-urlencoded"
LARGE = 1 << 20
"""Bytes of a payload up to which all its commits may be in memory together."""


class Commit(msgspec.Struct):
    """A commit in a push: its hash, its message, and its changed files, `None` if the host does not list them."""

    id: Hash
    message: str | None = None
    added: list[str] | None = None
    modified: list[str] | None = None
    removed: list[str] | None = None

    @property
    def files(self) -> list[str] | None:
        if self.added is None or self.modified is None or self.removed is None:
            return None
        return self.added + self.modified + self.removed


class ChangedPaths:
    """The files that the commits changed; equal to any collection of the same paths.

    Each iteration reads the commits again, so a million of them take no memory.
    """

    def __init__(self, commits: object) -> None:
        self._commits = commits

    def __iter__(self) -> Iterator[str]:
        for commit in commits_of(self._commits):
            yield from commit.files or ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Iterable) and {*self} == {*other}

    __hash__ = None  # type: ignore[assignment]


def is_zero(commit: str) -> bool:
    """Return whether this is the null hash, whose length depends on the repository's object format."""
    return set(commit) == {"0"}


def is_signed(given: str, body: bytes, secrets: Sequence[bytes], prefix: str = "") -> bool:
    """Return whether `given` is `prefix` and the hexadecimal HMAC-SHA256 of `body` with one of `secrets`.

    The time does not depend on which secret matches. An empty secret matches nothing.
    """
    said = given.encode(errors="replace")  # as bytes: comparing texts fails for characters beyond ASCII
    signatures = [signature(body, secret, prefix).encode() for secret in secrets if secret]
    return any([hmac.compare_digest(said, signature) for signature in signatures])  # noqa: C419 - all of them, always


def signature(body: bytes, secret: bytes, prefix: str = "") -> str:
    """Return `prefix` and the hexadecimal HMAC-SHA256 of `body` with `secret`."""
    return f"{prefix}{hmac.digest(secret, body, 'sha256').hex()}"


def shown_by(payload: Mapping[str, object], events: Sequence[tuple[str, frozenset[str]]]) -> str | None:
    """Return the first event all of whose members the payload has; `None` without a match."""
    return next((event for event, members in events if members <= payload.keys()), None)


def header(named: Mapping[str, str], name: str) -> str:
    """Return the value of a header; `named` by lower-case name. Raises DecodeError if it is missing or empty."""
    value = named.get(name.lower())
    if not value:
        raise DecodeError(f"The header {name} is missing.")
    return value


def event_name(named: Mapping[str, str], name: str) -> str:
    """Return the event that a header names. Raises DecodeError."""
    event = header(named, name)
    if not re.fullmatch(r"[a-z0-9_]{1,64}", event):
        raise DecodeError(f"{name} is not the name of an event.")
    return event


def json_text(named: Mapping[str, str], body: bytes) -> bytes:
    """Return the JSON of a delivery: its body, or the field `payload` of a form. Raises DecodeError."""
    media_type = essence(header(named, "Content-Type"))
    if media_type == FORM:
        return _form_payload(body)
    if media_type != "application/json":
        raise DecodeError("Set the webhook's content type to application/json.")
    return body


def payload_of(named: Mapping[str, str], body: bytes) -> dict[str, object]:
    """Parse the payload; `commits` of a large one is `eventing.wire.Pieces`. Raises DecodeError."""
    text = json_text(named, body)
    payload = load_json(text) if len(text) <= LARGE else load_object(text, pieces="commits")
    if not isinstance(payload, dict):
        raise DecodeError("The payload is not a JSON object.")
    return payload


def text_at(payload: Mapping[str, object], path: Path) -> str | None:
    """Return the string or integer at `path`, as text; `None` if absent or empty."""
    value: object = payload
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def first_text(payload: Mapping[str, object], paths: Sequence[Path]) -> str | None:
    """Return `text_at` of the first path that has a value."""
    return next(filter(None, (text_at(payload, path) for path in paths)), None)


def as_push_of(host: str) -> AbstractContextManager[None]:
    """Raise DecodeError if the block does not find a push of that host."""
    return _as(f"This is not a push of {host}'s")


def as_request_of(host: str) -> AbstractContextManager[None]:
    """Raise DecodeError if the block does not find a pull request of that host."""
    return _as(f"This is not a pull request event of {host}'s")


@contextmanager
def _as(what: str) -> Iterator[None]:
    try:
        yield
    except msgspec.ValidationError as error:
        raise DecodeError(f"{what}: {error}.") from None


def moment(text: str | None) -> datetime | None:
    """Parse a time with a zone, to UTC; `None` if unreadable: formats vary with the host's version, and Kiln builds
    without it.
    """
    try:
        at = datetime.fromisoformat(re.sub(r" UTC\Z", "Z", text or ""))
        return at.astimezone(UTC) if at.tzinfo else None
    except (ValueError, OverflowError):
        return None


def commits_of(array: object) -> Iterator[Commit]:
    """Return the commits in a payload's list, if any. Raises msgspec.ValidationError."""
    return each(() if array is None else array, Commit)


def paths_of(commits: object, is_all: Callable[[Sequence[int]], bool]) -> ChangedPaths | None:
    """Return the files that the commits changed; `None` if the commits do not list all of them.

    `is_all` judges by the number of files of each commit. Raises msgspec.ValidationError if it is not a list of
    commits.
    """
    files = (commit.files for commit in commits_of(commits))
    counts = [None if listed is None else len(listed) for listed in files]
    known = [count for count in counts if count is not None]
    return ChangedPaths(commits) if len(known) == len(counts) and is_all(known) else None


def commit_at(ref: str, after: str, stated: str | None) -> str | None:
    """Return the commit of a ref: `stated` if the host states it.

    Without it, `after` is the commit of a branch; a tag may be an object of its own.
    """
    return stated or (after if ref.startswith("refs/heads/") else None)


def message_of(commit: str | None, commits: Iterable[Commit]) -> str | None:
    """Return the message of the commit with that hash; `None` if it is not listed."""
    return next((each.message for each in commits if each.id == commit), None)


def facts_of(event: Event, read: Callable[[Event], T]) -> T:
    """Return the result of `read`, cached with the event: a webhook needs it five times. Raises as `read`.

    An event is either a push or about a request, so one cached value suffices.
    """
    kept = vars(event)
    if "facts" not in kept:
        kept["facts"] = read(event)
    facts: T = kept["facts"]
    return facts


def page_of(repository: str) -> tuple[str, str, str]:
    """Return the page, the owner (with all groups) and the name of a repository, from its clone URL."""
    page = repository.removesuffix(".git")
    owner, _, name = "/".join(page.split("/")[3:]).rpartition("/")
    return page, owner, name


def payload_event(id_: str, source: str | None, type_: str, subject: str | None, data: Mapping[str, object]) -> Event:
    """Return an event whose data is a payload. Raises DecodeError."""
    attributes = {"specversion": "1.0", "id": id_, "source": source, "type": type_}
    subject = subject and attribute_text(subject)
    return event_of({**attributes, "subject": subject, "datacontenttype": "application/json"}, data)


def _form_payload(body: bytes) -> bytes:
    name, _, value = body.partition(b"=")
    if not value or b"&" in value:
        raise DecodeError("The form must have exactly one field with a value.")
    if unquote_to_bytes(name) != b"payload":
        raise DecodeError("The form's field must be named payload.")
    return b"".join(unquote_to_bytes(piece.replace(b"+", b" ")) for piece in _PIECE.findall(value))


_PIECE = re.compile(rb".{1,65536}(?:(?<=%)[0-9A-Fa-f]{2}|(?<=%[0-9A-Fa-f])[0-9A-Fa-f])?", re.DOTALL)
"""Decode in pieces, none of which ends within an escape. `unquote_to_bytes` of the whole needs 50 bytes for each
escape.
"""
