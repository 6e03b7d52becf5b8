"""Asks a Kiln over its HTTP API: what the commands need, no more.

A log is followed as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). Its ids are
the same on every replica and after every restart, so a connection that drops is just made again from the last one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import msgspec
import requests
from requests.adapters import BaseAdapter

from kiln.errors import CommandError

TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and between two bytes: the server sends a comment at least every 30 s."""
PATIENCE = 300.0
"""Seconds without any answer after which following a log is given up."""
ASK_AGAIN = 60.0
"""Seconds for which a server that says "try again" is asked again."""
TRY_AGAIN = frozenset({429, 502, 503, 504})
CURES: Mapping[int, str] = {
    401: "Name a token by --token-file, KILN_TOKEN or a profile.",
    403: "Ask as somebody who may, with another token.",
    404: "`kiln ls` shows which builds there are.",
    409: "`kiln show` tells how it ended.",
    429: "Try again later.",
    503: "Try again later.",
}
"""What to do next, by the status of the answer. Of 400 and 422 the answer itself says it."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One server-sent event: `log` with {"line", "phase"}, `state` with the build."""

    kind: str
    data: dict[str, Any]
    id: str | None = None


class Server:
    """A Kiln at `url` (with its base path). All methods raise CommandError with a sentence."""

    def __init__(self, url: str, token: str | None = None, adapter: BaseAdapter | None = None) -> None:
        """`adapter` answers in place of the network."""
        try:
            valid = urlsplit(url).scheme in ("http", "https") and urlsplit(url).port != 0
        except ValueError:
            valid = False
        if not valid:
            raise CommandError(f"{url} is not an http or https URL")
        self._url = url.rstrip("/") + "/"
        self._session = requests.Session()
        self._session.auth = _Bearer(token)
        if adapter:
            self._session.mount(self._url, adapter)

    def location(self, path: str) -> str:
        """The URL of an absolute path that the server gave."""
        return urljoin(self._url, path)

    def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Asks for a build; asking twice is asking once. Returns it."""
        return self._asked(urljoin(self._url, "api/v1/builds"), body)

    def rebuild(self, name: str) -> dict[str, Any]:
        """Asks for the same build once more. Returns it."""
        return self._asked(f"{self._of(name)}/rebuild", {})

    def _asked(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + ASK_AGAIN
        while True:
            answer = self._request("POST", url, json=body)
            pause = _pause(answer)
            if answer.status_code not in TRY_AGAIN or time.monotonic() + pause > deadline:
                return _json(answer)
            time.sleep(pause)

    def build(self, name: str) -> dict[str, Any]:
        return _json(self._request("GET", self._of(name)))

    def list(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """One page: {"items", "continue"}; `query` has `repository`, `state`, `limit`."""
        return _json(self._request("GET", urljoin(self._url, "api/v1/builds"), params=query))

    def cancel(self, name: str) -> dict[str, Any]:
        return _json(self._request("DELETE", self._of(name)))

    def log(self, name: str, attempt: int | None) -> Iterator[str]:
        """The lines that there are now."""
        query = {"attempt": attempt} if attempt else {}
        with self._request("GET", f"{self._of(name)}/log", params=query, stream=True) as answer:
            if not answer.ok:
                raise CommandError(_problem(answer))
            for line in answer.iter_lines():
                yield line.decode("utf-8", "replace")

    def page(self, name: str | None) -> str:
        """The address of a build's page, or of the list."""
        return urljoin(self._url, f"builds/{quote(name, safe='')}" if name else "")

    def _of(self, name: str) -> str:
        return urljoin(self._url, f"api/v1/builds/{quote(name, safe='')}")

    def follow(self, name: str, last: str | None = None) -> Iterator[Message]:
        """The build's log and states to its end, over as many connections as it takes. `last` is the id of the last
        message that was seen before."""
        heard = time.monotonic()
        while True:
            try:
                for message in self._stream(name, last):
                    heard = time.monotonic()
                    last = message.id or last
                    yield message
                build = self.build(name)
                heard = time.monotonic()
                if build["state"] in ("succeeded", "failed", "cancelled"):
                    yield Message(kind="state", data=build)
                    return
            except _Dropped as dropped:
                if time.monotonic() - heard > PATIENCE:
                    raise CommandError(f"{dropped} The build {name} goes on.") from None
            time.sleep(1)

    def get(self, path: str) -> requests.Response:
        """Whatever is answered at a path under the server's URL."""
        return self._request("GET", urljoin(self._url, path))

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> requests.Response:
        """Posts what was saved, and returns whatever is answered."""
        return self._request("POST", url, data=body, headers=headers)

    def _stream(self, name: str, last: str | None) -> Iterator[Message]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        with self._request("GET", f"{self._of(name)}/log", headers=headers, stream=True) as answer:
            if answer.status_code in TRY_AGAIN:
                raise _Dropped(_problem(answer))
            if not answer.ok:
                raise CommandError(_problem(answer))
            try:
                yield from messages(answer.iter_lines(chunk_size=None))
            except requests.RequestException as error:
                raise _Dropped(f"The connection to {self._url} was lost.") from error

    def _request(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return self._session.request(method, url, timeout=TIMEOUT, allow_redirects=False, **options)
        except requests.RequestException as error:
            said = f"{self._url} does not answer ({type(error).__name__})."
            raise _Dropped(f"{said} Check the address; `kiln serve` starts a Kiln on this machine.") from error


class _Dropped(CommandError):
    """Nothing was answered, or not to the end."""


class _Bearer(requests.auth.AuthBase):
    """Being there, it keeps requests from taking credentials out of ~/.netrc."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def messages(lines: Iterable[bytes]) -> Iterator[Message]:
    """Server-sent events from their lines; comments and what is not JSON are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.decode("utf-8", "replace").partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        try:
            data = msgspec.json.decode(fields.get("data", ""), type=dict[str, Any])
        except msgspec.DecodeError:
            data = None
        if data is not None:
            yield Message(kind=fields.get("event", "message"), data=data, id=fields.get("id"))
        fields = {}


def _json(answer: requests.Response) -> dict[str, Any]:
    if not answer.ok:
        raise (_Dropped if answer.status_code in TRY_AGAIN else CommandError)(_problem(answer))
    try:
        return msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError:
        raise CommandError(f"{answer.url} does not answer like a Kiln. Check the address and its base path.") from None


def _problem(answer: requests.Response) -> str:
    """What the server says is wrong (RFC 9457), or just its status; and what to do next."""
    try:
        problem = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {}
    detail = problem.get("detail") or problem.get("title")
    said = f"{answer.status_code} {answer.reason}" + (f": {detail}" if detail else "")
    cure = CURES.get(answer.status_code)
    return f"{said} {cure}" if cure else said


def _pause(answer: requests.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else 2.0
