"""Who is asking. A gate tries its authenticators in order; the first that knows the request says who it is.

Where nobody is asked (`none`), being this machine is the only protection, and a browser on it is a way in for every
page it shows: so a request whose `Host` is not loopback (DNS rebinding), that came through a proxy, or whose `Origin`
is another site is refused, unless somebody has said `none` in so many words.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from flask import Request

from builds.repository import is_loopback
from handlers.problems import Problem

Tokens = Callable[[], Mapping[str, bytes]]
"""The API tokens by name, as they are now: they are rotated while we run."""

SESSION = "kiln-session"
SESSION_SECONDS = 12 * 3600
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
DOES_BY_GET = "binderhub.build"
"""The endpoint whose clients have things done by GET."""

_FORWARDED = re.compile(
    r"forwarded|via|x-forwarded.*|x-original-.*|x-real-ip|(x-|x-cluster-|true-)client-ip|cf-connecting-ip",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Identity:
    """`by` as it stands in `causes[].by`; `None` where nobody is asked. An admin may cancel what others asked for."""

    by: str | None
    admin: bool = False


class Authenticator(Protocol):
    def identify(self, request: Request) -> Identity | None:
        """Who it is; `None` where the request brings nothing that this one knows."""


@dataclass(frozen=True)
class Anyone:
    """`none`: everybody is let in and everybody is an admin. `network`: the same, a NetworkPolicy stands before it."""

    def identify(self, request: Request) -> Identity | None:  # noqa: ARG002
        return Identity(by=None, admin=True)


@dataclass(frozen=True)
class Bearer:
    """`Authorization: Bearer <token>` (RFC 6750, §2.1), compared as bytes: WSGI's headers are Latin-1, tokens not."""

    tokens: Tokens

    def identify(self, request: Request) -> Identity | None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        name = name_of(given.strip().encode("latin-1"), self.tokens()) if scheme.lower() == "bearer" else None
        return None if name is None else Identity(by=f"token:{name}", admin=True)


@dataclass(frozen=True)
class Session:
    """The cookie that the pages' form sets, on any request of our own pages.

    Its value is `<name>.<expiry>.<MAC>`, keyed by the token itself: every replica can check it, it says nothing about
    the token, and it dies with it.
    """

    tokens: Tokens

    def identify(self, request: Request) -> Identity | None:
        name, _, rest = request.cookies.get(SESSION, "").rpartition(".")[0].rpartition(".")
        token = self.tokens().get(name)
        if token is None or not re.fullmatch(r"[0-9]{1,12}", rest) or int(rest) < time.time():
            return None
        if not hmac.compare_digest(request.cookies[SESSION].encode(), session(name, token, int(rest)).encode()):
            return None
        if changes(request) and foreign_origin(request):
            raise Problem(403, "This must be asked from Kiln's own pages.")
        return Identity(by=f"token:{name}", admin=True)


@dataclass(frozen=True)
class Gate:
    """Who may come in, by any of these ways."""

    authenticators: tuple[Authenticator, ...]

    @property
    def asks(self) -> bool:
        """Whether anybody is asked who they are."""
        return not any(isinstance(authenticator, Anyone) for authenticator in self.authenticators)

    def admit(self, request: Request) -> Identity:
        """Raises Problem: 401 where nobody knows the request, 403 where it is known and not permitted."""
        for authenticator in self.authenticators:
            identity = authenticator.identify(request)
            if identity is not None:
                return identity
        said = "is wrong" if request.headers.get("Authorization") else "is missing"
        headers = {"WWW-Authenticate": 'Bearer realm="kiln"'}
        raise Problem(401, f"The token {said}: send Authorization: Bearer and one of this Kiln's API tokens.", headers)


def gate(words: Iterable[str], *, tokens: Tokens, pages: bool = False) -> Gate:
    """The gate for the words of `KILN_AUTH` or `KILN_EVENTS_AUTH`; with `pages` people may come by the pages' cookie.

    Raises ValueError for a word that is not in this version.
    """
    ways: list[Authenticator] = []
    for word in words:
        if word == "token":
            ways += [Bearer(tokens), Session(tokens)] if pages else [Bearer(tokens)]
        elif word in ("none", "network"):
            ways.append(Anyone())
        else:
            raise ValueError(f"{word} is not in this version of Kiln")
    return Gate(tuple(ways))


def name_of(given: bytes, tokens: Mapping[str, bytes]) -> str | None:
    """The name of a token, found in a time that does not depend on which it is or how much of it is right."""
    found = [name for name, token in tokens.items() if hmac.compare_digest(given, token)]
    return found[0] if found else None


def session(name: str, token: bytes, expiry: int) -> str:
    """The value of the pages' cookie, valid until `expiry` (Unix time)."""
    mac = hmac.new(token, f"kiln-session\n{name}\n{expiry}".encode(), hashlib.sha256).hexdigest()
    return f"{name}.{expiry}.{mac}"


def foreign_origin(request: Request) -> bool:
    """Whether a browser says that another site's page made this request (RFC 6454, §7; Fetch Metadata)."""
    if changes(request) and request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return True  # a link that leads here is no request that changes anything
    origin = request.headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc.lower() != request.host.lower()


def changes(request: Request) -> bool:
    """Whether it asks for something to be done: an image on another site's page must not be enough for that."""
    return request.method not in SAFE or (request.method == "GET" and request.endpoint == DOES_BY_GET)


def refuse_foreigners(request: Request) -> None:
    """Raises Problem 403 for whatever looks as if it did not come from this machine."""
    hint = "This Kiln asks nobody who they are, so it answers this machine only; KILN_AUTH says who else may come in."
    if not _loopback(request.headers.get("Host", "")):
        raise Problem(403, f"The Host of the request is not this machine. {hint}")
    if any(_FORWARDED.fullmatch(name) for name, _ in request.headers):
        raise Problem(403, f"The request came through a proxy. {hint}")
    if foreign_origin(request):
        raise Problem(403, f"The request was made by another site's page. {hint}")


def _loopback(host: str) -> bool:
    """Whether a `Host` header (with or without port) names this machine."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
