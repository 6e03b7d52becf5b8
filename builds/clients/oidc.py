"""An OpenID Connect issuer: its keys, the claims of its tokens, and the exchange of a sign-in's code.

Tokens are verified locally. Only the issuer's keys are fetched, from the address in its discovery document, and never
from an address in a token. Known keys keep working while the issuer is unavailable.

A token signed with an unknown key causes the keys to be fetched. One request on a thread of this module serves all
waiting callers. `Budget` limits the rate of such requests, because strangers can send such tokens, too.

PyJWT checks signatures and claims. It depends on cryptography alone, whereas Authlib and joserfc bring the rest of
OAuth. Its PyJWKClient is not used: it fetches on the caller's thread, with no limit on size or frequency. The key
decides which algorithms it is good for, so a public key is never taken for a secret of HS256.

https://openid.net/specs/openid-connect-core-1_0.html, https://openid.net/specs/openid-connect-discovery-1_0.html,
RFC 7515 to 7519, RFC 8725 (best practices for JWTs), RFC 9068 (JWTs as access tokens)
"""

from __future__ import annotations

import base64
import logging
import re
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote_plus, urlsplit

import jwt
import msgspec
import requests
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from builds.clients.pool import BoundedPool
from builds.clients.responses import no_netrc, read_body
from builds.errors import TokenRefused, TryAgain

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT = 5.0
"""Seconds that a caller waits for the issuer."""
MAX_WAITING = 32
REFRESH_AFTER = 300.0
"""Seconds after which keys are fetched again while the known ones keep working. A withdrawn key is accepted for no
longer, unless its issuer is unavailable."""
BACKOFF = 1.0
"""Seconds without requests after the issuer failed to answer."""
FETCH_BURST, FETCH_PERIOD = 5, 5.0
"""Unknown keys may cause so many requests in a row, and one more after each period in seconds."""
SKEW = 60
"""Seconds by which the issuer's clock may differ from Kiln's."""
MAX_RESPONSE = 512 * 2**10
"""Bytes of a response."""
MAX_TOKEN = 64 * 2**10
"""Characters of a token, whose holder may be in hundreds of groups. (A header holds 8 KiB.)"""
MAX_KEYS = 100
MIN_RSA = 2048
"""Bits (RFC 7518, §3.3)."""

RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
"""The members of a public key, by its type. Symmetric keys (`oct`) are never public."""
TYPES = frozenset({"", "jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""Types of tokens that identify a user. Others, such as `logout+jwt`, have another purpose (RFC 8725, §3.11)."""

_JWS = re.compile(r"([\w-]+)\.([\w-]+)\.[\w-]*", re.ASCII)
_SUBJECT = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")
"""At most 255 characters of ASCII (OpenID Connect Core, §2), so that records and `private` can contain them."""


CROWDED = "Too many wait for the issuer of tokens. Try again."


class IssuerAway(TryAgain):
    """The issuer cannot confirm that a token is valid, so the caller is not admitted."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=BACKOFF)


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """The members of the discovery document that Kiln uses."""

    issuer: str
    jwks_uri: str
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The claims of a valid token. `all` contains them unchanged, with values of any type."""

    subject: str
    all: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class OwnCluster:
    """How a pod reaches the API server as an issuer of service accounts' tokens. Its keys are for service accounts."""

    ca: Path
    token: Path


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str | None = None
    typ: str | None = None
    crit: Any = None


class _Claims(msgspec.Struct, frozen=True):
    iss: str


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class _IdTokenResponse(msgspec.Struct, frozen=True):
    id_token: str


@dataclass(frozen=True)
class _Key:
    kid: str | None
    algorithms: frozenset[str]
    public: Any


@dataclass(frozen=True)
class _Known:
    asked_at: float
    metadata: Metadata
    keys: tuple[_Key, ...]

    def find(self, header: _Header) -> list[_Key]:
        """The keys that may match the header: a token need not name its key, and several keys may have one name."""
        fits = [key for key in self.keys if header.alg in key.algorithms]
        return fits if header.kid is None else [key for key in fits if key.kid == header.kid]


class Budget:
    """A token bucket: `most` tokens, and one more every so many seconds."""

    def __init__(self, most: int, every: float) -> None:
        self._most, self._every = most, every
        self._left, self._at = float(most), time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) / self._every)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Issuer:
    """Safe to use from many threads. `url` is the issuer's identifier, exactly as in its tokens."""

    def __init__(
        self,
        url: str,
        *,
        own_cluster: OwnCluster | None = None,
        limit: float = TIMEOUT,
        max_waiting: int = MAX_WAITING,
        fresh: float = REFRESH_AFTER,
    ) -> None:
        self.url = url
        self._own = own_cluster
        self._fresh = fresh
        self._pool = BoundedPool("oidc", most=max_waiting, limit=limit)
        self._lock = threading.RLock()  # a completed future calls back on this thread
        self._budget = Budget(FETCH_BURST, FETCH_PERIOD)
        self._known: _Known | None = None
        self._flight: Future[_Known] | None = None
        self._began_at = self._failed_at = -float("inf")

    # Tokens

    def claims(self, token: str, audiences: Collection[str]) -> Claims | None:
        """The claims of a token for one of these audiences; `None` if it is not a JWT of this issuer.

        Raises TokenRefused, IssuerAway.
        """
        parts = _JWS.fullmatch(token) if len(token) <= MAX_TOKEN else None
        header, payload = (_part(parts[1], _Header), _part(parts[2], _Claims)) if parts else (None, None)
        if header is None or payload is None or payload.iss != self.url:
            return None
        if header.crit is not None or (header.typ or "").lower() not in TYPES:
            raise TokenRefused("The token is of a type that is not taken here.")
        if header.alg not in RSA and header.alg not in CURVES.values():
            raise TokenRefused("The token is not signed with an asymmetric algorithm.")
        for key in self._keys(header):
            said = self._decoded(token, header.alg, key, audiences)
            if said is not None:
                return said
        raise TokenRefused("The signature of the token is wrong.")

    def _decoded(self, token: str, alg: str, key: _Key, audiences: Collection[str]) -> Claims | None:
        """`None` if this key has not signed the token. Raises TokenRefused."""
        try:
            said = jwt.decode(
                token,
                key.public,
                algorithms=[alg],
                audience=[*audiences],
                issuer=self.url,
                leeway=SKEW,
                options={"require": ["iss", "aud", "exp", "sub"]},
            )
        except jwt.InvalidSignatureError:
            return None
        except jwt.PyJWTError as error:
            raise TokenRefused(_why(error)) from None
        except (ValueError, TypeError, ArithmeticError, RecursionError):  # claims of unexpected types
            raise TokenRefused("The token is malformed.") from None
        if not isinstance(said["sub"], str) or not _SUBJECT.fullmatch(said["sub"]):
            raise TokenRefused("The subject of the token is not up to 255 printable characters of ASCII.")
        return Claims(subject=said["sub"], all=said)

    # Sign-ins

    def metadata(self) -> Metadata:
        """Raises IssuerAway."""
        with self._lock:
            known = self._known
            self._renew()
        return (known or self._fetched()).metadata

    def id_token(self, code: str, *, client_id: str, secret: str, redirect_uri: str, verifier: str) -> str | None:
        """The ID token of a sign-in (OpenID Connect Core, §3.1.3; RFC 7636, §4.5); `None` for an invalid code.

        Raises IssuerAway.
        """
        known = self.metadata()
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        form |= {"client_id": client_id, "code_verifier": verifier}
        basic = None
        if "client_secret_basic" in known.token_endpoint_auth_methods_supported:
            basic = (quote_plus(client_id), quote_plus(secret))  # RFC 6749, §2.3.1
        else:
            form["client_secret"] = secret
        with self._pool.place(IssuerAway(CROWDED)):
            answer = self._wait(self._pool.submit(self._post, known.token_endpoint, form, basic))
        grant = None if answer is None else _decoded_as(answer, _IdTokenResponse)
        if answer is not None and grant is None:
            log.warning("The issuer %s gave no ID token: is `openid` among KILN_OIDC_SCOPES?", self.url)
        return None if grant is None else grant.id_token

    # Keys

    def reach(self) -> int:
        """The number of usable keys that the issuer publishes. Raises IssuerAway."""
        return len(self._fetched().keys)

    def _keys(self, header: _Header) -> list[_Key]:
        """The keys that may have signed a token. Raises TokenRefused, IssuerAway."""
        with self._lock:
            known = self._known
            self._renew()
        found = (known.find(header) if known else None) or self._fetched().find(header)
        if not found:
            raise TokenRefused("The token is signed with a key that its issuer does not publish.")
        return found

    def _renew(self) -> None:
        """Starts to fetch old keys again, without waiting. The caller holds the lock."""
        if self._known is None or self._flight is not None:
            return
        now = time.monotonic()
        if now - self._known.asked_at > self._fresh and now - self._failed_at > BACKOFF:
            self._begin(now)

    def _fetched(self) -> _Known:
        """The keys that the issuer publishes now, or the known ones while another request is not allowed. Raises
        IssuerAway."""
        with self._pool.place(IssuerAway(CROWDED)):
            with self._lock:
                flight = self._asking()
                known = self._known
            if flight is not None:
                return self._wait(flight)
            assert known is not None  # noqa: S101 - without known keys, the budget is not consulted
            return known

    def _asking(self) -> Future[_Known] | None:
        """One request for all waiting callers; `None` while no request is allowed. The caller holds the lock.

        Raises IssuerAway.
        """
        now = time.monotonic()
        if self._flight is not None and now - self._began_at < self._pool.limit:
            return self._flight
        if now - self._failed_at < BACKOFF:
            raise self._away()
        if self._known is not None and not self._budget.take():
            return None
        return self._begin(now)

    def _begin(self, now: float) -> Future[_Known]:
        self._began_at = now
        flight = self._flight = self._pool.submit(self._fetch)
        flight.add_done_callback(self._landed)
        return flight

    def _landed(self, flight: Future[_Known]) -> None:
        with self._lock:
            if self._flight is flight:
                self._flight = None

    def _fetch(self) -> _Known:
        asked_at = time.monotonic()
        metadata = self._discovered()
        found = _decoded_as(self._get(metadata.jwks_uri), _KeySet)
        keys = tuple(filter(None, map(_key, found.keys[:MAX_KEYS]))) if found else ()
        if not keys:
            raise self._failed("it publishes no key that signs tokens")
        with self._lock:
            if self._known is None or asked_at > self._known.asked_at:
                self._known = _Known(asked_at, metadata, keys)
            return self._known

    def _discovered(self) -> Metadata:
        url = self.url.rstrip("/")
        if self._own is not None:
            return Metadata(issuer=self.url, jwks_uri=f"{url}/openid/v1/jwks")
        found = _decoded_as(self._get(f"{url}/.well-known/openid-configuration"), Metadata)
        if found is None:
            raise self._failed("its discovery document is none")
        if found.issuer != self.url:
            raise self._failed("its discovery document names another issuer; KILN_OIDC_ISSUER must be what it says")
        for endpoint in (found.jwks_uri, found.authorization_endpoint, found.token_endpoint):
            if endpoint is not None and not _as_safe(endpoint, self.url):
                raise self._failed("its discovery document names an endpoint that is not https")
        return found

    # Asking

    def _wait(self, asked: Future[T]) -> T:
        try:
            return self._pool.answer(asked)
        except TimeoutError as error:
            raise self._failed(str(error)) from None

    def _failed(self, why: str) -> IssuerAway:
        self._failed_at = time.monotonic()
        log.warning("The issuer %s: %s", self.url, why)
        return self._away()

    def _away(self) -> IssuerAway:
        return IssuerAway(f"The issuer {self.url} cannot be asked for its keys just now. Try again.")

    def _get(self, url: str) -> bytes:
        """Raises IssuerAway."""
        headers = {"Accept": "application/json"}
        if self._own is not None:
            headers["Authorization"] = f"Bearer {self._own.token.read_text().strip()}"
        answer = self._call("GET", url, headers=headers, auth=no_netrc)
        if answer is None:
            raise self._failed("it refuses to show its keys")
        return answer

    def _post(self, url: str | None, form: Mapping[str, str], basic: tuple[str, str] | None) -> bytes | None:
        """Raises IssuerAway."""
        if url is None:
            raise self._failed("it has no token endpoint")
        return self._call("POST", url, data=form, auth=basic or no_netrc)

    def _call(self, method: str, url: str, **sent: Any) -> bytes | None:
        """The body of a successful response, `None` for a refused request. Raises IssuerAway."""
        try:
            with requests.Session() as session:
                session.trust_env = self._own is None  # proxies only; an explicit `auth` disables netrc
                verify = True if self._own is None else str(self._own.ca)
                with session.request(
                    method, url, timeout=self._pool.limit, allow_redirects=False, stream=True, verify=verify, **sent
                ) as answer:
                    content = read_body(answer, MAX_RESPONSE, self._pool.limit)
        except (requests.RequestException, OSError) as error:
            raise self._failed(type(error).__name__) from None
        if answer.status_code == requests.codes.ok:
            return content
        if answer.status_code in (400, 401, 403):
            log.warning("The issuer %s answered %d", self.url, answer.status_code)
            return None
        raise self._failed(f"status {answer.status_code}")


def is_own_cluster(url: str) -> bool:
    """Whether an issuer is the API server of the pod's own cluster, by the name that every pod uses."""
    return re.fullmatch(r"kubernetes\.default\.svc(?:\.[a-z0-9.-]+)?", urlsplit(url).hostname or "") is not None


def _as_safe(endpoint: str, issuer: str) -> bool:
    """Whether the endpoint uses https, or the same scheme as its issuer."""
    try:
        found = urlsplit(endpoint)
        return bool(found.hostname) and found.scheme in ("https", urlsplit(issuer).scheme)
    except ValueError:
        return False


def _part(text: str, kind: type[T]) -> T | None:
    try:
        return _decoded_as(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), kind)
    except ValueError:
        return None


def _decoded_as(body: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError):
        return None


def _key(jwk: Mapping[str, Any]) -> _Key | None:
    """A public key that signs tokens; `None` for anything else that a key set may contain (RFC 7517, §5)."""
    kty, kid, usable = jwk.get("kty"), jwk.get("kid"), jwk.get("key_ops")
    algorithms = _algorithms(jwk)
    if jwk.get("use", "sig") != "sig" or (isinstance(usable, list) and "verify" not in usable) or not algorithms:
        return None
    members = {name: jwk.get(name) for name in MEMBERS[str(kty)]}
    try:
        public = jwt.PyJWK({"kty": kty, **members}, algorithm=min(algorithms)).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if isinstance(public, RSAPublicKey) and public.key_size < MIN_RSA:
        return None
    return _Key(kid if isinstance(kid, str) else None, algorithms, public)


def _algorithms(jwk: Mapping[str, Any]) -> frozenset[str]:
    """The algorithms that a key is good for, by its type and its own members."""
    of_curve = CURVES.get(str(jwk.get("crv")))
    match jwk.get("kty"):
        case "RSA":
            good = RSA
        case "EC" if of_curve in ("ES256", "ES384", "ES512"):
            good = frozenset({of_curve})
        case "OKP" if of_curve == "EdDSA":
            good = frozenset({of_curve})
        case _:
            return frozenset()
    return good & {jwk["alg"]} if isinstance(jwk.get("alg"), str) else good


_WHY: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "The token has expired."),
    (jwt.ImmatureSignatureError, "The token is not valid yet."),
    (jwt.InvalidAudienceError, "The token is for another audience."),
    (jwt.MissingRequiredClaimError, "The token lacks a claim: it needs iss, aud, exp and sub."),
)


def _why(error: jwt.PyJWTError) -> str:
    return next((said for kind, said in _WHY if isinstance(error, kind)), "The token is malformed.")
