"""Which web runs on a state folder: each has a file there with its URL, and keeps it locked.

A file alone could name a port that another program has by now, which must not be sent this machine's token. The kernel
lets a lock go with the last process that holds it, so a locked file is never out of date.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

PATTERN = "web-*.url"
LARGEST = 4096


def announce(state_dir: Path, url: str) -> BinaryIO:
    """Makes the file. It tells of this process until what is returned is closed here and in all forks.

    Raises OSError.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = state_dir / f".web-{secrets.token_hex(8)}"
    file = os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(url.encode())
    file.flush()
    draft.rename(state_dir / f"{draft.name.removeprefix('.')}.url")
    return file


def found(state_dir: Path) -> str | None:
    """The URL of the web that began last of those that run. Removes the files of those that have ended."""
    files = sorted(state_dir.glob(PATTERN), key=_began, reverse=True)
    return next(filter(None, map(_url, files)), None)


def _began(file: Path) -> float:
    with suppress(OSError):
        return file.stat().st_mtime
    return 0.0


def _url(path: Path) -> str | None:
    """`None` where nobody holds the lock."""
    with suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read(LARGEST).decode()
        path.unlink()
    return None
