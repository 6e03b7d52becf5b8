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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from flask import Request

from builds.private import Words, words_of
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
    """`by` as it stands in `causes[].by`; `None` where nobody is asked. An admin may cancel what others asked for.
    Who is neither that nor a program says what to build, and not how. `groups` are a Hub's."""

    by: str | None
    admin: bool = False
    groups: frozenset[str] = frozenset()

    @property
    def chooses(self) -> bool:
        """Whether they may say how to build (image, tags, build arguments, `force`): everybody but ordinary people."""
        return self.admin or (self.by or "").startswith(("service:", "token:", "webhook:"))

    @property
    def words(self) -> Words:
        """As `private` says who somebody is."""
        return words_of(self.by, self.groups)


class Authenticator(Protocol):
    @property
    def takes(self) -> str | None:
        """What to send it, as a 401 says it; `None` where it is not for who sends headers."""

    def identify(self, request: Request) -> Identity | None:
        """Who it is; `None` where the request brings nothing that this one knows."""


@dataclass(frozen=True)
class Anyone:
    """`none`: everybody is let in and everybody is an admin. `network`: the same, a NetworkPolicy stands before it."""

    takes = None

    def identify(self, request: Request) -> Identity | None:  # noqa: ARG002
        return Identity(by=None, admin=True)


@dataclass(frozen=True)
class Bearer:
    """`Authorization: Bearer <token>` (RFC 6750, §2.1), compared as bytes: WSGI's headers are Latin-1, tokens not."""

    tokens: Tokens
    in_url: bool = False

    takes = "one of this Kiln's API tokens"

    def identify(self, request: Request) -> Identity | None:
        given = token_of(request, ("bearer",), in_url=self.in_url)
        name = None if given is None else name_of(given.encode("latin-1", "replace"), self.tokens())
        return None if name is None else Identity(by=f"token:{name}", admin=True)


@dataclass(frozen=True)
class Session:
    """The cookie that the pages' form sets, on any request of our own pages.

    Its value is `<name>.<expiry>.<MAC>`, keyed by the token itself: every replica can check it, it says nothing about
    the token, and it dies with it.
    """

    tokens: Tokens

    takes = None

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
    token_in_url: bool = False

    def has(self, kind: type[Authenticator]) -> bool:
        return any(isinstance(authenticator, kind) for authenticator in self.authenticators)

    @property
    def asks(self) -> bool:
        """Whether anybody is asked who they are."""
        return not self.has(Anyone)

    def admit(self, request: Request) -> Identity:
        """Raises Problem: 401 where nobody knows the request, 403 where it is known and not permitted; TryAgain where
        nobody can tell just now."""
        for authenticator in self.authenticators:
            identity = authenticator.identify(request)
            if identity is not None:
                return identity
        in_url = "token" in request.args
        said = "is wrong, or has expired" if "Authorization" in request.headers or in_url else "is missing"
        if in_url and not self.token_in_url:
            said = "is not taken from an address, which is seen by many"
        wanted = " or ".join(filter(None, (authenticator.takes for authenticator in self.authenticators)))
        headers = {"WWW-Authenticate": 'Bearer realm="kiln"'}
        raise Problem(401, f"The token {said}: send Authorization: Bearer and {wanted}.", headers)


def gate(
    words: Iterable[str],
    *,
    tokens: Tokens,
    hub: Sequence[Authenticator] = (),
    pages: bool = False,
    token_in_url: bool = False,
) -> Gate:
    """The gate for the words of `KILN_AUTH` or `KILN_EVENTS_AUTH`; with `pages` people may come by the pages' cookie.

    `hub` are the ways that a Hub opens. They come last: who is known here need not be asked for elsewhere. Raises
    ValueError for a word that is not in this version.
    """
    chosen = {*words}
    if unknown := chosen - {"hub", "token", "none", "network"}:
        raise ValueError(f"{', '.join(sorted(unknown))} is not in this version of Kiln")
    ways: list[Authenticator] = []
    if "token" in chosen:
        ways += [Bearer(tokens, token_in_url), *([Session(tokens)] if pages else [])]
    if "hub" in chosen:
        ways += hub
    if chosen & {"none", "network"}:
        ways.append(Anyone())
    return Gate(tuple(ways), token_in_url)


def token_of(request: Request, schemes: Sequence[str], *, in_url: bool) -> str | None:
    """The token that a request brings, under one of these schemes of `Authorization`."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() in schemes:
        return given.strip()
    return request.args.get("token") if in_url and not scheme else None


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
