"""What a browser carries for us while it signs in elsewhere, and afterwards: signed, so that any replica can read it
and none keeps anything.

A sign-in begins with a nonce in a cookie of its own, and a `state` that goes the way over the other site: only the
browser that has both came back from where it was sent (RFC 6749, §10.12).
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
"""Who signs in may have to find a second factor."""


class SignIn(Protocol):
    """A site that knows people, and sends their browsers back."""

    @property
    def name(self) -> str:
        """As a sentence begins with it."""

    @property
    def session_seconds(self) -> int: ...

    def begin(self, nonce: str, target: str) -> str:
        """Where to send a browser that is to come back to `target`; `nonce` is in a cookie of its own."""

    def target(self, state: str, nonce: str) -> str | None:
        """Where the browser that began with this `nonce` wants to go; `None` where it did not begin here."""

    def session(self, code: str, state: str, nonce: str) -> str | None:
        """The cookie's value for who comes back with this code; `None` where the code is not good."""

    def opened(self, session: str) -> tuple[Any, Opened] | None:
        """Who has signed in, as a session's cookie says it, and the session."""


@dataclass(frozen=True)
class Seal:
    """Signs with a secret that every replica has and nobody else."""

    secret: Callable[[], str]
    seconds: int
    """How long a session lasts."""

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
        """What nobody else can tell, the same each time. Hexadecimal."""
        return hmac.digest(self.secret().encode(), "\n".join((f"kiln-{purpose}", *of)).encode(), "sha256").hex()

    def _signed(self, purpose: str) -> URLSafeTimedSerializer:
        signer = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        return URLSafeTimedSerializer(self.secret(), salt=f"kiln-{purpose}", signer_kwargs=signer)


def new_nonce() -> str:
    return secrets.token_urlsafe(32)


def _digest(nonce: str) -> str:
    return hashlib.sha256(nonce.encode()).hexdigest()
