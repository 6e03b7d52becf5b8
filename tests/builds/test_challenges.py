"""Authentication challenges as registries send them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.clients.challenges import Challenge, challenges

TOKENS = st.text(string.ascii_letters + string.digits + "-._~", min_size=1, max_size=8)
VALUES = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=12)
PARAMETERS = st.dictionaries(TOKENS.map(str.lower), VALUES, max_size=4)
CHALLENGES = st.lists(st.builds(Challenge, TOKENS.map(str.lower), PARAMETERS), max_size=4)


def written(challenge: Challenge) -> str:
    escaped = {name: value.replace("\\", r"\\").replace('"', r"\"") for name, value in challenge.parameters.items()}
    return f"{challenge.scheme} " + ", ".join(f'{name.upper()} = "{value}"' for name, value in escaped.items())


@given(CHALLENGES)
def test_what_is_written_is_read(wanted: list[Challenge]) -> None:
    assert challenges(", ".join(map(written, wanted))) == wanted


@given(st.text(max_size=60))
def test_any_text_has_its_challenges_or_none(text: str) -> None:
    for challenge in challenges(text):
        assert challenge.scheme == challenge.scheme.lower() != ""


LONG = ['a="' * 5000, "," * 20_000, 'Bearer realm="' + "\\" * 20_000, "a " * 10_000, "=" * 9999]


@pytest.mark.parametrize("text", LONG)
def test_a_long_bad_header_takes_no_long_time(text: str) -> None:
    challenges(text)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Bearer realm="https://a/t?x=1,2",service=s', [("bearer", {"realm": "https://a/t?x=1,2", "service": "s"})]),
        ("BASIC REALM=x", [("basic", {"realm": "x"})]),
        ("Basic", [("basic", {})]),
        ("NTLM TlRM==, Basic realm=x", [("ntlm", {"tlrm": "="}), ("basic", {"realm": "x"})]),
        ('Bearer realm="https://a/t', [("bearer", {"realm": "https://a/t"})]),
        ("", []),
    ],
)
def test_shapes(header: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert [(one.scheme, one.parameters) for one in challenges(header)] == found
