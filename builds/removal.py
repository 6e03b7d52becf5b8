"""Deletes folders, whatever a stranger's repository has put there."""

from __future__ import annotations

import subprocess
from pathlib import Path

DELETING = 600.0
"""Seconds that it may take to delete a folder with a large repository."""


def remove(folder: Path) -> None:
    """Deletes a folder with all that is in it; one that is not there is no error. Raises OSError if something stays.

    By rm(1): `shutil.rmtree` calls itself and holds a descriptor for each level of folders, so a commit with a thousand
    of them, which git takes for nothing special, would end whoever tidies up after it.
    """
    if subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL, check=False).returncode:  # noqa: S607
        raise OSError(f"{folder} cannot be deleted whole")
