"""The comment of a pull request that shows the result for its head; one comment per request.

Kiln recognizes it by its author and an invisible line (an unused link definition: CommonMark 0.31, §4.7), so a restart
creates no second one. Each trigger has a section in it. A build of a commit that is no longer the head changes nothing,
however late it ends.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Mapping
from http import HTTPStatus
from typing import Literal
from urllib.parse import urlencode

import msgspec

from eventing.sinks import Outcome, unanswered
from eventing.statuses.exchange import DONE, Conversation, HostRequest, HostResponse, outcome_of, refused

MARK = "[kiln-comment]: #"
MOST_PAGES = 50
LEAST_DIGITS = 7
"""Characters of an abbreviated commit."""
PER_PAGE = 100

Path = tuple[str, ...]
Query = Mapping[str, str | int]

REF = re.compile(r"refs/(?:pull|merge-requests|pull-requests)/([1-9][0-9]{0,18})/(?:head|from|merge)", re.ASCII)
NOT_OURS = (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
"""Statuses of a host for insufficient permission."""


def number_of(ref: str | None) -> str | None:
    """Return the number of the pull request with such a ref, on any host; `None` for other refs."""
    found = REF.fullmatch(ref or "")
    return found[1] if found else None


class Comment(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    author: str | None
    text: str
    version: object = None
    """For hosts that require the version of the changed comment."""


def _by_body(text: str, _: Comment | None) -> object:
    return {"body": text}


class Thread(msgspec.Struct, frozen=True, kw_only=True):
    """The location and the format of a request's comments at a host. Paths lead into its JSON."""

    account: str | None
    """The URL of the credential's account; without one, answers name it in `x-ausername`."""
    account_name: Path = ()
    request: str
    head: Path
    """The commit, in the answer of `request`."""
    listed: str
    query: Query = {}
    items: Path = ()
    """The list, in the answer of `listed`."""
    comment: Path = ()
    """A comment, in an item of it."""
    author: Path
    text: Path
    more: Callable[[object, int, int], Query | None] = lambda _value, _items, _page: None
    """The query for the next page: (its JSON, number of items, number of the page from 1)."""
    made: str
    """The URL for new comments."""
    edited: str
    """The URL of an existing comment, with `{id}` in it."""
    method: Literal["PUT", "PATCH"]
    form: Callable[[str, Comment | None], object] = _by_body


def numbered(_: object, items: int, page: int) -> Query | None:
    """Return pages of a hundred, by number."""
    return {"page": page + 1} if items >= PER_PAGE else None


class _End(Exception):
    """A conversation that cannot continue, and its outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


UNREADABLE = _End(unanswered("its answer cannot be read"))
TOO_MANY = _End(refused("too many comments in the pull request to find the one of Kiln"))


def commented(thread: Thread, *, context: str, section: str, commit: str, host: str) -> Conversation:
    """Put the section into the comment; create the comment if it is missing."""
    try:
        head = yield from _got(thread.request, host)
        now = _at(_json(head), thread.head)
        if not isinstance(now, str) or len(now) < LEAST_DIGITS:
            raise UNREADABLE
        if not commit.startswith(now):
            return DONE
        account = yield from _account(thread, head, host)
        for comment in (yield from _marked(thread, host)):
            if account not in (None, comment.author):
                continue
            text = merged(comment.text, context, section)
            if text == comment.text:
                return DONE
            url = thread.edited.replace("{id}", comment.id)
            answer = yield HostRequest(method=thread.method, url=url, body=thread.form(text, comment))
            if account is not None or answer.status not in NOT_OURS:
                return outcome_of(answer, host)
        answer = yield HostRequest(method="POST", url=thread.made, body=thread.form(merged("", context, section), None))
        return outcome_of(answer, host)
    except _End as end:
        return end.outcome


def _account(thread: Thread, head: HostResponse, host: str) -> Generator[HostRequest, HostResponse, str | None]:
    """Return the account of the credential; `None` if the host does not name it, but marks the comments that it may
    change.
    """
    if thread.account is None:
        return head.headers.get("x-ausername")
    answer = yield HostRequest(method="GET", url=thread.account)
    if answer.status in NOT_OURS and outcome_of(answer, host).final:
        return None
    name = _at(_json(_fine(answer, host)), thread.account_name)
    return None if name is None else str(name)


def _marked(thread: Thread, host: str) -> Generator[HostRequest, HostResponse, list[Comment]]:
    """Yield Kiln's comments, oldest first if the host lists them so. Raises _End."""
    found: list[Comment] = []
    query: Query = {}
    for page in range(1, MOST_PAGES + 1):
        whole = urlencode({**thread.query, **query})
        value = _json((yield from _got(f"{thread.listed}?{whole}" if whole else thread.listed, host)))
        items = _at(value, thread.items)
        if not isinstance(items, list):
            raise UNREADABLE
        found += (one for item in items if (one := _comment(thread, item)) and MARK in one.text.split("\n"))
        more = thread.more(value, len(items), page)
        if more is None:
            return found
        query = more
    raise TOO_MANY


def _comment(thread: Thread, item: object) -> Comment | None:
    comment = _at(item, thread.comment)
    id_, author, text = _at(comment, ("id",)), _at(comment, thread.author), _at(comment, thread.text)
    if not isinstance(id_, int) or not isinstance(text, str):
        return None
    name = None if author is None else str(author)
    return Comment(id=str(id_), author=name, text=text.replace("\r\n", "\n"), version=_at(comment, ("version",)))


def _got(url: str, host: str) -> Generator[HostRequest, HostResponse, HostResponse]:
    """Raises _End."""
    return _fine((yield HostRequest(method="GET", url=url)), host)


def _fine(answer: HostResponse, host: str) -> HostResponse:
    """Raises _End."""
    if not answer.fine:
        raise _End(outcome_of(answer, host))
    return answer


def _json(answer: HostResponse) -> object:
    """Raises _End."""
    value: object = answer.json(object)
    if value is None:
        raise UNREADABLE
    return value


def _at(value: object, path: Path) -> object:
    """Return the value at a path of keys; `None` if absent."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


# The text ------------------------------------------------------------------------------------------------------------


def merged(text: str, context: str, section: str) -> str:
    """Replace the section of that context in the comment's text; keep the others."""
    kept = dict(re.findall(r"^\[kiln-([0-9a-f]{8})\]: #\n(.*?)(?=^\[kiln-|\Z)", text, re.MULTILINE | re.DOTALL))
    kept[hashlib.sha256(context.encode()).hexdigest()[:8]] = section
    return "\n\n".join([MARK, *(f"[kiln-{name}]: #\n\n{kept[name].strip()}" for name in kept)]) + "\n"
