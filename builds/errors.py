"""What goes wrong before there is a build: every answer that an asker, or the one who configures Kiln, can be given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class BuildsError(Exception):
    """Root of what the pure modules of this package raise.

    BuildsError
     ├── TokenRefused             a token that is not good, of an issuer that is known
     ├── ProvenanceError          where an image comes from cannot be proven, or a key cannot be used
     ├── RuleError                a trigger, pattern or prefix in the configuration cannot be understood
     └── RequestError                 a request that will not become a build: `status` is the HTTP answer
          ├── Malformed           400  a field does not have the form it must have
          ├── Forbidden           403  understood, and not permitted to this asker
          ├── CannotBuild         422  understood, and cannot be built
          │    └── UnknownRef     422  the repository has no such ref
          ├── RepositoryError     400  not the address of a repository
          │    └── RepositoryRefused  422  an address, and one that is not fetched here
          └── TryAgain            503  nothing wrong with the request (`retry_after`, in seconds)
               └── Unreachable    503  the Git host could not be asked

    Each message is a sentence for the person who asked, and never repeats what may be a secret.
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
    """Which part of the request it is about, by its name in the API, where it is about one."""


@contextmanager
def about(field: str) -> Iterator[None]:
    """Errors from within are about that part of the request, unless they say more exactly which."""
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
