"""The exceptions of registry clients. Messages name the registry, never a credential.

RegistryError
 ├── RegistryRefused       the registry has understood the request, and refuses it
 │    └── Unauthorized     unknown account, or one without the permission
 │         └── Denied       accepted credential without the permission
 └── RegistryUnreachable   no answer, or no valid one; retryable
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
