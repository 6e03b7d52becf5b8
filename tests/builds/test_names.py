"""Names of builds are a contract, because other programs compute them, too."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Request, build_name
from builds.repository import canonical

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "names.json").read_text())

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def request_of(vector: list[Any]) -> tuple[str, Request]:
    version, instance, repository, commit, subdir, build_args, image = vector
    assert version == 1
    return instance, Request(
        repository=repository, clone_url=repository, commit=commit, subdir=subdir, build_args=build_args, image=image
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors(vector: dict[str, Any]) -> None:
    assert build_name(*request_of(vector["input"])) == vector["name"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vectors_by_another_way(vector: dict[str, Any]) -> None:
    """For strings and objects with ASCII keys, RFC 8785 is JSON with sorted keys, no spaces and minimal escapes."""
    text = json.dumps(vector["input"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert vector["name"].endswith("-" + hashlib.sha256(text.encode()).hexdigest()[:20])


def test_vectors_are_of_canonical_repositories() -> None:
    assert len({vector["name"] for vector in VECTORS}) == len(VECTORS) == 5
    for vector in VECTORS:
        assert canonical(vector["input"][2]).url == vector["input"][2]


@given(
    path=TEXT,
    subdir=TEXT,
    build_args=st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), TEXT),
)
def test_every_name_is_a_dns_label_with_room_for_an_attempt(path: str, subdir: str, build_args: dict[str, str]) -> None:
    name = build_name(
        *request_of([1, "local", f"https://git.example/{path}", "a" * 40, subdir, build_args, "r.example/x"])
    )
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 51
