"""Every dialect round-trips every branch name that Git accepts."""

from __future__ import annotations

import pytest

from eventing.hosts import DIALECTS
from eventing.http import decode, encode
from tests.parts.refnames import NAMES

COMMIT = "1" * 40


@pytest.mark.parametrize("word", sorted(DIALECTS))
@pytest.mark.parametrize("folder", ["heads", "tags"])
def test_a_push_of_every_name(word: str, folder: str) -> None:
    dialect = DIALECTS[word]
    for name in NAMES:
        ref = f"refs/{folder}/{name}"
        url = "https://git.example.edu/scm/ada/page.git"
        event = dialect.pushed(id="1", repository=url, ref=ref, commit=COMMIT, default_branch=name)
        (again,) = decode(*encode(event, "structured"))
        facts = dialect.facts(again)
        assert (facts.ref, facts.commit) == (ref, COMMIT)
