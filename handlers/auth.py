"""Who is asking. A gate tries its authenticators in order; the first that knows the request says who it is.

Where `KILN_AUTH` is unset, Kiln is one person's on one machine, who has its token (`local`). A browser there is a way
in for every page it shows: so a request whose `Host` is not loopback (DNS rebinding), that came through a proxy, or
whose `Origin` is another site is refused before anybody looks at a token.
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
"""The API tokens by name, as they are now: they are rotated while we run."""

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
    """A session that a cookie holds: `id` names it and opens nothing, `xsrf` is what its pages must show, `expiry` is
    Unix time."""

    id: str
    xsrf: str = field(repr=False)
    expiry: float


@dataclass(frozen=True)
class Identity:
    """`by` as it stands in `causes[].by`; `None` where nobody is asked, and for the one whose machine it is. An admin
    may cancel what others asked for. Who is neither that nor a program says what to build, and not how. `groups` are a
    Hub's or an issuer's. `sender` is set for who may send every event and is none of these. `session` is set where a
    cookie says who it is."""

    by: str | None
    admin: bool = False
    groups: frozenset[str] = frozenset()
    sender: bool = False
    session: Opened | None = field(default=None, compare=False)

    @property
    def chooses(self) -> bool:
        """Whether they may say how to build (image, tags, build arguments, `force`): everybody but ordinary people."""
        return self.admin or self.sender or (self.by or "").startswith(("service:", "token:", "webhook:"))

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
    """`Authorization: Bearer <token>` (RFC 6750, §2.1), or `token <token>` as the Hub's clients have it.

    Compared as bytes: WSGI's headers are Latin-1, tokens not. `by` makes a token's name what a cause says.
    """

    tokens: Tokens
    in_url: bool = False
    takes: str = "<one of this Kiln's API tokens>"
    by: Callable[[str], str | None] = "token:{}".format

    def identify(self, request: Request) -> Identity | None:
        given = token_of(request, in_url=self.in_url)
        name = None if given is None else name_of(given.encode("latin-1", "replace"), self.tokens())
        return None if name is None else Identity(by=self.by(name), admin=True)


@dataclass(frozen=True)
class Session:
    """The cookie that the pages' form sets, on any request of our own pages.

    Its value is `<name>.<expiry>.<nonce>.<MAC>`, keyed by the token itself: every replica can check it, it says nothing
    about the token, and it dies with it. `ended` says of a session's id whether somebody has signed out of it.
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
        """The cookie's value for who brings a right token."""
        tokens = self.tokens()
        name = name_of(given, tokens)
        return None if name is None else session(name, tokens[name], int(time.time()) + SESSION_SECONDS)


@dataclass(frozen=True)
class Gate:
    """Who may come in, by any of these ways."""

    authenticators: tuple[Authenticator, ...]
    token_in_url: bool = False

    def of(self, kind: type[A]) -> A | None:
        """Its authenticator of a kind."""
        return next((one for one in self.authenticators if isinstance(one, kind)), None)

    def admit(self, request: Request) -> Identity:
        """Raises Problem: 401 where nobody knows the request, 403 where it is known and not permitted; TryAgain where
        nobody can tell just now."""
        for authenticator in self.authenticators:
            identity = authenticator.identify(request)
            if identity is not None:
                return identity
        in_url = "token" in request.args
        said = "Wrong or expired token." if "Authorization" in request.headers or in_url else "Missing token."
        if request.headers.get("Authorization", "").lower().startswith("basic "):
            said = "Basic credentials are not taken: a browser sends them by itself, whichever page asks."
        if in_url and not self.token_in_url:
            said = "A token is not taken from an address, which is seen by many."
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
    """The gate for the words of `KILN_AUTH` or `KILN_EVENTS_AUTH`, or `local`, where `tokens` holds the one of this
    machine. With `ended` people may come by the pages' cookie.

    `oidc` and `hub` are the ways that an issuer and a Hub open. They come last: who is known here need not be asked for
    elsewhere.
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
    """The token that a request brings, as `Authorization: Bearer` or `token`, in whatever case (RFC 9110, §11.1)."""
    scheme, given = [*request.headers.get("Authorization", "").split(None, 1), "", ""][:2]
    if scheme.lower() in ("bearer", "token"):
        return given.strip()
    return request.args.get("token") if in_url and not scheme else None


def name_of(given: bytes, tokens: Mapping[str, bytes]) -> str | None:
    """The name of a token, found in a time that does not depend on which it is or how much of it is right."""
    found = [name for name, token in tokens.items() if hmac.compare_digest(given, token)]
    return found[0] if found else None


def session(name: str, token: bytes, expiry: int) -> str:
    """A new value of the pages' cookie, valid until `expiry` (Unix time)."""
    signed = f"{name}.{expiry}.{secrets.token_hex(8)}"
    return f"{signed}.{_mac(token, signed)}"


def session_id(value: str) -> str:
    """What a session is known by to who is told that it has ended."""
    return hashlib.sha256(value.encode()).hexdigest()


def _mac(token: bytes, signed: str) -> str:
    return hmac.new(token, f"kiln-session\n{signed}".encode(), hashlib.sha256).hexdigest()


def _nobody(_: str) -> None:
    """Who has this machine's token is the one who runs Kiln: there is nobody else to tell them from."""


def refuse_foreigners(request: Request) -> None:
    """Raises Problem 403 for whatever looks as if it did not come from this machine."""
    hint = "This Kiln answers this machine only; KILN_AUTH says who else may come in."
    if not _loopback(request.headers.get("Host", "")):
        raise Problem(403, f"The Host of the request is not this machine. {hint}")
    if any(map(_FORWARDED.fullmatch, request.environ)):
        raise Problem(403, f"The request came through a proxy. {hint}")
    if xsrf.foreign_origin(request):
        raise Problem(403, f"The request was made by another site's page. {hint}")


@lru_cache(maxsize=64)
def _loopback(host: str) -> bool:
    """Whether a `Host` header (with or without port) names this machine."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
