"""What the dialects of several hosts share: HMAC signatures, payloads as JSON or in a form, commits and refs.

A helper belongs here when two hosts need it. What differs between hosts stays in the module of the host.
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

NO_REPOSITORY = "This event is not about a repository: there is nothing to build."
"""The reason for what is no push and has no source."""
DELETED = "A deleted branch or tag leaves nothing to build."
CREATED = "A new branch or tag comes as a push as well, and that one counts."
TEST = "This is a test delivery (nothing was pushed): the webhook works."

FORM = "application/x-www-form-urlencoded"
LARGE = 1 << 20
"""Bytes of a payload, up to which its commits may be in memory all at once."""


class Commit(msgspec.Struct):
    """A commit in a push: its hash, its message, and the files that it changed, `None` where the host does not say."""

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
    """The files that all of the commits changed; equal to any collection of the same paths.

    Nothing is kept of them: each iteration reads the commits anew, so that a million of them take no room.
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
    """The hash that stands for "none"; its length depends on the repository's object format."""
    return set(commit) == {"0"}


def is_signed(given: str, body: bytes, secrets: Sequence[bytes], prefix: str = "") -> bool:
    """Whether `given` is `prefix` and the hexadecimal HMAC-SHA256 of `body` with one of `secrets`.

    Takes the same time whichever secret it was. An empty secret signs nothing.
    """
    said = given.encode(errors="replace")  # as bytes: comparing texts fails for those beyond ASCII
    signatures = [signature(body, secret, prefix).encode() for secret in secrets if secret]
    return any([hmac.compare_digest(said, signature) for signature in signatures])  # noqa: C419 - all of them, always


def signature(body: bytes, secret: bytes, prefix: str = "") -> str:
    """`prefix` and the hexadecimal HMAC-SHA256 of `body` with `secret`."""
    return f"{prefix}{hmac.digest(secret, body, 'sha256').hex()}"


def shown_by(payload: Mapping[str, object], events: Sequence[tuple[str, frozenset[str]]]) -> str | None:
    """The first of the events of whose members the payload has all; `None` where it is none of them."""
    return next((event for event, members in events if members <= payload.keys()), None)


def header(named: Mapping[str, str], name: str) -> str:
    """The value of a header; `named` by lower-case name. Raises DecodeError where it is missing or empty."""
    value = named.get(name.lower())
    if not value:
        raise DecodeError(f"The header {name} is missing.")
    return value


def event_name(named: Mapping[str, str], name: str) -> str:
    """The event that a header names. Raises DecodeError."""
    event = header(named, name)
    if not re.fullmatch(r"[a-z0-9_]{1,64}", event):
        raise DecodeError(f"{name} is no event's name.")
    return event


def json_text(named: Mapping[str, str], body: bytes) -> bytes:
    """The JSON of a delivery: its body, or the field `payload` of a form. Raises DecodeError."""
    media_type = essence(header(named, "Content-Type"))
    if media_type == FORM:
        return _form_payload(body)
    if media_type != "application/json":
        raise DecodeError("Set the webhook's content type to application/json.")
    return body


def payload_of(named: Mapping[str, str], body: bytes) -> dict[str, object]:
    """In a large one `commits` is `eventing.wire.Pieces`. Raises DecodeError."""
    text = json_text(named, body)
    payload = load_json(text) if len(text) <= LARGE else load_object(text, pieces="commits")
    if not isinstance(payload, dict):
        raise DecodeError("The payload is not a JSON object.")
    return payload


def text_at(payload: Mapping[str, object], path: Path) -> str | None:
    """The string or integer at `path`, as text; `None` where there is none, or an empty one."""
    value: object = payload
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def first_text(payload: Mapping[str, object], paths: Sequence[Path]) -> str | None:
    """`text_at` the first of the paths where there is one."""
    return next(filter(None, (text_at(payload, path) for path in paths)), None)


def as_push_of(host: str) -> AbstractContextManager[None]:
    """Raises DecodeError where what is read within is no push of that host's."""
    return _as(f"This is no push of {host}'s")


def as_request_of(host: str) -> AbstractContextManager[None]:
    """Raises DecodeError where what is read within tells of no pull request of that host's."""
    return _as(f"This tells of no pull request of {host}'s")


@contextmanager
def _as(what: str) -> Iterator[None]:
    try:
        yield
    except msgspec.ValidationError as error:
        raise DecodeError(f"{what}: {error}.") from None


def moment(text: str | None) -> datetime | None:
    """A time with a zone, in UTC; `None` where it cannot be read: forms vary with the host's version, and that is no
    reason to build nothing."""
    try:
        at = datetime.fromisoformat(re.sub(r" UTC\Z", "Z", text or ""))
        return at.astimezone(UTC) if at.tzinfo else None
    except (ValueError, OverflowError):
        return None


def commits_of(array: object) -> Iterator[Commit]:
    """The commits in what a payload lists, if anything. Raises msgspec.ValidationError."""
    return each(() if array is None else array, Commit)


def paths_of(commits: object, is_all: Callable[[Sequence[int]], bool]) -> ChangedPaths | None:
    """The files that the commits changed; `None` where they do not list all of them.

    `is_all` judges by how many files each commit lists. Raises msgspec.ValidationError for what is no list of commits.
    """
    files = (commit.files for commit in commits_of(commits))
    counts = [None if listed is None else len(listed) for listed in files]
    known = [count for count in counts if count is not None]
    return ChangedPaths(commits) if len(known) == len(counts) and is_all(known) else None


def commit_at(ref: str, after: str, told: str | None) -> str | None:
    """The commit that a ref is at: the one that the host has `told`. Without it a branch is still at `after`; a tag may
    be an object of its own."""
    return told or (after if ref.startswith("refs/heads/") else None)


def message_of(commit: str | None, commits: Iterable[Commit]) -> str | None:
    """The message of the commit of that hash; `None` where it is not among them."""
    return next((each.message for each in commits if each.id == commit), None)


def facts_of(event: Event, read: Callable[[Event], T]) -> T:
    """What `read` finds in the event, which is kept with it: a webhook needs it five times. Raises what `read` does.

    An event is a push or about a request, and not both, so there is one reading of it.
    """
    kept = vars(event)
    if "facts" not in kept:
        kept["facts"] = read(event)
    facts: T = kept["facts"]
    return facts


def page_of(repository: str) -> tuple[str, str, str]:
    """The page, the owner (with all groups), and the name of a repository, by the URL to clone it from."""
    page = repository.removesuffix(".git")
    owner, _, name = "/".join(page.split("/")[3:]).rpartition("/")
    return page, owner, name


def payload_event(id_: str, source: str | None, type_: str, subject: str | None, data: Mapping[str, object]) -> Event:
    """The event whose data is a payload. Raises DecodeError."""
    attributes = {"specversion": "1.0", "id": id_, "source": source, "type": type_}
    subject = subject and attribute_text(subject)
    return event_of({**attributes, "subject": subject, "datacontenttype": "application/json"}, data)


def _form_payload(body: bytes) -> bytes:
    name, _, value = body.partition(b"=")
    if not value or b"&" in value:
        raise DecodeError("This form does not hold one field with a value.")
    if unquote_to_bytes(name) != b"payload":
        raise DecodeError("The field of this form is not called payload.")
    return b"".join(unquote_to_bytes(piece.replace(b"+", b" ")) for piece in _PIECE.findall(value))


_PIECE = re.compile(rb".{1,65536}(?:(?<=%)[0-9A-Fa-f]{2}|(?<=%[0-9A-Fa-f])[0-9A-Fa-f])?", re.DOTALL)
"""No piece ends within an escape. `unquote_to_bytes` could take the whole, but needs 50 bytes for each escape in it."""
