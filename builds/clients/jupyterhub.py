"""JupyterHub's REST API: the owner of a token, and the exchange of a sign-in's code.

Every caller with a token depends on the Hub, which may restart, stall or be far away. So requests run in a pool of
threads (`builds.clients.pool`). A caller gets an answer within the limit, or HubAway. The number of waiting callers is
limited, so that web keeps its other threads. After a failure, requests pause for a moment.

An answer about a token is cached for half a minute, so that a page with its log needs one request, and a revoked token
is refused soon. JupyterHub's own package does all this, too (`jupyterhub.services.auth`), but takes 68 MB and most of a
second to import; this module needs two requests.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

import msgspec
import requests
from cachetools import TTLCache

from builds.clients.pool import BoundedPool
from builds.clients.responses import read_body
from builds.errors import TryAgain

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT = 5.0
"""Seconds for the Hub's answer: GitHub gives a webhook 10, and BinderHub's clients wait longer."""
MAX_WAITING = 64
CACHE_TTL = 30.0
"""Seconds for which an answer about a token is cached. A Hub answers a few hundred such requests per second."""
BACKOFF = 1.0
"""Seconds without requests after the Hub failed to answer."""
MAX_CACHED = 10_000
MAX_RESPONSE = 4 << 20
"""Bytes of a response: the list of an admin's scopes may be long."""

_TOKEN = re.compile(r"[\x21-\x7e]{1,1024}")
AWAY = "JupyterHub, which authenticates users, does not answer. Try again."
CROWDED = "Too many requests wait for JupyterHub to authenticate them. Try again."


class HubAway(TryAgain):
    """The Hub cannot identify the caller, so the caller is not admitted."""

    def __init__(self, message: str = AWAY) -> None:
        super().__init__(message, retry_after=BACKOFF)


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of a token, and its permissions. `kind` is `user` or `service`."""

    kind: str
    name: str
    admin: bool = False
    groups: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset()


class HubClient:
    """Safe to use from many threads. `url` is its API, such as `http://hub:8081/hub/api`; `limit` in seconds."""

    def __init__(
        self, url: str, *, limit: float = TIMEOUT, max_waiting: int = MAX_WAITING, kept: float = CACHE_TTL
    ) -> None:
        self._url = url.rstrip("/")
        self._pool = BoundedPool("hub", most=max_waiting, limit=limit)
        self._lock = threading.Lock()
        self._known: TTLCache[bytes, Holder | None] = TTLCache(MAX_CACHED, kept)
        self._asked: dict[bytes, Future[Holder | None]] = {}
        self._failed_at = -BACKOFF

    def holder(self, token: str) -> Holder | None:
        """The owner of the token; `None` for an unknown or revoked one. Raises HubAway."""
        if not _TOKEN.fullmatch(token):
            return None
        key = hashlib.sha256(token.encode()).digest()  # the cache must not contain usable tokens
        with self._lock, suppress(KeyError):
            return self._known[key]
        with self._pool.place(HubAway(CROWDED)):
            return self._wait(self._asking(key, token))

    def _asking(self, key: bytes, token: str) -> Future[Holder | None]:
        """One request for all callers with the same token (single flight)."""
        with self._lock:
            self._rest()
            asked = self._asked.get(key)
            if asked is None:
                asked = self._asked[key] = self._pool.submit(self._look_up, key, token)
                asked.add_done_callback(lambda _: self._asked.pop(key, None))
            return asked

    def access_token(self, code: str, *, client_id: str, secret: str, redirect_uri: str) -> str | None:
        """The token for a browser's sign-in (RFC 6749, §4.1.3); `None` for an invalid or used code.

        Raises HubAway.
        """
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        form |= {"client_id": client_id, "client_secret": secret}
        self._rest()
        with self._pool.place(HubAway(CROWDED)):
            answer = self._wait(self._pool.submit(self._call, "POST", "oauth2/token", form=form))
        return None if answer is None else _decoded(answer, _AccessTokenResponse).access_token

    def _look_up(self, key: bytes, token: str) -> Holder | None:
        answer = self._call("GET", "user", headers={"Authorization": f"token {token}"})
        holder = None if answer is None else _decoded(answer, Holder)
        with self._lock:
            self._known[key] = holder
        return holder

    def _rest(self) -> None:
        """Raises HubAway if the Hub failed a moment ago."""
        if time.monotonic() - self._failed_at < BACKOFF:
            raise HubAway

    def _wait(self, asked: Future[T]) -> T:
        try:
            return self._pool.answer(asked)
        except TimeoutError as error:
            self._failed(str(error))
            raise HubAway from None

    def _failed(self, why: str) -> None:
        self._failed_at = time.monotonic()
        log.warning("The Hub at %s: %s", self._url, why)

    def _call(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, form: Mapping[str, str] | None = None
    ) -> bytes | None:
        """The body of a successful response, `None` for a refused credential. Raises HubAway."""
        try:
            with requests.Session() as session:
                session.trust_env = False  # uses neither a proxy nor a netrc
                with session.request(
                    method,
                    f"{self._url}/{path}",
                    headers=headers,
                    data=form,
                    timeout=self._pool.limit,
                    allow_redirects=False,
                    stream=True,
                ) as answer:
                    content = read_body(answer, MAX_RESPONSE, self._pool.limit)
        except (requests.RequestException, OSError) as error:
            self._failed(type(error).__name__)
            raise HubAway from None
        if answer.status_code == requests.codes.ok:
            return content
        if answer.status_code in (400, 401, 403):
            return None
        self._failed(f"status {answer.status_code}")
        raise HubAway


class _AccessTokenResponse(msgspec.Struct, frozen=True):
    access_token: str


def _decoded(body: bytes, kind: type[T]) -> T:
    """Raises HubAway for an invalid response."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError):
        log.warning("The Hub's address does not answer as a JupyterHub")
        raise HubAway from None
