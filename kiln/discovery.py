"""Discovery of the webs that run on a state folder: each keeps a file there with its URL, and holds a lock on it.

Without the lock, a file could name a port that belongs to another program by now, and a command would send this
machine's token there. The kernel releases the lock with the last process that holds it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

PATTERN = "web-*.url"
MAX_URL = 4096
"""Bytes of a URL that are read."""


def announce(state_dir: Path, url: str) -> BinaryIO:
    """Writes the file and locks it. Web is announced until this process and all its forks close the returned file.

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


def running_web(state_dir: Path) -> str | None:
    """The URL of the running web that started last. Removes the files of webs that have ended."""
    files = sorted(state_dir.glob(PATTERN), key=_started, reverse=True)
    return next(filter(None, map(_url, files)), None)


def _started(file: Path) -> float:
    with suppress(OSError):
        return file.stat().st_mtime
    return 0.0


def _url(path: Path) -> str | None:
    """`None` if no process holds the lock."""
    with suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read(MAX_URL).decode()
        path.unlink()
    return None
