"""Deletes folders with any content, including that of a hostile repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

DELETING = 600.0
"""Seconds that the deletion of a folder with a large repository may take."""


def remove(folder: Path) -> None:
    """Deletes a folder with its content; a missing folder is not an error. Raises OSError if something remains.

    It uses rm(1). `shutil.rmtree` recurses and holds a descriptor for each level of folders, so a commit with a
    thousand levels, which git accepts, would crash the process that deletes it.
    """
    if subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL, check=False).returncode:  # noqa: S607
        raise OSError(f"{folder} cannot be deleted completely")
