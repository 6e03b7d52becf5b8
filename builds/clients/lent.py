"""The files of a folder of Git credentials that a build may use: a pod mounts only those."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from builds.clients.git import Credential, credentials


def lent_files(folder: str | os.PathLike[str] | None, lent: Callable[[Credential], bool]) -> tuple[str, ...]:
    """Sorted names of the files with at least one permitted credential; empty without the folder."""
    if folder is None or not Path(folder).is_dir():
        return ()
    files = (file for file in sorted(Path(folder).iterdir()) if file.is_file() and not file.name.startswith("."))
    return tuple(file.name for file in files if any(map(lent, credentials(file))))
