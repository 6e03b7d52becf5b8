"""The repository and ref that BinderHub's `<provider>/<spec>` names, in every encoding that its clients use."""

from __future__ import annotations

import re

import pytest

from builds.errors import CannotBuild, Malformed, RequestError
from builds.repository import canonical
from handlers.providers import PROVIDERS, advice, source

PAGE = "https://github.com/ada/page"
COURSE = "https://gitlab.com/team/sub/course"


@pytest.mark.parametrize(
    ("spec", "repository", "ref"),
    [
        ("gh/ada/page/HEAD", PAGE, "HEAD"),
        ("gh/ada/page/HEAD/", PAGE, "HEAD"),
        ("gh/ada/page.git/main", PAGE, "main"),
        ("gh/ada/page/feature/x/y", PAGE, "feature/x/y"),
        ("gh/ada/page/feature%2Fx", PAGE, "feature/x"),
        ("gh/ada%2Fpage/HEAD", PAGE, "HEAD"),
        ("gh/ada%2Fpage/feature/x", PAGE, "feature/x"),
        ("gh/ada%252Fpage/HEAD", PAGE, "HEAD"),
        ("gh/https%3A%2F%2Fgithub.com%2Fada%2Fpage/HEAD", PAGE, "HEAD"),
        ("gh/github.com%2Fada%2Fpage/HEAD", PAGE, "HEAD"),
        ("gl/team%2Fsub%2Fcourse/main", COURSE, "main"),
        ("gl/team%2fsub%2fcourse/release/1", COURSE, "release/1"),
        ("gl/team%252Fsub%252Fcourse/main", COURSE, "main"),
        ("gl/team/course/main", "https://gitlab.com/team/course", "main"),
        ("gl/https%3A%2F%2Fgitlab.com%2Fteam%2Fsub%2Fcourse/main", COURSE, "main"),
        ("git/https%3A%2F%2Fgithub.com%2Fada%2Fpage/HEAD", PAGE, "HEAD"),
        ("git/https%3A%2F%2Fgithub.com%2Fada%2Fpage.git/feature/x", PAGE, "feature/x"),
        ("git/https%253A%252F%252Fgithub.com%252Fada%252Fpage/v1", PAGE, "v1"),
        ("git/https%3A%2F%2Fgit.example%2Fa%2520b/v1", "https://git.example/a%20b", "v1"),
        ("gh/ada/page//HEAD", PAGE, "HEAD"),
        ("gh//ada/page/HEAD", PAGE, "HEAD"),
        ("gh/ada//page///feature//x//", PAGE, "feature/x"),
        ("gh/ada%2Fpage//HEAD", PAGE, "HEAD"),
        ("gh/ada%2F%2Fpage/%2FHEAD", PAGE, "HEAD"),
        ("gh/%2Fada%2Fpage/HEAD", PAGE, "HEAD"),
        ("gl/team%2Fsub%2F%2Fcourse//main", COURSE, "main"),
        ("git//https%3A%2F%2Fgithub.com%2Fada%2Fpage//HEAD", PAGE, "HEAD"),
        ("gist//ada//0123abcd", "https://gist.github.com/ada/0123abcd", "HEAD"),
        ("gist/ada/0123abcd", "https://gist.github.com/ada/0123abcd", "HEAD"),
        ("gist/ada/0123abcd/", "https://gist.github.com/ada/0123abcd", "HEAD"),
        ("gist/ada%2F0123abcd", "https://gist.github.com/ada/0123abcd", "HEAD"),
        ("gist/ada/0123abcd/main", "https://gist.github.com/ada/0123abcd", "main"),
    ],
)
def test_what_a_spec_names(spec: str, repository: str, ref: str) -> None:
    provider, _, rest = spec.partition("/")
    found = source(provider, rest)
    assert (canonical(found.repository).url, found.ref) == (repository, ref)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gh/ada", "/build/gh/"),
        ("gh/ada/page", "/build/gh/"),
        ("gh/ada%2Fpage", "/build/gh/"),
        ("gh/ada/page//", "/build/gh/"),
        ("gl/team%2Fcourse", "%2F"),
        ("git/https%3A%2F%2Fgithub.com%2Fada%2Fpage", "%3A%2F%2F"),
        ("git/https://github.com/ada/page/HEAD", "percent-encoded"),
        ("git/https:/github.com/ada/page/HEAD", "percent-encoded"),
        ("gh/https://github.com/ada/page/HEAD", "percent-encoded"),
        ("gh//", "/build/gh/"),
        ("gh/https%3A%2F%2Fevil.example%2Fada%2Fpage/HEAD", "/build/git/"),
        ("gl/https%3A%2F%2Fgithub.com%2Fada%2Fpage/HEAD", "/build/git/"),
    ],
)
def test_what_names_nothing_is_told_the_form(spec: str, said: str) -> None:
    provider, _, rest = spec.partition("/")
    with pytest.raises(Malformed, match=re.escape(said)):
        source(provider, rest)


@pytest.mark.parametrize("provider", ["zenodo", "figshare", "hydroshare", "dataverse", "ckan", "", "GH", "x" * 999])
def test_other_providers_are_named_as_such(provider: str) -> None:
    with pytest.raises(CannotBuild, match="gh, gist, git, gl"):
        source(provider, "10.5281/zenodo.3242074")


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
@pytest.mark.parametrize("spec", ["%00/%00/x", "%2F%2F/x/y", "../../etc/x", "%2e%2e/x/y", "%/%/%"])
def test_nonsense_is_refused_here_or_by_the_policy(provider: str, spec: str) -> None:
    with pytest.raises(RequestError):
        canonical(source(provider, spec).repository)


def test_a_page_takes_what_there_is() -> None:
    shown = {provider.id: provider.display for provider in PROVIDERS.values()}
    assert {each["displayName"] for each in shown.values()} == {"GitHub", "GitLab", "Git repository", "GitHub Gist"}
    assert [name for name, each in shown.items() if each["repo"]["urlEncode"]] == ["git", "gl"]
    for name, spec in (("gh", "a/b/c"), ("gist", "a/b"), ("git", "https%3A%2F%2Fa/b"), ("gl", "a%2Fb/c")):
        assert re.fullmatch(shown[name]["spec"]["validateRegex"], spec)
    for name, given in (("gh", "https://github.com/a/b"), ("gl", "https://gitlab.com/a/b"), ("gh", "a/b")):
        pattern = shown[name]["detect"]["regex"].replace("?<", "?P<")
        assert re.match(pattern, given)["repo"] == "a/b"  # type: ignore[index]


@pytest.mark.parametrize(("ref", "word"), [("abc1234", ""), ("abc123", "HEAD"), ("nowhere", "HEAD")])
def test_advice(ref: str, word: str) -> None:
    assert word == "" == advice(ref) or word in advice(ref)
