"""Users of a JupyterHub: by their tokens, and in a browser by its sign-in (OAuth 2, RFC 6749).

The owner of a token needs a scope of the Hub for this service. Kiln queries the Hub repeatedly (`builds.clients.hub`
defines how often), so that a revoked scope takes effect here, too. A browser's session is the token from its sign-in,
in a signed cookie: any replica can read it, none keeps state. The key is the token that the Hub has given to this
service alone.

`handlers.xsrf` defines the additional proof of a request by session, because servers of other users may share the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from flask import Request

from handlers import xsrf
from handlers.auth import Authenticator, Identity, Opened, token_of
from handlers.problems import Problem
from handlers.seals import Seal

if TYPE_CHECKING:
    from builds.clients.jupyterhub import Holder, HubClient

HUB_SESSION = "kiln-hub-session"


@dataclass(frozen=True, kw_only=True)
class HubService:
    """This service as its Hub knows it, and queries to the Hub."""

    hub: HubClient
    client_id: str
    secret: str
    access_scopes: Sequence[str]
    authorize_url: str
    callback_url: str
    logout_url: str
    """The URL at which a browser ends its session at the Hub, and the tokens of all its sign-ins."""
    session_seconds: int

    def ways(self, *, ended: Callable[[str], bool] | None = None, in_url: bool = False) -> tuple[Authenticator, ...]:
        """Return the authenticators for a gate; with `ended`, which lists ended sessions, browsers may use theirs."""
        return (HubToken(self, in_url), *([HubSession(self, ended)] if ended else []))

    def identity(self, token: str) -> Identity | None:
        """Return the owner of this token. Raises Problem 403 without access, HubAway."""
        holder = self.hub.holder(token)
        if holder is None:
            return None
        if not self._has_access(holder):
            raise Problem(403, f"Missing scope {self.access_scopes[0]}. Ask an admin of the JupyterHub for it.")
        return Identity(by=f"{holder.kind}:{holder.name}", admin=holder.admin, groups=frozenset(holder.groups))

    def _has_access(self, holder: Holder) -> bool:
        """A scope without a filter covers every service."""
        wanted = {scope for each in self.access_scopes for scope in (each, each.partition("!")[0])}
        return not wanted.isdisjoint(holder.scopes)

    # Sign-in of browsers (`handlers.seals.SignIn`)

    @property
    def name(self) -> str:
        return "The JupyterHub"

    def begin(self, nonce: str, target: str) -> str:
        query = {"client_id": self.client_id, "redirect_uri": self.callback_url, "response_type": "code"}
        return f"{self.authorize_url}?{urlencode({**query, 'state': self._seal.state(nonce, target)})}"

    def target(self, state: str, nonce: str) -> str | None:
        return self._seal.target(state, nonce)

    def session(self, code: str, state: str, nonce: str) -> str | None:  # noqa: ARG002
        """Exchange the code for a session. Raises HubAway."""
        token = self.hub.access_token(
            code, client_id=self.client_id, secret=self.secret, redirect_uri=self.callback_url
        )
        return None if token is None else self._seal.session(token)

    def opened(self, session: str) -> tuple[str, Opened] | None:
        """Return the identity for the token in the cookie."""
        found = self._seal.opened(session)
        return found if found and isinstance(found[0], str) else None

    @property
    def _seal(self) -> Seal:
        return Seal(lambda: self.secret, self.session_seconds)


@dataclass(frozen=True)
class HubToken:
    """`Authorization: Bearer <token>`, or `token <token>` as the Hub's own clients write it."""

    service: HubService
    in_url: bool = False

    takes = "<a token of the JupyterHub>"

    def identify(self, request: Request) -> Identity | None:
        token = token_of(request, in_url=self.in_url)
        return self.service.identity(token) if token else None


@dataclass(frozen=True)
class HubSession:
    """The cookie of a sign-in at the Hub. A request with a token as well must be from the same user."""

    service: HubService
    ended: Callable[[str], bool]

    takes = None

    def identify(self, request: Request) -> Identity | None:
        session = request.cookies.get(HUB_SESSION, "")
        found = None if token_of(request, in_url=False) is not None else self.service.opened(session)
        if found is None or self.ended(found[1].id):
            return None
        token, opened = found
        xsrf.check(request, opened.xsrf)
        identity = self.service.identity(token)
        return identity and replace(identity, session=opened)
