"""Patterns of repositories: a prohibition covers every spelling, and a pattern that can match nothing is refused."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.errors import Forbidden, RepositoryError, RepositoryRefused, RuleError
from builds.private import Private, PrivateRule, words_of
from builds.repository import HostKind, Policy, Repository, canonical, forbids, repository_pattern
from kiln.config import parse
from kiln.errors import ConfigError

HOSTS = {"git.example.edu": HostKind.GITLAB}

BANS = [
    "https://*/EvilOrg/**",
    "https://git.example:443/evil/**",
    "https://bücher.example/**",
    "https://*.bücher.example/Evil/*",
    "https://GitHub.com/Evil/Course.git",
    "https://git.example./evil/**/",
    "https://ada:secret@git.example/evil/course",
    "https://git.example/%65vil/caf%c3%a9",
    "https://git.example/evil/CAFÉ",
    "https://127.1:443/evil/*",
    "**/evil/**",
    "*://git.example/evil/course",
]


@pytest.mark.parametrize(
    ("ban", "urls"),
    [
        (BANS[0], ["https://github.com/evilorg/x", "https://GIT.example/EVILORG/a/b", "https://h:8443/%45vilOrg/x.git"]),
        (BANS[1], ["https://git.example/evil/x", "https://GIT.EXAMPLE.:443/Evil/x/y.git/", "https://git.example:0443/EVIL/x"]),
        (BANS[2], ["https://bücher.example/a/b", "https://BÜCHER.example./a", "https://xn--bcher-kva.example:443/a"]),
        (BANS[3], ["https://git.bücher.example/evil/x", "https://a.xn--bcher-kva.example/EVIL/x"]),
        (BANS[4], ["https://github.com/evil/course", "https://github.com/EVIL/course.git.git", "https://github.com/evil/course.GIT"]),
        (BANS[5], ["https://git.example/evil/x", "https://git.example/evil/x/y/"]),
        (BANS[6], ["https://git.example/evil/course", "https://git.example/Evil/course.GIT"]),
        (BANS[7], ["https://git.example/evil/café", "https://git.example/evil/CAF%C3%89", "https://git.example/evil/cafe\u0301"]),
        (BANS[8], ["https://git.example/evil/caf%C3%A9"]),
        (BANS[9], ["https://127.0.0.1/evil/x", "https://0x7f.1/evil/x"]),
        (BANS[10], ["https://any.example/EVIL/x", "https://github.com/evil/x"]),
        (BANS[11], ["https://git.example/evil/course", "http://git.example/evil/course"]),
    ],
)  # fmt: skip
def test_a_ban_holds_in_every_spelling(ban: str, urls: list[str]) -> None:
    policy = Policy(allowed=["https://**", "https://127.0.0.1/**", "http://git.example/**"], banned=[ban])
    for url in urls:
        with pytest.raises(RepositoryRefused, match="banned"):
            policy.check(canonical(url, HOSTS))
    policy.check(canonical("https://git.example.org/good/course"))


def _either(draw: st.DrawFn, letter: str) -> str:
    """Draw a spelling of a character: in either case, or percent-encoded."""
    written = draw(st.sampled_from([letter.lower(), letter.upper()]))
    return draw(st.sampled_from([written, f"%{ord(written):02X}", f"%{ord(written):02x}"]))


@st.composite
def spellings(draw: st.DrawFn, host: str, path: str) -> str:
    cased = "".join(draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in host)
    written = "/".join("".join(_either(draw, letter) for letter in part) for part in path.split("/"))
    dot, port = draw(st.sampled_from(["", "."])), draw(st.sampled_from(["", ":443", ":0443", ":"]))
    end = draw(st.sampled_from(["", "/", ".git", ".git/", ".GIT", ".git.git", "//"]))
    return f"{draw(st.sampled_from(['https', 'HTTPS']))}://{cased}{dot}{port}/{written}{end}"


@given(st.sampled_from(["github.com", "git.example.edu", "git.example.org"]), st.data())
def test_whoever_spells_a_banned_repository_is_refused(host: str, data: st.DataObject) -> None:
    pattern, url = data.draw(spellings(host, "evil/course")), data.draw(spellings(host, "evil/course"))
    with pytest.raises(RepositoryRefused, match="banned"):
        Policy(banned=[pattern]).check(canonical(url, HOSTS))
    with pytest.raises(Forbidden):
        Private([PrivateRule(match=pattern)], hosts=HOSTS).admit(canonical(url, HOSTS), words_of("user:ada"))


WIDE_DOTS = ".\u3002\uff0e\uff61"


def wide(letter: str) -> str:
    return chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter


@st.composite
def hosts(draw: st.DrawFn, host: str) -> str:
    """Draw a host's name that IDNA maps to `host` (UTS 46): other case, width, dots or normal form."""
    if draw(st.booleans()):
        return host.encode("idna").decode().upper()
    letters = [draw(st.sampled_from([letter, letter.upper(), wide(letter)])) for letter in host]
    written = "".join(draw(st.sampled_from(WIDE_DOTS)) if letter in WIDE_DOTS else letter for letter in letters)
    return unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), written)


@st.composite
def paths(draw: st.DrawFn, path: str) -> str:
    """Draw an equivalent path: other case, either normal form, partly percent-encoded."""
    text = unicodedata.normalize(draw(st.sampled_from(["NFC", "NFD"])), path)
    text = "".join(draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in text)
    return "".join(letter if letter == "/" or draw(st.booleans()) else percent_encoded(letter) for letter in text)


def percent_encoded(letter: str) -> str:
    return "".join(f"%{byte:02x}" for byte in letter.encode())


@st.composite
def addresses(draw: st.DrawFn, host: str, path: str) -> str:
    """Draw an address of the repository in a form that Git or a person would accept."""
    where, what = draw(hosts(host)), draw(paths(path))
    user = draw(st.sampled_from(["", "", "ada@", "ada:pw@", ":@"]))
    port = draw(st.sampled_from(["", ":", ":443", ":0443", ":00443"]))
    end = draw(st.sampled_from(["", "/", ".git", ".GIT", ".git/", ".git.git", "//", "/.", "?x", "#x"]))
    form = draw(st.sampled_from(["https://{}{}{}/{}{}", "HTTPS://{}{}.{}/{}{}", "ssh://{}{}{}/{}{}", "{}{}:{}{}{}"]))
    return form.format(user, where, port if "//" in form else "", what, end)


@given(st.sampled_from(["bücher.example", "git.example.org", "github.com"]), st.data())
def test_no_form_of_an_address_gets_around_a_ban_or_a_rule(host: str, data: st.DataObject) -> None:
    """The address is refused as banned, or as unsupported."""
    path = "évil/course" if host != "github.com" else "evil/course"
    rule = f"https://{host}/{path.split('/', maxsplit=1)[0].title()}/**"
    asked = data.draw(addresses(host, path))
    with pytest.raises(RepositoryError):
        Policy(banned=[rule]).check(canonical(asked, HOSTS))
    private = Private([PrivateRule(match=rule)], hosts=HOSTS)
    with pytest.raises((RepositoryError, Forbidden)):
        private.admit(permitted(asked), words_of("user:ada"))


def permitted(asked: str) -> Repository:
    """Raises RepositoryError for a repository that Kiln fetches for no user."""
    found = canonical(asked, HOSTS)
    Policy().check(found)
    return found


@given(st.sampled_from(["bücher.example", "git.example.org"]), st.data())
def test_a_pattern_bans_however_its_host_is_written(host: str, data: st.DataObject) -> None:
    rule = f"https://{data.draw(hosts(host))}/{data.draw(paths('évil'))}/**"
    with pytest.raises(RepositoryRefused, match="banned"):
        Policy(banned=[rule]).check(canonical(f"https://{host}/évil/course"))


@given(st.sampled_from([*BANS, "https://github.com/*/*", "file:///srv/**", "https://[::1]:8443/a/*", "https://**"]))
def test_what_was_read_is_read_the_same_again(text: str) -> None:
    assert repository_pattern(repository_pattern(text)) == repository_pattern(text)


@given(st.text("aB%4.:/@*-é", min_size=1, max_size=20))
def test_a_pattern_without_wildcards_matches_what_it_names_or_both_are_refused(rest: str) -> None:
    rest = rest.replace("*", "")
    try:
        url = canonical(f"https://{rest}").url
    except RepositoryError:
        return
    assert forbids(repository_pattern(f"https://{rest}"), url)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("github.com/our-org/*", "https://github.com/our-org/*"),
        ("git@github.com:our-org/*", "https://github.com/our-org/*"),
        ("our-org/*", "https://github.com/our-org/*"),
        ("*/our-org/*", "https://*/our-org/*"),
        ("!https://github.com/our-org/*", "https://github.com/our-org/*"),
        ("htps://github.com/our-org/*", "https://github.com/our-org/*"),
        ("https://github.com", "https://github.com/**"),
        ("https://github.com/", "https://github.com/**"),
        ("https://git.example", "https://git.example/**"),
        ("https://github.com/our-org", "https://github.com/our-org/*"),
        ("https://github.com/our-org/course/**", "https://github.com/our-org/course"),
        ("https://github.com/a/b/c", "https://github.com/a/b"),
        ("https://bitbucket.org/team/", "https://bitbucket.org/team/*"),
        ("https://git.example//a", "https://github.com/our-org/*"),
        ("https://git.example/a/../b", "https://github.com/our-org/*"),
        ("https://git.example/%zz", "https://github.com/our-org/*"),
        ("https://git.example:99999/a", "https://github.com/our-org/*"),
        ("https://b*ü.example/a", "https://github.com/our-org/*"),
        ("https://git.example/{a,b}/*", "several patterns"),
        ("https://git.example/a?", "several patterns"),
        ("https://git.example/[ab]/*", "several patterns"),
        ("https://git.example/a b", "several patterns"),
        ("**/evil//x", "**/evil/x"),
        ("", "https://github.com/our-org/*"),
    ],
)
def test_what_can_match_nothing_is_refused_with_the_form_that_would(text: str, form: str) -> None:
    for read in (
        lambda: Policy(banned=[text]),
        lambda: Policy(allowed=[text]),
        lambda: Private([PrivateRule(match=text)]),
    ):
        with pytest.raises(RuleError) as caught:
            read()
        assert re.search(rf"[Ww]rite (one such as )?{re.escape(form)}", str(caught.value)), str(caught.value)
    with pytest.raises(ConfigError, match=r"private\[0\]"):
        parse(f"private: [{{match: '{text}'}}]".encode())


@pytest.mark.parametrize("scheme", ["https", "http", "ssh", "git"])
@pytest.mark.parametrize("host", ["git.example", "git.example:8443"])
def test_a_ban_of_https_holds_for_what_is_served_over_other_schemes(scheme: str, host: str) -> None:
    policy = Policy(allowed=[f"{scheme}://**"], banned=[f"https://{host}/evil/**"])
    with pytest.raises(RepositoryRefused, match="banned"):
        policy.check(canonical(f"{scheme}://{host}/Evil/course"))
    policy.check(canonical(f"{scheme}://{host}/good/course"))


def test_a_ban_of_another_scheme_is_of_that_alone() -> None:
    policy = Policy(allowed=["https://**", "http://**"], banned=["http://**"])
    policy.check(canonical("https://git.example/good/course"))
    with pytest.raises(RepositoryRefused, match="banned"):
        policy.check(canonical("http://git.example/good/course"))
