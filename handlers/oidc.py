"""Identities from an OpenID Connect issuer: senders of events, and people.

A token of a site's issuer identifies the sender and grants nothing. This module grants permissions. The subjects that
the operator configures (`Senders`) may request builds of any repository, as the webhooks of a host do. All others are
people (`People`). They choose what to build but not how, and are admins only by a group.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from flask import Request

from builds.errors import TokenRefused
from handlers import xsrf
from handlers.auth import Identity, Opened, token_of
from handlers.problems import Problem
from handlers.seals import Seal

if TYPE_CHECKING:
    from builds.clients.oidc import Claims, Issuer

log = logging.getLogger(__name__)

OIDC_SESSION = "kiln-oidc-session"
SESSION_SECONDS = 3600
"""Seconds within which a change at the issuer takes effect here. While a session at the issuer exists, renewal needs no
interaction.
"""


@dataclass(frozen=True, kw_only=True)
class People:
    """All people whom the issuer knows. `groups_claim` is the claim that lists their groups.

    `heeded` are the groups that permissions depend on: all groups of a person may exceed a cookie.
    """

    groups_claim: str = "groups"
    admin_group: str | None = None
    heeded: Collection[str] = ()

    def identity(self, claims: Claims) -> Identity:
        return self.member(claims.subject, self._groups(claims))

    def member(self, subject: str, groups: Iterable[str]) -> Identity:
        held = frozenset(groups) & {self.admin_group, *self.heeded}
        return Identity(by=f"oidc:{subject}", admin=self.admin_group in held, groups=frozenset(filter(None, held)))

    def _groups(self, claims: Claims) -> frozenset[str]:
        """A malformed list counts as no group."""
        said = claims.all.get(self.groups_claim)
        listed = said if isinstance(said, list) else [said]
        return frozenset(group for group in listed if isinstance(group, str))


@dataclass(frozen=True, kw_only=True)
class Senders:
    """The subjects that may send every event; `…*` matches a prefix, as in an EventPolicy of Knative.

    Other subjects are `people`, or refused.
    """

    subjects: Sequence[str] = ()
    people: People | None = None

    def identity(self, claims: Claims) -> Identity:
        """Return the identity. Raises Problem 403."""
        if any(map(claims.subject.startswith, self._beginnings)) or claims.subject in self.subjects:
            return Identity(by=f"oidc:{claims.subject}", sender=True)
        if self.people is None:
            raise Problem(
                403,
                "The subject of the token may not send events. Add it to KILN_OIDC_SUBJECTS.",
                {"WWW-Authenticate": 'Bearer realm="kiln", error="insufficient_scope"'},
            )
        return self.people.identity(claims)

    @property
    def _beginnings(self) -> list[str]:
        return [subject.removesuffix("*") for subject in self.subjects if subject.endswith("*")]


@dataclass(frozen=True, kw_only=True)
class OidcToken:
    """`Authorization: Bearer <JWT>` for one of `audiences`."""

    issuer: Issuer
    audiences: Sequence[str]
    who: People | Senders
    in_url: bool = False

    @property
    def takes(self) -> str:
        return f"<a token of {self.issuer.url}>"

    def identify(self, request: Request) -> Identity | None:
        """Verify the token. Raises Problem for an invalid token of this issuer (RFC 6750, §3.1), IssuerAway."""
        token = token_of(request, in_url=self.in_url)
        try:
            claims = self.issuer.claims(token, self.audiences) if token else None
        except TokenRefused as error:
            refused = f'Bearer realm="kiln", error="invalid_token", error_description="{error}"'
            raise Problem(401, str(error), {"WWW-Authenticate": refused}) from None
        return None if claims is None else self.who.identity(claims)


@dataclass(frozen=True, kw_only=True)
class OidcSignIn:
    """Sign-in of browsers: an authorization code with PKCE (OpenID Connect Core, §3.1; RFC 7636).

    `secret` is the client's secret; it also signs the sessions. Without it, browsers cannot sign in.
    """

    issuer: Issuer
    client_id: str
    secret: Callable[[], str | None]
    scopes: Sequence[str]
    callback_url: str
    people: People
    session_seconds: int = SESSION_SECONDS

    @property
    def host(self) -> str:
        return urlsplit(self.issuer.url).hostname or self.issuer.url

    @property
    def name(self) -> str:
        return f"The issuer {self.issuer.url}"

    def begin(self, nonce: str, target: str) -> str:
        """Return the URL of the sign-in. Raises IssuerAway."""
        endpoint = self.issuer.metadata().authorization_endpoint
        if endpoint is None:
            raise Problem(503, f"{self.name} does not support sign-in for browsers.")
        state = self._seal.state(nonce, target)
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.callback_url,
            "scope": " ".join(self.scopes),
            "state": state,
            "nonce": self._seal.derived("nonce", nonce, state),
            "code_challenge": challenge(self._seal.derived("verifier", nonce, state)),
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    def target(self, state: str, nonce: str) -> str | None:
        return self._seal.target(state, nonce)

    def session(self, code: str, state: str, nonce: str) -> str | None:
        """Exchange the code for a session. Raises IssuerAway."""
        token = self.issuer.id_token(
            code,
            client_id=self.client_id,
            secret=self._secret(),
            redirect_uri=self.callback_url,
            verifier=self._seal.derived("verifier", nonce, state),
        )
        claims = None if token is None else self._claims(token, self._seal.derived("nonce", nonce, state))
        if claims is None:
            return None
        identity = self.people.identity(claims)
        return self._seal.session([claims.subject, sorted(identity.groups)])

    def opened(self, session: str) -> tuple[Identity, Opened] | None:
        found = self._seal.opened(session)
        if found is None:
            return None
        (subject, groups), opened = found
        return replace(self.people.member(subject, groups), session=opened), opened

    def _claims(self, token: str, nonce: str) -> Claims | None:
        """Return the claims of an ID token for this client and this sign-in (OpenID Connect Core, §3.1.3.7)."""
        try:
            claims = self.issuer.claims(token, (self.client_id,))
        except TokenRefused as error:
            log.warning("The ID token of a sign-in: %s", error)
            return None
        if claims is None or claims.all.get("azp", self.client_id) != self.client_id:
            return None
        given: Any = claims.all.get("nonce")
        return claims if hmac.compare_digest(str(given).encode(), nonce.encode()) else None

    @property
    def _seal(self) -> Seal:
        return Seal(self._secret, self.session_seconds)

    def _secret(self) -> str:
        secret = self.secret()
        if secret is None:
            raise Problem(503, "Sign-in is unavailable. Add the secret oidc/client-secret.")
        return secret


@dataclass(frozen=True)
class OidcSession:
    """The cookie of a sign-in at the issuer. A request with a token as well must be from the same person."""

    site: OidcSignIn
    ended: Callable[[str], bool]

    takes = None

    def identify(self, request: Request) -> Identity | None:
        session = request.cookies.get(OIDC_SESSION)
        if not session or token_of(request, in_url=False) is not None:
            return None
        found = self.site.opened(session)
        if found is None or self.ended(found[1].id):
            return None
        identity, opened = found
        xsrf.check(request, opened.xsrf)
        return identity


def challenge(verifier: str) -> str:
    """Return the challenge of a code verifier (RFC 7636, §4.2, `S256`)."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
