"""The identity of a build: every way to request a commit leads to the same build, and other folders to other builds."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from contextlib import chdir, closing
from urllib.parse import quote

import pytest

from builds.image import tag_for
from tests.parts.cluster import Release
from tests.parts.installation import NONE, SMALL, Webhook, http
from tests.parts.kiln import until
from tools.demo import github

pytestmark = pytest.mark.timeout(300)


def hub_asks(release: Release, provider: str, spec: str) -> Iterator[str]:
    """Yield the name of the build from each event of BinderHub's API."""
    url = f"{release.url}build/{provider}/{spec}?build_only=true"
    with closing(http("GET", url, stream=True, timeout=60)) as answer:
        assert answer.status_code == 200, answer.text
        for line in answer.iter_lines():
            if line.startswith(b"id: "):
                yield line.removeprefix(b"id: ").decode().partition(":")[0]


def test_two_folders_of_a_commit_are_two_images(release: Release) -> None:
    commit = release.commit(
        "ada/course",
        {
            f"{folder}/{name}": text
            for folder in ("one", "two")
            for name, text in (("Dockerfile", SMALL), ("page", folder))
        },
    )
    builds = {folder: release.ended(release.build("ada/course", commit, subdir=folder)) for folder in ("one", "two")}
    images = {folder: build["image"] for folder, build in builds.items()}
    for folder, build in builds.items():
        image = build["image"]
        assert (build["state"], build["subdir"]) == ("succeeded", folder), release.log(build["name"])
        assert image["tag"] == tag_for(commit, folder) != tag_for(commit)
        assert image["digest"] == release.digest(image["repository"], image["tag"])
        assert release.arrived("first", build["name"], "succeeded").extensions["image"] == image["reference"]
    assert images["one"]["repository"] == images["two"]["repository"]
    assert images["one"]["digest"] != images["two"]["digest"]
    assert builds["one"]["name"] != builds["two"]["name"]


def test_a_commit_is_one_build_by_whichever_way_it_is_asked_for(release: Release) -> None:
    commit = release.commit("ada/ways", {"Dockerfile": SMALL})
    url = release.host.url("ada/ways")
    name = release.deliver(release.push("ada/ways", commit)).json()["builds"][0]["name"]
    assert next(hub_asks(release, "git", f"{quote(url, safe='')}/{commit}")) == name
    assert next(hub_asks(release, "git", f"{quote(url.removesuffix('.git'), safe='')}/main")) == name
    assert release.build("ada/ways", commit) == name
    assert release.ask(repository=url.removesuffix(".git") + "/", ref="refs/heads/main").json()["name"] == name
    build = release.ended(name)
    assert (build["state"], build["attempt"], len(release.pods(name))) == ("succeeded", 1, 1), release.log(name)
    until(lambda: [one["name"] for one in release.listed() if one["commit"] == commit] == [name])  # lists are cached
    pushed, *others = build["causes"]
    assert (pushed["by"], pushed["trigger"]) == ("webhook:github", "default")
    assert others
    image = build["image"]
    assert image["repository"] == f"{release.prefix}ada-ways-{digits(build['repository'])}"
    assert (image["tag"], image["digest"]) == (commit, release.digest(image["repository"], commit))
    assert image["reference"] == f"{image['repository']}:{commit}@{image['digest']}"


def digits(url: str) -> str:
    """Return the suffix of the repository's image name (docs/api.md)."""
    return hashlib.sha256(url.encode()).hexdigest()[:10]


def test_github_has_one_name_for_a_repository_too(release: Release) -> None:
    """The full commit needs no look-up at GitHub. The test cancels the build, which cannot succeed."""
    owner = f"Ada-{secrets.token_hex(4)}"
    commit = release.commit("ada/mirrored", {"Dockerfile": SMALL})
    with chdir(release.host.bare("ada/mirrored")):
        said = github.payload(f"https://github.com/{owner}/Page.git", NONE, commit, "refs/heads/main")
    body = json.dumps(said).encode()
    webhook = Webhook(github.delivery(release.webhook_secret.encode(), "push", body), body)
    name = release.deliver(webhook).json()["builds"][0]["name"]
    assert next(hub_asks(release, "gh", f"{owner}/page/{commit}")) == name
    address = f"https://github.com/{owner.lower()}/page"
    assert next(hub_asks(release, "git", f"{quote(address, safe='')}/{commit}")) == name
    assert release.ask(repository=f"https://GitHub.com/{owner}/Page.git/", commit=commit).json()["name"] == name
    until(lambda: [one["name"] for one in release.listed() if one["commit"] == commit] == [name])  # lists are cached
    build = release.one(name)
    assert build["repository"] == address
    assert build["image"]["repository"] == f"{release.prefix}{owner.lower()}-page-{digits(address)}"
    release.cancel(name)
    release.wait(name, lambda found: found["state"] in ("cancelled", "failed"))
