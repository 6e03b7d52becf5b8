"""Each repository has one image name, and no two repositories share one."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Image, Request
from builds.errors import Forbidden, Malformed, RuleError
from builds.image import ImagePolicy, image_for, is_reserved, legal_tag, tag_for, tag_owner
from builds.repository import HostKind, Repository, canonical

HOSTS = {"git.example.edu": HostKind.GITLAB, "ghe.example.edu": HostKind.GITHUB}
COMMIT = "50533eb470ee6c24e872043d30b2fee463d6943f"
URL = "https://github.com/a/b"


@pytest.mark.parametrize(
    ("prefix", "url", "readable"),
    [
        ("quay.io/2i2c/pre-", "https://github.com/binder-examples/requirements", "binder-examples-requirements"),
        ("r.example/", "https://github.com/A/B.git", "a-b"),
        ("r.example/", "https://gitlab.com/group/sub-group/x", "group-sub-group-x"),
        ("r.example/", "https://ghe.example.edu/A/B", "a-b"),
        ("r.example/", "https://git.example.edu/_a/caf\u00e9", "a-caf-c3-a9"),
        ("r.example/", "https://git.example.edu/~/_", "repository"),
        ("r.example/", f"https://git.example.edu/{'a' * 59}/b", "a" * 59),
        ("r.example/", f"https://git.example.edu/{'a' * 300}/b", "a" * 60),
    ],
)
def test_names_of_images(prefix: str, url: str, readable: str) -> None:
    repository = canonical(url, HOSTS)
    digest = hashlib.sha256(repository.url.encode()).hexdigest()[:10]
    assert image_for(prefix, repository) == f"{prefix}{readable}-{digest}"


@pytest.mark.parametrize(
    "urls",
    [
        ("https://github.com/course-team/stats", "https://github.com/course/team-stats"),
        ("https://gitlab.com/a/b/c", "https://gitlab.com/a/b-c", "https://gitlab.com/a-b/c"),
        ("https://git.example.edu/a/b/c", "https://gitlab.com/a/b/c", "https://other.example.edu/a/b/c"),
        ("https://git.example.edu/a/b", "https://git.example.edu:8443/a/b", "http://git.example.edu/a/b"),
        ("https://ghe.example.edu/A/b", "https://ghe.example.edu/a/b"),
        ("https://ghe.example.edu/a_b", "https://ghe.example.edu/a.b", "https://ghe.example.edu/a/b"),
        tuple(f"https://git.example.edu/{'a' * 100}/{end}" for end in "xyz"),
    ],
)
def test_no_two_repositories_share_an_image(urls: tuple[str, ...]) -> None:
    hosts = {**HOSTS, "other.example.edu": HostKind.GITLAB}
    assert len({image_for("r.example/", canonical(url, hosts)) for url in urls}) == len(urls)


PATHS = st.lists(st.text("abAB-_.~1", min_size=1, max_size=9).filter(lambda text: text.strip(".")), min_size=2).map(
    "/".join
)
URLS = st.builds(
    "https://{}/{}".format, st.sampled_from(["git.example.edu", "ghe.example.edu", "git.example.org"]), PATHS
)


@given(URLS, URLS)
def test_one_image_is_one_repository(one: str, other: str) -> None:
    first, second = canonical(one, HOSTS), canonical(other, HOSTS)
    assert (image_for("r.example/", first) == image_for("r.example/", second)) == (first.url == second.url)


@given(
    st.sampled_from(["r.example/", "127.0.0.1:5000/kiln/", "r.example/pre-", "r.example/" + "a" * 80 + "/"]), URLS, URLS
)
def test_every_repository_has_a_legal_image_that_no_other_may_ask_for(prefix: str, url: str, other: str) -> None:
    repository, stranger = canonical(url, HOSTS), canonical(other, HOSTS)
    policy = ImagePolicy(prefix, ["r.example/**", "127.0.0.1:5000/**"])
    image = policy.own(repository)
    assert policy.check(image, repository) == image
    assert len(image) <= 255
    if stranger.url != repository.url:
        with pytest.raises(Forbidden, match="the form of a repository's own image"):
            policy.check(image, stranger)


def test_tags() -> None:
    assert tag_for(COMMIT) == tag_for(COMMIT, "", {}) == COMMIT
    canonical_json = json.dumps(["a", {"X": "1", "b": "2"}], sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(canonical_json.encode()).hexdigest()[:16]
    assert tag_for(COMMIT, "a", {"b": "2", "X": "1"}) == f"{COMMIT}-{expected}"
    different = {tag_for(COMMIT), tag_for(COMMIT, "a"), tag_for(COMMIT, "b"), tag_for(COMMIT, "", {"a": ""})}
    assert len(different) == 4
    assert all(map(is_reserved, different))


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("main", "main"),
        ("feature/x", "feature-x"),
        ("v1.0_a-b", "v1.0_a-b"),
        ("ünï", "_n-"),
        (".x", "_x"),
        ("-x", "_x"),
        ("a" * 200, "a" * 128),
        ("a:b@c\n", "a-b-c-"),
    ],
)
def test_legal_tags(text: str, tag: str) -> None:
    assert legal_tag(text) == tag


@given(st.text(min_size=1))
def test_every_text_makes_a_legal_tag(text: str) -> None:
    tag = legal_tag(text)
    assert re.fullmatch(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", tag)
    assert legal_tag(tag) == tag


def test_an_empty_tag_is_none() -> None:
    with pytest.raises(Malformed):
        legal_tag("")


@pytest.mark.parametrize(
    ("names", "owner"),
    [
        (["heads/main"], "heads/main"),
        (["heads/v1", "tags/v1"], "heads/v1"),
        (["heads/a/b", "heads/a-b"], "heads/a-b"),
        (["heads/a/b", "tags/a-b"], "tags/a-b"),
        (["heads/a/b", "heads/a+b", "tags/a/b"], "heads/a+b"),
        (["heads/\u212b", "heads/\u00c5", "heads/_"], "heads/_"),
        (["heads/\u65e5", "heads/\u4e2d"], "heads/\u4e2d"),
        ([f"heads/{'a' * 128}b", f"heads/{'a' * 128}c"], f"heads/{'a' * 128}b"),
    ],
)
def test_a_tag_belongs_to_one_of_all_refs_that_would_make_it(names: list[str], owner: str) -> None:
    refs = [f"refs/{name}" for name in [*names, "heads/Main", "heads/other", "tags/a"]]
    for ref in refs[: len(names)]:
        assert tag_owner(ref, refs) == f"refs/{owner}"
        assert tag_owner(ref, reversed(refs)) == f"refs/{owner}"
    assert tag_owner("refs/pull/1/head", refs) == "refs/pull/1/head"


REPOSITORY = canonical("https://github.com/a/b")
POLICY = ImagePolicy("registry.example/org/", ["registry.example/courses/*", "other.example:5000/**"])


@pytest.mark.parametrize(
    "image",
    [
        "registry.example/org/a",
        "registry.example/org/a/b__c.d-e--f",
        "registry.example/courses/x",
        "registry.example/org/courses/a-b-0123456789",
        "registry.example/org/stats-2026",
        "other.example:5000/a/b",
    ],
)
def test_images_that_may_be_asked_for(image: str) -> None:
    assert POLICY.check(image, REPOSITORY) == image


@pytest.mark.parametrize(
    "image",
    [
        "registry.example/other/a",
        "registry.example/organisation/a",
        "registry.example/org/c-d-0123456789",
        "registry.example/courses/x/y",
        "evil.example/registry.example/org/a",
        "library/python",
        "python",
    ],
)
def test_images_outside_the_prefix(image: str) -> None:
    with pytest.raises(Forbidden) as caught:
        POLICY.check(image, REPOSITORY)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "image",
    [
        "registry.example/org/a:tag",
        "registry.example/org/a@sha256:" + "a" * 64,
        "registry.example/org/A",
        "registry.example/org/",
        "registry.example/org/a//b",
        "registry.example/org/../other/a",
        "registry.example/org/a b",
        "registry.example/org/a\n",
        "registry.example/org/-a",
        "registry.example/org/a-",
        "registry.example/org/a___b",
        "registry.example/org/" + "a" * 255,
        "https://registry.example/org/a",
        "--push",
        "",
    ],
)
def test_what_is_no_image(image: str) -> None:
    with pytest.raises(Malformed) as caught:
        POLICY.check(image, REPOSITORY)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "prefix", ["r.example/", "localhost:5000/", "127.0.0.1:5000/a/", "[::1]:5000/", "r.example/a-"]
)
def test_prefixes(prefix: str) -> None:
    assert ImagePolicy(prefix).prefix == prefix


@pytest.mark.parametrize(
    "prefix", ["", "R.example/", "https://r.example/", "r.example//", "r.example/a:", "/", "a" * 200]
)
def test_what_is_no_prefix(prefix: str) -> None:
    with pytest.raises(RuleError, match=r"registry\.example/org/"):
        ImagePolicy(prefix)


# ---- Private repositories ----------------------------------------------------------------------------------------

SECRET, OPEN = canonical("https://github.com/org/secret"), canonical("https://github.com/org/open")
APART = ImagePolicy(
    "r.example/org/", ["**"], private_prefix="r.example/org/private/", private=lambda asked: asked == SECRET
)


def test_images_of_private_repositories_lie_apart() -> None:
    assert APART.own(SECRET) == image_for("r.example/org/private/", SECRET)
    assert APART.own(OPEN) == image_for("r.example/org/", OPEN)
    assert [APART.is_private(APART.own(repository)) for repository in (SECRET, OPEN)] == [True, False]


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("r.example/org/private/mine", OPEN),
        (image_for("r.example/org/private/", OPEN), OPEN),
        (image_for("r.example/org/private/", SECRET), OPEN),
        (image_for("r.example/org/", SECRET), SECRET),
        ("r.example/org/courses/stats", SECRET),
        ("elsewhere.example/stats", SECRET),
    ],
)
def test_no_image_crosses_over_whatever_is_allowed(image: str, repository: Repository) -> None:
    with pytest.raises(Forbidden, match="Images of private repositories are kept apart"):
        APART.check(image, repository)


def test_no_private_repository_has_the_image_of_another() -> None:
    other = canonical("https://github.com/org/other-secret")
    with pytest.raises(Forbidden, match="has the form of a repository's own image"):
        APART.check(image_for("r.example/org/private/", other), SECRET)
    for image in (APART.own(SECRET), "r.example/org/private/course"):
        assert APART.check(image, SECRET) == image


@pytest.mark.parametrize("prefix", ["r.example/org/", "r.example/", "R.example/", ""])
def test_a_prefix_that_keeps_nothing_apart_is_refused(prefix: str) -> None:
    with pytest.raises(RuleError):
        ImagePolicy("r.example/org/", private_prefix=prefix)


@pytest.mark.parametrize(
    ("prefix", "private", "pushed"),
    [
        ("localhost/kiln/", None, ()),
        ("localhost:5000/kiln/", None, ("localhost:5000/kiln/",)),
        ("r.example/org/", "localhost/private/", ("r.example/org/",)),
        ("r.example/org/", "r.example/private/", ("r.example/org/", "r.example/private/")),
    ],
)
def test_images_under_localhost_are_pushed_nowhere(prefix: str, private: str | None, pushed: tuple[str, ...]) -> None:
    policy = ImagePolicy(prefix, private_prefix=private)
    assert policy.pushed_prefixes == pushed
    request = Request(repository=URL, clone_url=URL, commit="a" * 40, image=policy.own(canonical(URL)))
    assert request.stays == (prefix not in pushed)
    reference = Image(repository=request.image, tag="1", digest="sha256:0").reference
    assert reference.endswith(":1" if request.stays else ":1@sha256:0")


def test_a_prefix_of_localhost_gives_every_repository_its_own_image() -> None:
    policy = ImagePolicy("localhost/kiln/")
    assert policy.check(policy.own(canonical(URL)), canonical(URL)) == "localhost/kiln/a-b-426415da64"
    with pytest.raises(Forbidden):
        policy.check("r.example/a", canonical(URL))
