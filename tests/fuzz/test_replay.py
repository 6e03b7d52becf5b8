"""Replay every seed and every past finding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS


def test_each_target_has_seeds_and_each_corpus_a_target() -> None:
    assert {path.parent.name for path in CORPUS.glob("*/*")} == set(TARGETS)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_replay(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())
