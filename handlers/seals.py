"""Signed state in the browser, during and after a sign-in elsewhere: any replica can read it, none keeps state.

A sign-in begins with a nonce in a cookie, and a `state` that passes through the other site. Only the browser with both
began this sign-in (RFC 6749, §10.12).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from itsdangerous import BadData, URLSafeTimedSerializer

from handlers import xsrf
from handlers.auth import Opened, session_id

SIGN_IN = "kiln-sign-in"
SIGN_IN_SECONDS = 600
"""Seconds for a sign-in, which may need a second factor."""


class SignIn(Protocol):
    """A site that authenticates people and redirects their browsers back."""

    @property
    def name(self) -> str:
        """The name at the beginning of a sentence."""

    @property
    def session_seconds(self) -> int: ...

    def begin(self, nonce: str, target: str) -> str:
        """Return the URL of the sign-in for a browser that returns to `target`; `nonce` is in a separate cookie."""

    def target(self, state: str, nonce: str) -> str | None:
        """Return the target of the browser that began with this `nonce`; `None` if it did not begin here."""

    def session(self, code: str, state: str, nonce: str) -> str | None:
        """Return the cookie's value for this code; `None` for an invalid code."""

    def opened(self, session: str) -> tuple[Any, Opened] | None:
        """Return the identity and the session in a cookie."""


@dataclass(frozen=True)
class Seal:
    """Sign with a secret that all replicas share."""

    secret: Callable[[], str]
    seconds: int
    """Seconds that a session lasts."""

    def state(self, nonce: str, target: str) -> str:
        return str(self._signed("sign-in").dumps([_digest(nonce), target]))

    def target(self, state: str, nonce: str) -> str | None:
        try:
            digest, target = self._signed("sign-in").loads(state, max_age=SIGN_IN_SECONDS)
        except (BadData, TypeError, ValueError):
            return None
        return str(target) if hmac.compare_digest(str(digest), _digest(nonce)) else None

    def session(self, who: object) -> str:
        return str(self._signed("session").dumps(who))

    def opened(self, session: str) -> tuple[Any, Opened] | None:
        try:
            who, at = self._signed("session").loads(session, max_age=self.seconds, return_timestamp=True)
        except BadData:
            return None
        shown = xsrf.token(self.secret().encode(), session)
        return who, Opened(id=session_id(session), xsrf=shown, expiry=at.timestamp() + self.seconds)

    def derived(self, purpose: str, *of: str) -> str:
        """Derive a secret value, the same each time. Hexadecimal."""
        return hmac.digest(self.secret().encode(), "\n".join((f"kiln-{purpose}", *of)).encode(), "sha256").hex()

    def _signed(self, purpose: str) -> URLSafeTimedSerializer:
        signer = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        return URLSafeTimedSerializer(self.secret(), salt=f"kiln-{purpose}", signer_kwargs=signer)


def new_nonce() -> str:
    return secrets.token_urlsafe(32)


def _digest(nonce: str) -> str:
    return hashlib.sha256(nonce.encode()).hexdigest()
