"""The badge of a repository, and the builds that a search finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from builds.badge import Standing, standing
from builds.build import Build, State
from builds.search import anything, by_ref, by_text
from builds.transitions import change
from tests.builds.plan_factories import build, cause

REFS = ("refs/heads/main", "refs/heads/dev", "refs/tags/main", None)


def asked(state: State, ref: str | None, *, default: bool = False, foreign: bool = False) -> Build:
    one = cause(ref=ref, default=default, foreign=foreign)
    return build("b", one, state=state, answered=(one.key,) if state.ended else ())


builds = st.lists(
    st.builds(asked, st.sampled_from(State), st.sampled_from(REFS), default=st.booleans(), foreign=st.booleans()),
    max_size=6,
)


@given(builds, st.sampled_from(["main", "refs/heads/main", "dev", None]))
def test_it_is_the_latest_result(found: list[Build], ref: str | None) -> None:
    """Compare with a plain statement of the rule.

    Pull requests from forks do not count. The ref must match. Results precede builds under way, newest first.
    """
    known = [one for one in found if not one.causes[0].foreign]
    if ref is None:
        ours = [one for one in known if one.causes[0].default] or known
    else:
        ours = [one for one in known if one.causes[0].ref in (ref, f"refs/heads/{ref}", f"refs/tags/{ref}")]
    results = [one for one in ours if one.state in (State.SUCCEEDED, State.FAILED)]
    waiting = [one for one in ours if not one.state.ended]
    expected = next((one.state.value for one in (*results, *waiting)), "unknown")
    assert standing(found, ref).value == expected


@given(builds, st.sampled_from(["main", None]))
def test_a_strangers_builds_change_nothing(found: list[Build], ref: str | None) -> None:
    strangers = [asked(state, "refs/heads/main", default=True, foreign=True) for state in State]
    assert standing([*strangers, *found], ref) is standing(found, ref)


def test_of_nothing_nothing_is_known() -> None:
    assert standing([], None) is Standing.UNKNOWN
    assert standing([asked(State.CANCELLED, "refs/heads/main")], "main") is Standing.UNKNOWN


@given(builds, st.lists(st.sampled_from(["main", "DEV", "queued", "nowhere", "\u00df"]), max_size=3))
def test_more_words_find_less_and_case_does_not_matter(found: list[Build], words: list[str]) -> None:
    def names(text: str) -> list[int]:
        return [place for place, one in enumerate(found) if by_text(text)(one)]

    assert names(" ".join(words)) == names(" ".join(words).swapcase())
    assert {*names(" ".join(words))} == {*range(len(found))}.intersection(*({*names(word)} for word in words))


def test_a_commit_is_found_by_its_beginning_only() -> None:
    made = asked(State.QUEUED, "refs/heads/main")
    digits = "0123456789" * 4
    made = change(made, request=change(made.request, commit=digits))
    assert by_text(digits[:7])(made)
    assert by_text(digits)(made)
    assert not by_text(digits[1:8])(made)
    assert by_text("")(made) is anything(made) is True


def test_a_ref_is_found_by_each_of_its_names() -> None:
    pull = asked(State.QUEUED, "refs/pull/7/head")
    assert by_ref("pull/7/head")(pull)
    assert by_ref("refs/pull/7/head")(pull)
    assert not by_ref("7")(pull)
