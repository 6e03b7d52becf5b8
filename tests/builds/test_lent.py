"""The files of Git credentials that a build's pod mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from builds.clients.lent import lent_files
from builds.private import Private, PrivateRule
from builds.repository import canonical

HOST = "https://git.example.edu"
FILES = {
    "course": "https://kiln:one@git.example.edu/org/course",
    "org": "https://kiln:two@git.example.edu/org",
    "answers": "https://kiln:three@git.example.edu/staff/answers",
    "github": "https://x:four@github.com/our-org",
    ".hidden": "https://kiln:five@git.example.edu/org",
    "broken": "not a credential",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, line in FILES.items():
        (tmp_path / name).write_text(f"{line}\n")
    (tmp_path / "..data").mkdir()
    return tmp_path


def lent(folder: Path, build: str, *rules: PrivateRule) -> tuple[str, ...]:
    private = Private(rules)
    return lent_files(folder, lambda credential: private.may_lend(canonical(build), credential))


def test_a_build_for_staff_has_no_credential_that_is_not_for_them(folder: Path) -> None:
    course = PrivateRule(match=f"{HOST}/org/course", use_by=("group:staff",))
    assert lent(folder, f"{HOST}/org/course", course) == ("answers", "course", "org")
    elsewhere = PrivateRule(match="https://github.com/our-org/**", use_by=("group:staff",))
    assert lent(folder, f"{HOST}/org/course", course, elsewhere) == ("answers", "course", "github", "org")


def test_who_may_have_more_may_not_have_less(folder: Path) -> None:
    rule = PrivateRule(match=f"{HOST}/org/course", use_by=("webhooks", "group:staff"))
    answers = PrivateRule(match="https://github.com/**", use_by=("user:ada",))
    assert lent(folder, f"{HOST}/org/course", rule, answers) == ("answers", "course", "org")


def test_a_file_or_no_folder_lends_nothing(tmp_path: Path) -> None:
    assert lent_files(None, lambda _: True) == lent_files(tmp_path / "absent", lambda _: True) == ()
