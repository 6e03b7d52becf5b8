"""Authentication. A gate tries its authenticators in order; the first that recognizes the request identifies the
sender.

If `KILN_AUTH` is unset, Kiln belongs to one person on one machine, who has its token (`local`). Every page in a local
browser can reach it. Kiln therefore checks the origin of a request before its token. It refuses requests whose `Host`
is not loopback (DNS rebinding), that passed a proxy, or whose `Origin` is another site.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from flask import Request

from builds.private import Words, words_of
from builds.repository import is_loopback
from handlers import xsrf
from handlers.problems import Problem

Tokens = Callable[[], Mapping[str, bytes]]
"""The current API tokens by name, read on each request because tokens rotate."""

SESSION = "kiln-session"
SESSION_SECONDS = 12 * 3600
LOCAL = "<what the file `token` in the state folder holds>"
A = TypeVar("A")

_SESSION = re.compile(
    r"(?P<signed>(?P<name>[^/]+)\.(?P<expiry>[0-9]{1,12})\.[0-9a-f]{16})\.(?P<mac>[0-9a-f]{64})", re.ASCII
)
_FORWARDED = re.compile(  # as WSGI spells them
    r"HTTP_(?:FORWARDED|VIA|X_FORWARDED.*|X_ORIGINAL_.*|X_REAL_IP|(?:X_|X_CLUSTER_|TRUE_)CLIENT_IP|CF_CONNECTING_IP)"
)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An opened session cookie. `id` names the session without giving access, `xsrf` is the value that its pages must
    show, `expiry` is Unix time.
    """

    id: str
    xsrf: str = field(repr=False)
    expiry: float


@dataclass(frozen=True)
class Identity:
    """The identity of a sender. `by` is the value in `causes[].by`; `None` without authentication, and for the owner of
    the machine.

    An admin may cancel the builds of others. Senders that are neither admins nor programs choose what to build, but not
    how. `groups` come from a Hub or an issuer. `sender` is set for the subjects that may send every event. `session` is
    set if a cookie identifies the sender.
    """

    by: str | None
    admin: bool = False
    groups: frozenset[str] = frozenset()
    sender: bool = False
    session: Opened | None = field(default=None, compare=False)

    @property
    def chooses(self) -> bool:
        """Return whether the sender may choose how to build (image, tags, build arguments, `force`): all except
        ordinary people.
        """
        return self.admin or self.sender or (self.by or "").startswith(("service:", "token:", "webhook:"))

    @property
    def words(self) -> Words:
        """Return the names by which `private` refers to the sender."""
        return words_of(self.by, self.groups)


class Authenticator(Protocol):
    @property
    def takes(self) -> str | None:
        """The credential to send, for a 401; `None` if it is not a header."""

    def identify(self, request: Request) -> Identity | None:
        """Return the identity; `None` if the request has no credential of this kind."""


@dataclass(frozen=True)
class Anyone:
    """`none`: every sender is an admin. `network`: the same, behind a NetworkPolicy."""

    takes = None

    def identify(self, request: Request) -> Identity | None:  # noqa: ARG002
        return Identity(by=None, admin=True)


@dataclass(frozen=True)
class Bearer:
    """`Authorization: Bearer <token>` (RFC 6750, §2.1), or `token <token>` as the Hub's clients send.

    Compared as bytes: WSGI's headers are Latin-1, tokens not. `by` converts a token's name to a cause.
    """

    tokens: Tokens
    in_url: bool = False
    takes: str = "<API token>"
    by: Callable[[str], str | None] = "token:{}".format

    def identify(self, request: Request) -> Identity | None:
        given = token_of(request, in_url=self.in_url)
        name = None if given is None else name_of(given.encode("latin-1", "replace"), self.tokens())
        return None if name is None else Identity(by=self.by(name), admin=True)


@dataclass(frozen=True)
class Session:
    """The session cookie of the pages' form, for requests of the pages only.

    Its value is `<name>.<expiry>.<nonce>.<MAC>`, keyed by the token. Every replica can verify it, it reveals nothing
    about the token, and it expires with the token. `ended` returns whether the user has signed out of a session.
    """

    tokens: Tokens
    ended: Callable[[str], bool]
    by: Callable[[str], str | None] = "token:{}".format

    takes = None

    def identify(self, request: Request) -> Identity | None:
        value = request.cookies.get(SESSION, "")
        match = _SESSION.fullmatch(value)
        key = self.tokens().get(match["name"]) if match else None
        if match is None or key is None or int(match["expiry"]) < time.time():
            return None
        if not hmac.compare_digest(match["mac"], _mac(key, match["signed"])):
            return None
        opened = Opened(id=session_id(value), xsrf=xsrf.token(key, value), expiry=float(match["expiry"]))
        if self.ended(opened.id):
            return None
        xsrf.check(request, opened.xsrf)
        return Identity(by=self.by(match["name"]), admin=True, session=opened)

    def begin(self, given: bytes) -> str | None:
        """Return the cookie's value for a valid token."""
        tokens = self.tokens()
        name = name_of(given, tokens)
        return None if name is None else session(name, tokens[name], int(time.time()) + SESSION_SECONDS)


@dataclass(frozen=True)
class Gate:
    """Authenticators in order."""

    authenticators: tuple[Authenticator, ...]
    token_in_url: bool = False

    def of(self, kind: type[A]) -> A | None:
        """Return its authenticator of a kind."""
        return next((one for one in self.authenticators if isinstance(one, kind)), None)

    def admit(self, request: Request) -> Identity:
        """Identify the sender. Raises Problem 401 for an unknown sender and 403 for one without permission, and
        TryAgain if the authentication service is away.
        """
        for authenticator in self.authenticators:
            identity = authenticator.identify(request)
            if identity is not None:
                return identity
        in_url = "token" in request.args
        said = "Wrong or expired token." if "Authorization" in request.headers or in_url else "Missing token."
        if request.headers.get("Authorization", "").lower().startswith("basic "):
            said = "Basic credentials are not accepted, because browsers send them for requests of any page."
        if in_url and not self.token_in_url:
            said = "A token in a URL is not accepted, because logs record URLs."
        wanted = " or ".join(filter(None, (authenticator.takes for authenticator in self.authenticators)))
        error = ', error="invalid_token"' if said.startswith("Wrong") else ""
        headers = {"WWW-Authenticate": f'Bearer realm="kiln"{error}'}
        raise Problem(401, f"{said} Send `Authorization: Bearer` and {wanted}.", headers)


def gate(
    words: Iterable[str],
    *,
    tokens: Tokens,
    oidc: Sequence[Authenticator] = (),
    hub: Sequence[Authenticator] = (),
    ended: Callable[[str], bool] | None = None,
    token_in_url: bool = False,
) -> Gate:
    """Build the gate for the words of `KILN_AUTH` or `KILN_EVENTS_AUTH`, or `local`, whose `tokens` contain the token
    of this machine. With `ended`, people may use the pages' cookie.

    `oidc` and `hub` are the authenticators of an issuer and a Hub. They come last, because they may query a remote
    service.
    """
    chosen = {*words}
    ways: list[Authenticator] = []
    if "token" in chosen:
        ways += [Bearer(tokens, token_in_url), *([Session(tokens, ended)] if ended else [])]
    if "local" in chosen:
        ways += [Bearer(tokens, takes=LOCAL, by=_nobody), *([Session(tokens, ended, _nobody)] if ended else [])]
    if "oidc" in chosen:
        ways += oidc
    if "hub" in chosen:
        ways += hub
    if chosen & {"none", "network"}:
        ways.append(Anyone())
    return Gate(tuple(ways), token_in_url)


def token_of(request: Request, *, in_url: bool) -> str | None:
    """Return the token of a request, from `Authorization: Bearer` or `token`, in any case (RFC 9110, §11.1)."""
    scheme, given = [*request.headers.get("Authorization", "").split(None, 1), "", ""][:2]
    if scheme.lower() in ("bearer", "token"):
        return given.strip()
    return request.args.get("token") if in_url and not scheme else None


def name_of(given: bytes, tokens: Mapping[str, bytes]) -> str | None:
    """Return the name of a token, in a time that depends neither on which it is nor on how much of it matches."""
    found = [name for name, token in tokens.items() if hmac.compare_digest(given, token)]
    return found[0] if found else None


def session(name: str, token: bytes, expiry: int) -> str:
    """Return a new value of the pages' cookie, valid until `expiry` (Unix time)."""
    signed = f"{name}.{expiry}.{secrets.token_hex(8)}"
    return f"{signed}.{_mac(token, signed)}"


def session_id(value: str) -> str:
    """Return the id of a session in the list of ended sessions."""
    return hashlib.sha256(value.encode()).hexdigest()


def _mac(token: bytes, signed: str) -> str:
    return hmac.new(token, f"kiln-session\n{signed}".encode(), hashlib.sha256).hexdigest()


def _nobody(_: str) -> None:
    """The holder of this machine's token is its owner, so a cause has no name."""


def refuse_foreigners(request: Request) -> None:
    """Raise Problem 403 for any request that may not originate on this machine."""
    hint = "Kiln answers this machine only. Set KILN_AUTH to admit other clients."
    if not _loopback(request.headers.get("Host", "")):
        raise Problem(403, f"The Host of the request is not this machine. {hint}")
    if any(map(_FORWARDED.fullmatch, request.environ)):
        raise Problem(403, f"The request passed a proxy. {hint}")
    if xsrf.foreign_origin(request):
        raise Problem(403, f"A page of another site sent the request. {hint}")


@lru_cache(maxsize=64)
def _loopback(host: str) -> bool:
    """Return whether a `Host` header (with or without port) names this machine."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
