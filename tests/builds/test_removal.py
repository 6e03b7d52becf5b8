"""Removal of the files that a repository may leave behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builds.removal import remove

LEVELS = 3000
"""More than Python's recursion limit, the limit of open files, and the levels that fit into one path."""


def test_a_tree_of_any_depth(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    here = os.open(folder, os.O_RDONLY)
    for _ in range(LEVELS):
        os.mkdir("a", dir_fd=here)
        below = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove(folder)
    assert not folder.exists()


def test_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "folder/link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    remove(tmp_path / "nowhere")


def test_what_stays_is_said() -> None:
    with pytest.raises(OSError, match="completely"):
        remove(Path("/proc/self"))
