"""The users of a JupyterHub: by their tokens, and in a browser by its sign-in (OAuth 2, RFC 6749).

Whoever a token belongs to must have been given access to this service there; the Hub is asked again and again
(`builds.clients.hub` says how often), so that what it takes away is gone here, too. A browser's session is the token
that its sign-in ended in, in a signed cookie: any replica can read it, none keeps anything. It is keyed by the token
that the Hub has given to this service and to nobody else.

On a Hub, other people's servers are on the same site as we are, and may be on the same host. So the browser's word that
a request is our own page's is not enough for a session to have things done: the request must show the session's
`X-Xsrftoken`, which a cookie for our path alone holds, as JupyterHub's own services have it. The pages' forms have
their own proof.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from flask import Request
from itsdangerous import BadData, URLSafeTimedSerializer

from handlers.auth import Authenticator, Identity, changes, foreign_origin, token_of
from handlers.problems import Problem

if TYPE_CHECKING:
    from builds.clients.hub import Holder, Hub

HUB_SESSION = "kiln-hub-session"
XSRF = "_xsrf"
"""The name under which BinderHub's client looks for it."""
SIGN_IN = "kiln-sign-in"
SIGN_IN_SECONDS = 600
"""Who signs in may have to find a second factor."""


@dataclass(frozen=True, kw_only=True)
class HubService:
    """This service as its Hub knows it, and what may be asked of the Hub."""

    hub: Hub
    client_id: str
    secret: str
    access_scopes: Sequence[str]
    authorize_url: str
    callback_url: str
    session_seconds: int

    def ways(self, *, pages: bool = False, in_url: bool = False) -> tuple[Authenticator, ...]:
        """For a gate; with `pages` browsers may come by their session."""
        return (HubToken(self, in_url), HubSession(self)) if pages else (HubToken(self, in_url),)

    def identity(self, token: str) -> Identity | None:
        """Who comes with this token. Raises Problem 403 for who has no access, HubAway."""
        holder = self.hub.holder(token)
        if holder is None:
            return None
        if not self._has_access(holder):
            raise Problem(403, f"This takes the scope {self.access_scopes[0]}: ask an admin of the JupyterHub for it.")
        return Identity(by=f"{holder.kind}:{holder.name}", admin=holder.admin, groups=frozenset(holder.groups))

    def _has_access(self, holder: Holder) -> bool:
        """A scope without a filter is for every service."""
        wanted = {scope for each in self.access_scopes for scope in (each, each.partition("!")[0])}
        return not wanted.isdisjoint(holder.scopes)

    # A browser's way in

    def begin(self, nonce: str, target: str) -> str:
        """Where to send a browser that is to come back to `target`; `nonce` is in a cookie of its own."""
        state = self._signed("sign-in").dumps([_digest(nonce), target])
        query = {"client_id": self.client_id, "redirect_uri": self.callback_url, "response_type": "code"}
        return f"{self.authorize_url}?{urlencode({**query, 'state': state})}"

    def target(self, state: str, nonce: str) -> str | None:
        """Where the browser that began with this `nonce` wants to go; `None` where it did not begin here."""
        try:
            digest, target = self._signed("sign-in").loads(state, max_age=SIGN_IN_SECONDS)
        except (BadData, TypeError, ValueError):
            return None
        return str(target) if hmac.compare_digest(str(digest), _digest(nonce)) else None

    def session(self, code: str) -> str | None:
        """The cookie's value for who comes back with this code; `None` where the code is not good. Raises HubAway."""
        token = self.hub.access_token(
            code, client_id=self.client_id, secret=self.secret, redirect_uri=self.callback_url
        )
        return None if token is None else str(self._signed("session").dumps(token))

    def token(self, session: str) -> str | None:
        """The token in a session's cookie."""
        try:
            token = self._signed("session").loads(session, max_age=self.session_seconds)
        except BadData:
            return None
        return token if isinstance(token, str) else None

    def xsrf(self, session: str) -> str:
        """What a request must show beside the session's cookie. Hexadecimal: BinderHub's client cuts off a `-`."""
        return hmac.new(self.secret.encode(), f"kiln-xsrf\n{session}".encode(), hashlib.sha256).hexdigest()

    def _signed(self, purpose: str) -> URLSafeTimedSerializer:
        signer = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        return URLSafeTimedSerializer(self.secret, salt=f"kiln-{purpose}", signer_kwargs=signer)


@dataclass(frozen=True)
class HubToken:
    """`Authorization: Bearer <token>`, or `token <token>` as the Hub's own clients write it."""

    service: HubService
    in_url: bool = False

    takes = "a token of the JupyterHub"

    def identify(self, request: Request) -> Identity | None:
        token = token_of(request, ("bearer", "token"), in_url=self.in_url)
        return self.service.identity(token) if token else None


@dataclass(frozen=True)
class HubSession:
    """The cookie that a sign-in at the Hub ended in. Who sends a token as well is the token's holder, or nobody."""

    service: HubService

    takes = None

    def identify(self, request: Request) -> Identity | None:
        session = request.cookies.get(HUB_SESSION, "")
        token = None if "Authorization" in request.headers else self.service.token(session)
        if token is None:
            return None
        if changes(request) and (foreign_origin(request) or not self._shown(request, session)):
            raise Problem(403, f"This must be asked from Kiln's own pages, with the cookie {XSRF} as X-Xsrftoken.")
        return self.service.identity(token)

    def _shown(self, request: Request, session: str) -> bool:
        if request.blueprint == "pages":
            return True  # its forms are checked by themselves
        shown = request.headers.get("X-Xsrftoken") or request.args.get(XSRF) or ""  # an EventSource sends no headers
        return hmac.compare_digest(shown.encode(), self.service.xsrf(session).encode())


def new_nonce() -> str:
    return secrets.token_urlsafe(32)


def _digest(nonce: str) -> str:
    return hashlib.sha256(nonce.encode()).hexdigest()
