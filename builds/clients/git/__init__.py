"""The Git client: running git (`process`), refs (`refs`), limits on look-ups (`lookups`), credentials, error
messages."""

from builds.clients.git.credentials import (
    Credential,
    Stored,
    credential_for,
    credentials,
    credentials_in,
    is_credential,
)
from builds.clients.git.lookups import LookupLimiter
from builds.clients.git.messages import diagnosis
from builds.clients.git.process import Git, trusted_certificates
from builds.clients.git.refs import RefResolver, ResolvedRef, look_up

__all__ = [
    "Credential",
    "Git",
    "LookupLimiter",
    "RefResolver",
    "ResolvedRef",
    "Stored",
    "credential_for",
    "credentials",
    "credentials_in",
    "diagnosis",
    "is_credential",
    "look_up",
    "trusted_certificates",
]
