"""Whom an OpenID Connect issuer vouches for: senders of events, and people.

A token that a site's issuer made says who somebody is, and no more. What they may do is said here: the subjects that
the operator names (`Senders`) speak for repositories, as the webhooks of a host do; everybody else is a person
(`People`), who says what to build and not how, and an admin only where a group makes them one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import Request

from builds.clients.oidc import TokenRefused
from handlers.auth import Identity, token_of
from handlers.problems import Problem

if TYPE_CHECKING:
    from builds.clients.oidc import Claims, Issuer


@dataclass(frozen=True, kw_only=True)
class People:
    """Everybody whom the issuer knows. `groups_claim` is the claim that lists their groups."""

    groups_claim: str = "groups"
    admin_group: str | None = None

    def identity(self, claims: Claims) -> Identity:
        groups = self._groups(claims)
        return Identity(by=f"oidc:{claims.subject}", admin=self.admin_group in groups, groups=groups)

    def _groups(self, claims: Claims) -> frozenset[str]:
        """What is no list of names is no group."""
        said = claims.all.get(self.groups_claim)
        listed = said if isinstance(said, list) else [said]
        return frozenset(group for group in listed if isinstance(group, str))


@dataclass(frozen=True, kw_only=True)
class Senders:
    """The subjects that may send every event; `…*` is all that begin so, as in an EventPolicy of Knative.

    Others are `people`, or nobody.
    """

    subjects: Sequence[str] = ()
    people: People | None = None

    def identity(self, claims: Claims) -> Identity:
        """Raises Problem 403."""
        if any(map(claims.subject.startswith, self._beginnings)) or claims.subject in self.subjects:
            return Identity(by=f"oidc:{claims.subject}", sender=True)
        if self.people is None:
            raise Problem(
                403,
                "The subject of the token is none that may send events here (KILN_OIDC_SUBJECTS).",
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
        """Raises Problem for a token of this issuer that is not good (RFC 6750, §3.1), IssuerAway."""
        token = token_of(request, in_url=self.in_url)
        try:
            claims = self.issuer.claims(token, self.audiences) if token else None
        except TokenRefused as error:
            refused = f'Bearer realm="kiln", error="invalid_token", error_description="{error}"'
            raise Problem(401, str(error), {"WWW-Authenticate": refused}) from None
        return None if claims is None else self.who.identity(claims)
