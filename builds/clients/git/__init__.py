"""The Git client: running git (`process`), refs (`refs`), credentials (`credentials`), error messages (`messages`)."""

from builds.clients.git.credentials import Credential, Stored, credential_for, credentials
from builds.clients.git.messages import diagnosis
from builds.clients.git.process import Git
from builds.clients.git.refs import Resolved, Resolver, look_up

__all__ = [
    "Credential",
    "Git",
    "Resolved",
    "Resolver",
    "Stored",
    "credential_for",
    "credentials",
    "diagnosis",
    "look_up",
]
