"""Access to stored credentials: their users, the viewers of builds made with them, and submodules fetched with them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from builds.errors import Forbidden, RuleError
from builds.private import Private, PrivateRule, words_of
from builds.repository import Repository, canonical
from tests.builds.plan_factories import build, cause, pushed

COURSE = "https://git.example.edu/org/course"
STORED = ("https://git.example.edu/org/course", "https://git.example.edu/org/answers")


def repository(url: str = COURSE) -> Repository:
    return canonical(url)


def stored(asked: Repository) -> bool:
    return asked.url in STORED


def private(**rules: Sequence[str]) -> Private:
    """Rules for repositories, by the last part of their path."""
    made = [
        PrivateRule(match=f"https://git.example.edu/org/{name}", use_by=tuple(words)) for name, words in rules.items()
    ]
    return Private(made, stored=stored)


@pytest.mark.parametrize(
    ("by", "groups", "words"),
    [
        ("webhook:github", [], {"webhooks"}),
        ("sync", [], {"webhooks"}),
        ("user:ada", ["staff", "students"], {"user:ada", "group:staff", "group:students"}),
        ("token:ci", [], {"token:ci"}),
        ("user:sync", [], {"user:sync"}),
        (None, [], set()),
    ],
)
def test_who_somebody_is(by: str | None, groups: list[str], words: set[str]) -> None:
    assert words_of(by, groups) == words


@pytest.mark.parametrize("word", ["ada", "", "user:", "webhook", "group: staff", "role:admin"])
def test_what_is_nobody_is_no_rule(word: str) -> None:
    with pytest.raises(RuleError, match="is not a user"):
        private(course=[word])


def test_where_nobody_is_named_webhooks_alone_use_what_is_stored() -> None:
    rules = private()
    assert rules.admit(repository(), words_of("webhook:gitlab")) is True
    assert rules.admit(repository(), words_of("sync")) is True
    for by in ("user:ada", "token:ci", None):
        assert rules.admit(repository(), words_of(by)) is False
    assert rules.admit(repository(f"{COURSE}-public"), words_of("webhook:gitlab")) is False, "there is none for it"


def test_who_is_named_uses_it_and_nobody_else_has_it_built() -> None:
    rules = private(course=["webhooks", "group:staff", "token:ci"])
    for by, groups in (("webhook:gitlab", ()), ("user:ada", ("staff",)), ("token:ci", ())):
        assert rules.admit(repository(), words_of(by, groups)) is True
    for by, groups in (("user:ada", ("students",)), ("user:staff", ()), ("token:other", ()), (None, ())):
        with pytest.raises(Forbidden, match="private"):
            rules.admit(repository(), words_of(by, groups))
    with pytest.raises(Forbidden):
        private(course=["group:staff"]).admit(repository(), words_of("webhook:gitlab"))
    assert rules.admit(repository(f"{COURSE}-public"), words_of(None)) is False


def test_several_rules_for_one_repository_add_up() -> None:
    rules = Private(
        [
            PrivateRule(match="https://git.example.edu/**", use_by=("group:staff",)),
            PrivateRule(match="https://git.example.edu/org/*", use_by=("user:ada",)),
        ]
    )
    assert rules.admit(repository(), words_of("user:ada"))
    assert rules.admit(repository(), words_of("user:grace", ["staff"]))


def test_who_may_use_it_sees_what_was_built_with_it() -> None:
    made = build("b", pushed("1"), repository=COURSE)
    named = private(course=["webhooks", "group:staff"])
    assert named.shows(made, words_of("user:ada", ["staff"]), admin=False)
    assert not named.shows(made, words_of("user:kim"), admin=False)
    assert not named.shows(made, words_of("token:ci"), admin=True), "an admin is not among those whom it names"


def test_where_nobody_is_named_an_admin_sees_it() -> None:
    made, rules = build("b", pushed("1"), repository=COURSE), private()
    assert rules.shows(made, words_of("token:ci"), admin=True)
    assert not rules.shows(made, words_of("user:kim"), admin=False)


def test_what_somebody_had_without_a_credential_is_for_everybody() -> None:
    rules = private()
    assert rules.shows(build("b", pushed("1"), cause("2"), repository=COURSE), words_of("user:kim"), admin=False)
    public = build("b", pushed("1"), repository=f"{COURSE}-public")
    assert rules.shows(public, words_of("user:kim"), admin=False)


def test_a_submodule_s_credential_is_for_builds_of_those_who_may_have_both() -> None:
    rules = private(course=["webhooks", "group:staff"], answers=["group:staff"], exam=["webhooks", "group:staff"])
    course, answers, exam = (
        repository(f"https://git.example.edu/org/{name}") for name in ("course", "answers", "exam")
    )
    assert rules.lends(course, course)
    assert rules.lends(course, exam)
    assert not rules.lends(course, answers), "a webhook may not have it"
    assert rules.lends(answers, course)
    assert not rules.lends(repository(f"{COURSE}-public"), answers)
    assert private().lends(course, answers), "both are for webhooks"
