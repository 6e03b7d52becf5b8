"""A client for Kiln's HTTP API, as far as the commands need it.

A log arrives as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). Their ids are the
same on every replica and after every restart, so after a lost connection the client resumes at the last id.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec
import requests
from requests.adapters import BaseAdapter

from builds.build import State
from kiln.errors import CommandError

TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and between two bytes: the server sends a comment at least every 30 s."""
RECONNECT_PERIOD = 300.0
"""Seconds without an answer after which the client stops following a log."""
RETRY_PERIOD = 60.0
"""Seconds for which the client repeats a request with a retryable answer."""
JSON_LINES = "application/x-ndjson"
RETRYABLE = frozenset({429, 502, 503, 504})
ENDED = frozenset(state for state in State if state.ended)
CURES: Mapping[int, str] = {
    401: "Name a token with --token-file, KILN_TOKEN or a profile.",
    403: "Use the token of a user with this permission.",
    404: "`kiln ls` shows the builds.",
    409: "`kiln show` shows how the build ended.",
    429: "Try again later.",
    502: "Try again later.",
    503: "Try again later.",
    504: "Try again later.",
}
"""The next step for the user, by the status of the answer. An answer with 400 or 422 contains it."""

BuildJSON = dict[str, Any]
"""A build in the API's form (`builds.report.BuildView`)."""

_NAME = re.compile(r"[a-z0-9-]+")

log = logging.getLogger(__name__)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One server-sent event: `log` with {"line", "phase"}, `state` with the build."""

    kind: str
    data: dict[str, Any]
    id: str | None = None


class Server:
    """The server at `url`, which includes the base path. All methods raise CommandError with a sentence."""

    def __init__(self, url: str, token: str | None = None, adapter: BaseAdapter | None = None) -> None:
        """`adapter` replaces the network."""
        _check_url(url)
        self._url = url.rstrip("/") + "/"
        self._session = requests.Session()
        self._session.auth = _Bearer(token)
        if adapter:
            self._session.mount(self._url, adapter)

    def location(self, path: str) -> str:
        """The URL of an absolute path in an answer."""
        return urljoin(self._url, path)

    def ask(self, body: Mapping[str, Any]) -> BuildJSON:
        """Requests a build, and returns it. The request is idempotent."""
        return self._asked(urljoin(self._url, "api/v1/builds"), body)

    def rebuild(self, name: str) -> BuildJSON:
        """Requests the same build again, and returns it."""
        return self._asked(f"{self._of(name)}/rebuild", {})

    def _asked(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + RETRY_PERIOD
        while True:
            answer = self._request("POST", url, json=body)
            pause = _pause(answer)
            if answer.status_code not in RETRYABLE or time.monotonic() + pause > deadline:
                return _json(answer)
            log.warning("%s Retrying in %.0f s.", _detail(answer), pause)
            time.sleep(pause)

    def build(self, name: str) -> BuildJSON:
        return _json(self._request("GET", self._of(name)))

    def list(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """One page: {"items", "continue"}; `query` has `repository`, `state`, `limit`, `continue`."""
        return _json(self._request("GET", urljoin(self._url, "api/v1/builds"), params=query))

    def cancel(self, name: str) -> BuildJSON:
        return _json(self._request("DELETE", self._of(name)))

    def log(self, name: str, attempt: int | None) -> Iterator[dict[str, Any]]:
        """The lines of the log up to now, each {"line", "phase"}."""
        query = {"attempt": attempt} if attempt else {}
        headers = {"Accept": JSON_LINES}
        with self._request("GET", f"{self._of(name)}/log", params=query, headers=headers, stream=True) as answer:
            if not answer.ok:
                raise CommandError(_problem(answer))
            for line in self._lines(answer):
                yield _decoded(answer, line)

    def page(self, name: str | None) -> str:
        """The URL of a build's page, or of the list of builds."""
        return urljoin(self._url, "" if name is None else f"builds/{_checked_name(name)}")

    def _of(self, name: str) -> str:
        """The URL of a build's API. An empty name would be that of the list."""
        return urljoin(self._url, f"api/v1/builds/{_checked_name(name)}")

    def follow(self, name: str, last: str | None = None) -> Iterator[Message]:
        """The build's log and states to its end. Reconnects when the connection breaks.

        `last` is the id of the last known message.
        """
        answered_at, connected = time.monotonic(), True
        while True:
            try:
                for message in self._stream(name, last):
                    answered_at, connected = time.monotonic(), True
                    last = message.id or last
                    yield message
                build = self.build(name)
                answered_at = time.monotonic()
                if build["state"] in ENDED:
                    yield Message(kind="state", data=build)
                    return
            except _Dropped as dropped:
                if connected:
                    log.warning("The connection to %s was lost. Reconnecting.", self._url)
                connected = False
                if time.monotonic() - answered_at > RECONNECT_PERIOD:
                    raise CommandError(f"{dropped} The build {name} continues.") from None
            time.sleep(1)

    def wait(self, name: str) -> BuildJSON:
        """Waits for the end of a build, and returns it."""
        return next(message.data for message in self.follow(name) if message.data.get("state") in ENDED)

    def get(self, path: str) -> requests.Response:
        """The answer at a path below the server's URL, also if it is an error."""
        return self._request("GET", urljoin(self._url, path))

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> requests.Response:
        """Posts a saved request, and returns the answer, also if it is an error."""
        return self._request("POST", url, data=body, headers=headers)

    def _stream(self, name: str, last: str | None) -> Iterator[Message]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        with self._request("GET", f"{self._of(name)}/log", headers=headers, stream=True) as answer:
            if answer.status_code in RETRYABLE:
                raise _Dropped(_problem(answer))
            if not answer.ok:
                raise CommandError(_problem(answer))
            yield from messages(self._lines(answer))

    def _lines(self, answer: requests.Response) -> Iterator[bytes]:
        """The lines of an answer as they arrive. Raises _Dropped."""
        try:
            yield from answer.iter_lines(chunk_size=None)
        except requests.RequestException as error:
            raise _Dropped(f"The connection to {self._url} was lost.") from error

    def _request(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return self._session.request(method, url, timeout=TIMEOUT, allow_redirects=False, **options)
        except requests.RequestException as error:
            said = f"{self._url} does not answer ({type(error).__name__})."
            raise _Dropped(f"{said} Check the address; `kiln serve` starts Kiln on this machine.") from error


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise CommandError(f"{url} is not an http or https URL. Give one such as https://kiln.example.edu/.")
    if "@" in parts.netloc:  # the message must not contain the password
        raise CommandError(
            "The server's URL must not contain a user name or password. Name a token with --token-file, KILN_TOKEN or "
            "a profile."
        )


def _checked_name(name: str) -> str:
    """The name, if a build could have it. Raises CommandError."""
    if not _NAME.fullmatch(name):
        raise CommandError(f"Build not found. {CURES[404]}")
    return name


class _Dropped(CommandError):
    """No answer arrived, or only a part of it."""


class _Bearer(requests.auth.AuthBase):
    """Adds the token, if any. Its presence keeps requests from reading credentials in ~/.netrc."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def messages(lines: Iterable[bytes]) -> Iterator[Message]:
    """Parse server-sent events; comments and events without JSON are left out."""
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
        raise (_Dropped if answer.status_code in RETRYABLE else CommandError)(_problem(answer))
    return _decoded(answer, answer.content)


def _decoded(answer: requests.Response, text: bytes) -> dict[str, Any]:
    """The JSON object in an answer, or in a part of it. Raises CommandError."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        raise CommandError(f"{answer.url} is not an API of Kiln. Check the address and its base path.") from None


def _problem(answer: requests.Response) -> str:
    """The problem in the answer, and the next step for the user if the answer has only one sentence."""
    detail = _detail(answer)
    complete = ". " in detail and answer.status_code != HTTPStatus.UNAUTHORIZED
    cure = None if complete else CURES.get(answer.status_code)
    return f"{detail} {cure}" if cure else detail


def _detail(answer: requests.Response) -> str:
    """The problem in the answer (RFC 9457), or else its status."""
    try:
        problem = msgspec.json.decode(answer.content, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {}
    return str(problem.get("detail") or f"The server answered {answer.status_code} {answer.reason}.")


def _pause(answer: requests.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else 2.0
