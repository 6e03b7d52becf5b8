"""Images have BinderHub's names, so that what it has built is found again."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.errors import Forbidden, Malformed, RuleError
from builds.image import ImagePolicy, image_for, is_reserved, legal_tag, tag_for
from builds.repository import HostKind, canonical

HOSTS = {"git.example.edu": HostKind.GITLAB, "ghe.example.edu": HostKind.GITHUB}
COMMIT = "50533eb470ee6c24e872043d30b2fee463d6943f"


@pytest.mark.parametrize(
    ("prefix", "url", "image"),
    [
        # Seen in the registries of BinderHubs.
        (
            "quay.io/2i2c/pre-",
            "https://github.com/binder-examples/requirements",
            "quay.io/2i2c/pre-binder-2dexamples-2drequirements-55ab5c",
        ),
        ("r.example/", "https://bitbucket.org/a/b", "r.example/https-3a-2f-2fbitbucket-2eorg-2fa-2fb-"),
        # By its formula: `user-repo`, and for GitLab the namespace with `-` written as `_-`.
        ("r.example/", "https://github.com/A/B.git", "r.example/a-2db-d44362"),
        ("r.example/", "https://gitlab.com/group/sub-group/x", "r.example/group-2dsub-5f-2dgroup-2dx-"),
        ("r.example/", "https://ghe.example.edu/A/B", "r.example/a-2db-"),
        ("r.example/", "https://git.example.edu/_a/b", "r.example/5fa-2db-"),
        ("r.example/pre-", "https://git.example.edu/_a/b", "r.example/pre--5fa-2db-"),
    ],
)
def test_names_of_images(prefix: str, url: str, image: str) -> None:
    assert re.fullmatch(re.escape(image) + "[0-9a-f]{0,6}", image_for(prefix, canonical(url, HOSTS)))


def test_the_git_provider_hashes_the_whole_url() -> None:
    """The sample is of a URL on github.com, asked for through BinderHub's `git` provider."""
    repository = canonical("https://git.example.org/a/b")
    digest = hashlib.sha256(b"https://git.example.org/a/b").hexdigest()[:6]
    assert image_for("r.example/", repository) == f"r.example/https-3a-2f-2fgit-2eexample-2eorg-2fa-2fb-{digest}"
    assert hashlib.sha256(b"https://github.com/a/b").hexdigest()[:6] == "426415"  # https-3a-2f-2fgithub-2ecom-2fa-2fb


def test_capitals_where_a_host_tells_them_apart() -> None:
    one, other = (
        image_for("r.example/", canonical(f"https://ghe.example.edu/{path}", HOSTS)) for path in ("A/b", "a/b")
    )
    assert one[:-6] == other[:-6]
    assert one != other


@given(
    st.sampled_from(["r.example/", "127.0.0.1:5000/kiln/", "r.example/pre-", "r.example/" + "a" * 80 + "/"]),
    st.sampled_from(["git.example.edu", "ghe.example.edu", "git.example.org"]),
    st.text("abAB-_.~1", min_size=1, max_size=300).filter(lambda text: text.strip(".")),
)
def test_every_repository_has_a_legal_image_of_bounded_length(prefix: str, host: str, path: str) -> None:
    image = image_for(prefix, canonical(f"https://{host}/{path}/x", HOSTS))
    assert ImagePolicy(prefix).check(image) == image
    assert len(image) <= 255


def test_tags() -> None:
    assert tag_for(COMMIT) == tag_for(COMMIT, "", {}) == COMMIT
    canonical_json = json.dumps(["a", {"X": "1", "b": "2"}], sort_keys=True, separators=(",", ":"))
    expected = hashlib.sha256(canonical_json.encode()).hexdigest()[:8]
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


POLICY = ImagePolicy("registry.example/org/", ["registry.example/courses/*", "other.example:5000/**"])


@pytest.mark.parametrize(
    "image",
    [
        "registry.example/org/a",
        "registry.example/org/a/b__c.d-e--f",
        "registry.example/courses/x",
        "other.example:5000/a/b",
    ],
)
def test_images_that_may_be_asked_for(image: str) -> None:
    assert POLICY.check(image) == image


@pytest.mark.parametrize(
    "image",
    [
        "registry.example/other/a",
        "registry.example/organisation/a",
        "registry.example/courses/x/y",
        "evil.example/registry.example/org/a",
        "library/python",
        "python",
    ],
)
def test_images_outside_the_prefix(image: str) -> None:
    with pytest.raises(Forbidden) as caught:
        POLICY.check(image)
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
        POLICY.check(image)
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
