"""The ended sessions of the pages, for all web processes on this machine: an empty file for each.

The file's name is a digest, which cannot be used to sign in; its time is the session's expiry. Each new entry also
deletes the expired ones.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from builds.engines import Unavailable


class LocalSessions:
    def __init__(self, folder: Path) -> None:
        """Raises Unavailable."""
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"The folder {folder} cannot be used: {error.strerror}.") from error

    def ended(self, id: str) -> bool:  # noqa: A002
        return (self._folder / id).exists()

    def end(self, id: str, expiry: float) -> None:  # noqa: A002
        """Raises Unavailable."""
        try:
            for old in os.scandir(self._folder):
                with suppress(FileNotFoundError):
                    if old.stat().st_mtime < time.time():
                        Path(old).unlink()
            path = self._folder / id
            path.touch(mode=0o600)
            os.utime(path, (expiry, expiry))
        except OSError as error:
            raise Unavailable(f"The folder {self._folder} cannot be used: {error.strerror}.") from error
