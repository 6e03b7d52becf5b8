"""Each repository has one canonical URL, and no spelling evades the policy."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from contextlib import suppress

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from builds.errors import Malformed, RepositoryError, RepositoryRefused, RuleError
from builds.repository import (
    HostKind,
    Policy,
    canonical,
    checked_ref,
    commit_id,
    glob_match,
    is_public,
    of_kind,
    short_name,
    subdirectory,
)

HOSTS = {"git.example.edu": HostKind.GITLAB, "127.0.0.1:3000": HostKind.GITHUB}

SPELLINGS = [
    ("https://github.com/a/b", "https://github.com/A/B.git"),
    ("https://github.com/a/b", "https://GitHub.com/a/b/"),
    ("https://github.com/a/b", "HTTPS://github.com.:443/a/b.git/"),
    ("https://github.com/a/b", "https://github.com:/%61/b.git.git"),
    ("https://gitlab.com/group/sub/project", "https://gitlab.com/Group/Sub/Project.git"),
    ("https://bitbucket.org/a/b", "https://bitbucket.org/A/b"),
    ("https://git.example.edu/A/b", "https://GIT.example.edu/A/b.git"),
    ("https://git.example.edu:8443/A", "https://git.example.edu:08443/A"),
    ("https://git.example.org/a%20b/c~d", "https://git.example.org/a%20b/c%7ed"),
    ("https://git.example.org/%C3%A4/b", "https://git.example.org/ä/b"),
    ("https://git.example.org/%C3%A4/b", "https://git.example.org/%c3%a4/b.git"),
    ("https://xn--bcher-kva.example/a", "https://Bücher.example/a"),
    ("https://xn--strae-oqa.example/a", "https://straße.example/a"),
    ("https://127.0.0.1/a", "https://2130706433/a"),
    ("https://127.0.0.1/a", "https://0x7f000001/a"),
    ("https://127.0.0.1/a", "https://0177.0.0.1/a"),
    ("https://127.0.0.1/a", "https://127.1/a"),
    ("https://127.0.0.1/a", "https://0X7F.1/a"),
    ("https://127.0.0.1/a", "https://127.0.0.1./a"),
    ("https://127.0.0.1/a", "https://\uff11\uff12\uff17\u3002\uff10\uff0e\uff10\uff0e\uff11/a"),
    ("https://[::1]/a", "https://[0:0:0:0:0:0:0:1]:443/a"),
    ("http://git.example/a", "http://git.example:80/a.git"),
    ("file:///srv/git/a", "file://localhost/srv/git/a.git"),
]


@pytest.mark.parametrize(("url", "spelling"), SPELLINGS)
def test_two_spellings_are_one_repository(url: str, spelling: str) -> None:
    assert canonical(spelling, HOSTS).url == url
    assert canonical(url, HOSTS).url == url


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://git.example/A", "https://git.example/a"),
        ("https://git.example/a", "http://git.example/a"),
        ("https://git.example/a", "https://git.example:8443/a"),
        ("https://git.example/a/.git", "https://git.example/a"),
        ("https://git.example/a.GIT", "https://git.example/a"),
    ],
)
def test_what_may_differ_is_kept_apart(one: str, other: str) -> None:
    assert canonical(one).url != canonical(other).url


@pytest.mark.parametrize(
    ("url", "clone_url", "kind"),
    [
        ("https://GitHub.com/A/B/", "https://github.com/a/b.git", "github"),
        ("https://gitlab.com/a/b/c", "https://gitlab.com/a/b/c.git", "gitlab"),
        ("https://Git.Example.edu:8443/A/b", "https://git.example.edu:8443/A/b.git", "gitlab"),
        ("http://127.0.0.1:3000/course.git", "http://127.0.0.1:3000/course.git", "github"),
        ("http://127.0.0.1:3001/course.git/", "http://127.0.0.1:3001/course.git/", None),
        ("https://Git.example.org/Ä/b.git", "https://git.example.org/%C3%84/b.git", None),
        ("https://[::1]:8443/a", "https://[::1]:8443/a", None),
        ("file:///srv/git/a.git", "file:///srv/git/a.git", None),
    ],
)
def test_git_is_given_dot_git_on_known_hosts_and_elsewhere_what_was_asked(
    url: str, clone_url: str, kind: str | None
) -> None:
    repository = canonical(url, HOSTS)
    assert repository.clone_url == clone_url
    assert repository.kind == kind
    assert canonical(clone_url, HOSTS).url == repository.url


def test_the_parts_of_an_address() -> None:
    repository = canonical("https://[2001:DB8::1]:8443/a/b.git")
    assert (repository.scheme, repository.host, repository.port) == ("https", "2001:db8::1", 8443)
    assert repository.path == "a/b"
    assert canonical("https://git.example/a").port == 443
    assert canonical("file:///a").port is None


def test_a_configured_host_can_say_otherwise_of_a_known_one_and_capitals_do_not_matter() -> None:
    assert canonical("https://git.example/a", {"Git.Example": HostKind.GITEA}).kind is HostKind.GITEA


def test_a_secret_speaks_for_hosts_of_its_own_kind() -> None:
    assert of_kind(canonical("https://github.com/a/b"), "github")
    assert not of_kind(canonical("https://gitlab.com/a/b"), "github")
    assert not of_kind(canonical("https://git.example.org/a/b"), "github")
    assert of_kind(canonical("https://git.example.edu/a/b", HOSTS), "gitlab")


NOT_ADDRESSES = [
    "",
    "a",
    "/etc/passwd",
    "../a",
    "github.com/a/b",
    "--upload-pack=touch /tmp/x",
    "-oProxyCommand=x",
    "--upload-pack=x",
    "ext::sh -c x",
    "https://",
    "https:///a/b",
    "https://github.com",
    "https://github.com/",
    "https://github.com/a",
    "https://github.com/a/b/tree/main",
    "https://git.example/a//b",
    "https://git.example/a/../b",
    "https://git.example/a/./b",
    "https://git.example/..",
    "https://git.example/%2e%2E/b",
    "https://git.example/.%2e/b",
    "https://git.example/a%2fb",
    "https://git.example/a%5Cb",
    "https://git.example/a%00b",
    "https://git.example/a%0ab",
    "https://git.example/a%7fb",
    "https://git.example/a%",
    "https://git.example/a%zz",
    "https://git.example/a\\b",
    "https://git.example\\@evil.example/a",
    "https://git.example/a b",
    "https://git.example/a\nb",
    "https://git.example/a\u2028b",
    "https://git.example/a\u202eb",
    "https://git.example/\ud800",
    "\thttps://git.example/a",
    "https://git.example/a?b",
    "https://git.example/a#b",
    "https://git.example?a",
    "https://git.example:0/a",
    "https://git.example:65536/a",
    "https://git.example:123456/a",
    "https://git.example:8o/a",
    "https://git.example:\u0661/a",
    "https://git.example:1:2/a",
    "https://git%2eexample/a",
    "https://git..example/a",
    "https://.git.example/a",
    "https://-git.example/a",
    "https://git.example../a",
    "https://[::1/a",
    "https://[::1]x/a",
    "https://[g::1]/a",
    "https://[fe80::1%25eth0]/a",
    "https://256.0.0.1/a",
    "https://1.2.3.4.5/a",
    "https://1.2.3.256/a",
    "https://4294967296/a",
    "https://0x/a",
    "https://127.0.0.08/a",
    "https://1_27.0.0.1/a",
    "https://a.b.1/a",
    f"https://{'a' * 64}.example/a",
    f"https://{'a.' * 130}example/a",
    "https://\u2603-.example/a",
    "https://git.example/" + "a" * 2048,
    "file://host/a",
    "file:///",
]


@pytest.mark.parametrize("url", NOT_ADDRESSES, ids=ascii)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(RepositoryError) as caught:
        canonical(url)
    assert caught.value.status == 400
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("git@github.com:A/b.git", "https://github.com/A/b"),
        ("git@git.example.edu:/group/a", "https://git.example.edu/group/a"),
        ("ssh://git@github.com:22/a/b.git", "https://github.com/a/b"),
        ("git@host:$(x)", "the https one"),
        ("https://user:canary@git.example/a", "must not contain a user name or password"),
        ("https://canary@git.example/a", "must not contain a user name or password"),
        ("https://git.example@canary/a?b", "must not contain a user name or password"),
        ("ext::sh", "remote helpers"),
        ("fd::17", "remote helpers"),
        ("ftp://git.example/a", "not fetch over ftp"),
    ],
)
def test_what_git_would_understand_and_is_never_fetched(url: str, words: str) -> None:
    with pytest.raises(RepositoryRefused, match=re.escape(words)) as caught:
        canonical(url)
    assert caught.value.status == 422
    assert "canary" not in str(caught.value)


@given(st.text() | st.from_regex(r"(https?|ssh|file|ext)(://|::)[^/]{0,20}(/[^/]{0,5}){0,4}", fullmatch=True))
@example("https://0x7f.1/%41.git.git//")
@example("https://github.com/%C3%89/B")
@example("https://[::ffff:1.2.3.4]/x")
@example("https://a/.git.git")
def test_a_canonical_url_is_its_own_and_nothing_else_is_raised(text: str) -> None:
    try:
        repository = canonical(text)
    except RepositoryError:
        return
    assert canonical(repository.url).url == repository.url
    assert canonical(repository.clone_url).url == repository.url
    assert re.fullmatch(r"[!-~]+", repository.clone_url)
    assert not repository.clone_url.startswith("-")
    assert "@" not in repository.clone_url.split("/")[2]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "0x{:x}", "0{:o}"]), st.integers(1, 4))
def test_every_spelling_of_an_ipv4_address_is_one_host(number: int, form: str, count: int) -> None:
    assume(form != "0{:o}" or number)
    heads = [(number >> 8 * (3 - place)) & 0xFF for place in range(count - 1)]
    tail = number & (1 << 8 * (5 - count)) - 1
    text = ".".join(form.format(part) for part in (*heads, tail))
    assert canonical(f"https://{text}/a").host == str(ipaddress.IPv4Address(number))


# Policy


def refusal(url: str, *allowed: str, banned: tuple[str, ...] = ()) -> str | None:
    try:
        Policy(allowed, banned).check(canonical(url, HOSTS))
    except RepositoryRefused as error:
        return str(error)
    return None


def test_public_https_is_allowed_by_default_and_nothing_else() -> None:
    assert refusal("https://github.com/a/b") is None
    assert refusal("https://1.1.1.1/a") is None
    assert "Use https" in (refusal("http://git.example/a") or "")
    assert "Use https" in (refusal("file:///etc") or "")
    assert "Use https" in (refusal("git://git.example/a") or "")
    assert "Use https" in (refusal("ssh://git.example/a") or "")


PRIVATE = [
    "localhost",
    "localhost.",
    "LOCALHOST",
    "x.localhost",
    "127.0.0.1",
    "2130706433",
    "0x7f000001",
    "0177.1",
    "127.1",
    "0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "2852039166",
    "224.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::127.0.0.1]",
    "168.63.129.16",
    "[::ffff:168.63.129.16]",
    "192.0.0.8",
    "192.0.0.9",  # releases of Python classify these differently
    "192.0.0.192",
    "192.88.99.1",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::1.1.1.1]",
    "[2002:101:101::1]",
    "[2001::1]",
    "[2001:20::1]",
    "[3fff::1]",
    "[64:ff9b:1::1]",
    "[2002:7f00:1::]",
    "[2002:c0a8:101::1]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
    "[fe80::1]",
    "[fd00::1]",
    "[ff02::1]",
    "[2001:db8::1]",
]


@pytest.mark.parametrize("host", PRIVATE)
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_private_hosts_are_refused_in_every_spelling(scheme: str, host: str) -> None:
    url = f"{scheme}://{host}/latest/meta-data"
    assert "private network" in (refusal(url) or "")
    assert "private network" in (refusal(url, "https://**", "http://**", "https://*/**", "**") or "")


SPECIAL = {
    **dict.fromkeys(["192.31.196.1", "192.52.193.1", "192.175.48.1", "2620:4f:8000::1"], True),  # AS112, AMT
    **dict.fromkeys(["192.0.0.9", "192.0.0.10", "192.0.0.170", "192.0.0.255", "192.88.99.2"], False),
    **dict.fromkeys(["2001:1::1", "2001:1::3", "2001:3::1", "2001:4:112::1", "2001:30::1", "2001:1ff:ffff::1"], False),
    **dict.fromkeys(["100::1", "100:0:0:1::1", "5f00::1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "fec0::1"], False),
    **dict.fromkeys(["2001:200::1", "3ffe::1", "3fff:1000::1", "2003::1", "2001:db9::1"], True),
    **dict.fromkeys(["::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "::ffff:192.0.0.9", "0:0:0:0:0:ffff:7f00:1"], False),
    **dict.fromkeys(["198.17.255.255", "198.20.0.0", "223.255.255.255", "172.32.0.0", "100.128.0.0"], True),
    **dict.fromkeys(["198.18.0.0", "198.19.255.255", "224.0.0.0", "255.255.255.254", "100.127.255.255"], False),
}
"""Addresses of IANA's special-purpose registries that releases of Python classify differently, and ends of ranges.

The classification is by `is_global` and `is_private`.
"""


@pytest.mark.parametrize(("address", "public"), SPECIAL.items())
def test_every_python_says_the_same_of_special_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) == public


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "192.0.1.1", "168.63.129.17"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_private_host_is_allowed_where_a_pattern_names_it() -> None:
    assert refusal("http://127.0.0.1:3000/a/b", "http://127.0.0.1:*/**") is None
    assert refusal("http://[::1]:3000/a/b", "http://[::1]:3000/**") is None
    assert refusal("https://localhost/a", "https://localhost/*") is None
    assert refusal("http://2130706433:3000/a/b", "http://127.0.0.1:3000/**") is None
    assert refusal("http://127.0.0.1:3000/a/b", "http://127.0.0.1:3001/**") is not None
    assert refusal("http://127.0.0.1:3000/a/b", "https://127.0.0.1:3000/**") is not None
    assert refusal("http://127.0.0.1:3000/a/b", "http://127.0.0.*:3000/**") is not None
    assert refusal("https://127.0.0.1/a/b", "https://127.0.0.1**") is not None


def test_another_scheme_is_allowed_where_a_pattern_names_it() -> None:
    assert refusal("http://git.example/a", "http://git.example/*") is None
    assert refusal("http://git.example/a", "**") is not None
    assert refusal("http://git.example/a", "*://git.example/*") is not None
    assert refusal("https://git.example/a", "*://git.example/*") is None
    assert refusal("file:///srv/git/a", "file:///srv/git/**") is None
    assert refusal("file:///etc", "file:///srv/git/**") is not None


def test_patterns_are_read_as_canonical_urls_are_written() -> None:
    assert refusal("https://github.com/our-org/b", "https://GitHub.com/Our-Org/*") is None
    assert refusal("https://github.com/a/b", "https://github.com/A/B.git") is None
    assert refusal("https://git.example/our/b", "https://git.example/Our/*") is not None
    assert "is not allowed here" in (refusal("https://github.com/other/b", "https://github.com/our-org/*") or "")
    assert "banned" in (refusal("https://github.com/Evil/b", banned=("https://github.com/evil/**",)) or "")
    assert refusal("https://github.com/evil/b", "https://**", banned=("https://github.com/EVIL/*",)) is not None
    with pytest.raises(RuleError, match="scheme"):
        Policy(["github.com/our-org/*"])


def test_a_name_that_leads_into_a_private_network_is_permitted_only_where_it_is_named() -> None:
    repository = canonical("https://git.internal/a")
    assert Policy().permits_address(repository, "1.1.1.1")
    assert not Policy().permits_address(repository, "127.0.0.1")
    assert not Policy().permits_address(repository, ipaddress.ip_address("::ffff:10.0.0.1"))
    assert not Policy(["https://*.internal/**"]).permits_address(repository, "10.0.0.1")
    assert not Policy(["https://other.internal/**", "https://**"]).permits_address(repository, "10.0.0.1")
    assert Policy(["https://git.internal/**"]).permits_address(repository, "10.0.0.1")


# Globs


@pytest.mark.parametrize(
    ("pattern", "text", "is_match"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a", "ba", False),
        ("a*", "abc", True),
        ("a*", "ab/c", False),
        ("a/*", "a/", True),
        ("*a*b", "aab", True),
        ("**a*b", "a/ab", True),
        ("a**", "a/b/c", True),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("**/c", "c", True),
        ("**/c", "a/b/c", True),
        ("**/c", "bc", False),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/b/b/c", True),
        ("a/**/c", "ac", False),
        ("a**/c", "ab/b/c", True),
        ("a**/c", "a", False),
        ("release/*", "release/1", True),
        ("release/*", "release/1/2", False),
        ("v*.[0-9]", "v1.[0-9]", True),
        ("v*.[0-9]", "v1.2", False),
        ("a.c", "abc", False),
        ("***", "a/b", True),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_globs(pattern: str, text: str, is_match: bool) -> None:
    assert glob_match(pattern, text) is is_match


PIECES = st.lists(st.sampled_from(["a", "b", "/", "*", "**", "."]), max_size=8).map("".join)


@given(PIECES, st.text("ab/.", max_size=10))
def test_globs_are_what_a_regular_expression_would_say_and_anchored(pattern: str, text: str) -> None:
    words = {"**/": "(?:.*/)?", "*": "[^/]*", "/": "/", ".": r"\."}
    pieces = re.split(r"((?:^|(?<=/))\*\*/|\*+|[/.])", pattern)
    expression = "".join(words.get(piece, ".*" if piece.startswith("**") else piece) for piece in pieces)
    assert glob_match(pattern, text) == (re.fullmatch(expression, text) is not None)


def test_globs_take_no_longer_than_the_text_is_long() -> None:
    assert not glob_match("*a*a*a*a*a*a*a*a*a*b", "a" * 2000)


# Refs, commits, folders


REFS = ["main", "feature/x", "v1.0", "refs/heads/main", "refs/pull/1/head", "ü", "a@b", "+x", "a#b", "a%b", "it's", '"']
REFS += ["refs/stash", "refs/heads/@", "refs/heads/-x", "a\u200cb", "a\u00a0b", "\U0001f680", "\u202eab", "a\x85"]
REFS += ["refs/heads/" + "a" * 250, "refs/heads/" + "\U0001f680" * 250, "\ufffe", "a\u2028b", "x" * 1024]


@pytest.mark.parametrize("ref", REFS, ids=ascii)
def test_refs(ref: str) -> None:
    assert checked_ref(ref) == ref


@given(st.text(min_size=1, max_size=40).filter(lambda text: "\0" not in text))
@settings(max_examples=50)
def test_a_ref_is_what_git_takes(text: str) -> None:
    """The reference is git-check-ref-format(1), applied to the full name."""
    ref = f"refs/heads/{text}"
    with suppress(UnicodeEncodeError):
        taken = subprocess.run(["git", "check-ref-format", ref], check=False).returncode == 0
        assert taken == _is_ref(ref)


def _is_ref(text: str) -> bool:
    try:
        return checked_ref(text) == text
    except Malformed:
        return False


BAD_REFS = ["", "-x", "--upload-pack=x", "a\nb", "a b", "a..b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a@{1}"]
BAD_REFS += [
    "@",
    ".a",
    "a/.b",
    "a.lock",
    "a.lock/b",
    "a.",
    "a/",
    "/a",
    "a//b",
    "a\x00",
    "a\x7f",
    "a" * 1025,
]
BAD_REFS += ["\ud800", "refs/", "refs//x", "\U0001f680" * 257]


@pytest.mark.parametrize("ref", BAD_REFS, ids=ascii)
def test_what_is_no_ref(ref: str) -> None:
    with pytest.raises(Malformed) as caught:
        checked_ref(ref)
    assert caught.value.status == 400


def test_what_people_call_a_ref() -> None:
    assert [short_name(ref) for ref in ("refs/heads/a/b", "refs/tags/v1", "refs/pull/1/head", "main")] == [
        "a/b",
        "v1",
        "pull/1/head",
        "main",
    ]


def test_commits() -> None:
    assert commit_id("A" * 40) == "a" * 40
    assert commit_id("1" * 64) == "1" * 64
    for text in ("a" * 39, "a" * 41, "g" * 40, "0" * 40, "", "a" * 40 + "\n", "main"):
        with pytest.raises(Malformed):
            commit_id(text)


@pytest.mark.parametrize(
    ("text", "folder"), [("", ""), (".", ""), ("./a//b/.", "a/b"), ("a b/ü", "a b/ü"), ("..a", "..a")]
)
def test_folders(text: str, folder: str) -> None:
    assert subdirectory(text) == folder


@pytest.mark.parametrize(
    "text",
    ["..", "a/..", "../a", "a/../../b", "/a", "/", "a\\b", "a\nb", "\x00", "-a", "./--x", "a" * 1025, "\ud800"],
    ids=ascii,
)
def test_folders_outside(text: str) -> None:
    with pytest.raises(Malformed):
        subdirectory(text)


@given(st.text())
def test_nothing_else_is_raised(text: str) -> None:
    for read in (checked_ref, commit_id, subdirectory):
        with suppress(Malformed):
            read(text)
