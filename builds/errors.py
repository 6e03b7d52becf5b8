"""Errors in requests and in the configuration, before a build exists. Their messages are shown to users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class BuildsError(Exception):
    """Root of the exceptions of this package's pure modules.

    BuildsError
     ├── TokenRefused             an invalid token of a known issuer
     ├── ProvenanceError          the origin of an image cannot be proven, or a key cannot be used
     ├── RuleError                an invalid trigger, pattern or prefix in the configuration
     └── RequestError             a request that does not become a build: `status` is the HTTP status
          ├── Malformed           400  a field has the wrong form
          ├── Forbidden           403  valid, and not permitted to this requester
          ├── CannotBuild         422  valid, and cannot be built
          │    └── UnknownRef     422  the repository has no such ref
          ├── RepositoryError     400  not the address of a repository
          │    └── RepositoryRefused  422  the policy refuses this repository
          └── TryAgain            503  nothing is wrong with the request (`retry_after`, in seconds)
               └── Unreachable    503  the Git host does not answer

    Each message is a sentence for the requester, and never repeats a possible secret.
    """


class RuleError(BuildsError):
    pass


class ProvenanceError(BuildsError):
    pass


class TokenRefused(BuildsError):
    pass


class RequestError(BuildsError):
    status: ClassVar[int] = 400
    field: str | None = None
    """The field of the request that is wrong, by its name in the API; `None` if it is not a single field."""


@contextmanager
def about(field: str) -> Iterator[None]:
    """Set `field` on any RequestError raised inside, unless it already names one."""
    try:
        yield
    except RequestError as error:
        error.field = error.field or field
        raise


class Malformed(RequestError):
    pass


class Forbidden(RequestError):
    status = 403


class CannotBuild(RequestError):
    status = 422


class UnknownRef(CannotBuild):
    pass


class RepositoryError(RequestError):
    pass


class RepositoryRefused(RepositoryError):
    status = 422


class TryAgain(RequestError):
    status = 503

    def __init__(self, message: str, *, retry_after: float = 30.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(TryAgain):
    pass
