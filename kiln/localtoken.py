"""The token of an installation whose `KILN_AUTH` is unset: `token` in the state folder, as Jupyter Server has one.

A Dockerfile's `ADD` and a page in a browser both reach loopback, so a connection from this machine says nothing about
who made it. Reading a file with mode 0600 does. Web makes the file at its first start; `kiln` and web read it later.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from kiln.errors import CommandError

NAME = "token"
LARGEST = 1024


def path_in(state_dir: Path) -> Path:
    return state_dir / NAME


def ensured(state_dir: Path) -> bytes:
    """The token, made where there is none. Raises CommandError where it cannot be had or others can read it."""
    path = path_in(state_dir)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
    except OSError as error:
        raise CommandError(f"The folder {state_dir} (KILN_STATE_DIR) cannot be used: {error.strerror}") from None
    return read(path)


def read(path: Path) -> bytes:
    """Raises CommandError where there is none, or where it is not its owner's alone."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            token = file.read(LARGEST + 1).strip()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise CommandError(f"{path} must be a file that only its owner can read; remove it, and web makes another")
    if not token or len(token) > LARGEST:
        raise CommandError(f"{path} holds no token; remove it, and web makes another")
    return token


def _make(path: Path) -> None:
    """By a link, so that of two that start at once one wins, and nobody reads half of it."""
    draft = path.with_name(f".{NAME}-{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(f"{secrets.token_hex(32)}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
