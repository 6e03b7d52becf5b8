"""The token of an installation with `KILN_AUTH` unset: `token` in the state folder, as in Jupyter Server.

A Dockerfile's `ADD` and a page in a browser also connect from loopback, so the address does not authenticate. Reading a
file with mode 0600 does. Web creates the file at its first start; `kiln` and web read it later.
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
    """Return the token; create it if missing. Raises CommandError if it is unavailable or readable for others."""
    path = path_in(state_dir)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
    except OSError as error:
        raise CommandError(
            f"The folder {state_dir} (KILN_STATE_DIR) is not usable: {error.strerror}. Set another."
        ) from None
    return read(path)


def read(path: Path) -> bytes:
    """Return the token. Raises CommandError if it is missing or readable for others."""
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
    """Create it by a link: of two simultaneous starts one wins, and no reader sees half of it."""
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
