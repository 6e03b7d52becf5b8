"""The exceptions of registry clients. Messages name the registry, never a credential.

RegistryError
 ├── Refused           it has understood, and will not do that
 │    └── Unauthorized   it knows no such user, or does not let this one do that
 │         └── Denied    it has let this user in, and does not let this one do that
 └── Unreachable       no answer, or none that makes sense: try again
"""

from __future__ import annotations


class RegistryError(Exception):
    """Root of the exceptions of registry clients."""


class RegistryRefused(RegistryError):
    pass


class Unauthorized(RegistryRefused):
    pass


class Denied(Unauthorized):
    pass


class RegistryUnreachable(RegistryError):
    pass
