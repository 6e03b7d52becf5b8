"""Repositories without a Dockerfile: pods on a release's daemons build them with repo2docker's buildpacks.

The repositories are commits of one repository, so that the first build warms the cache of the others. The tier `docker`
tests more of them (`tests/repositories`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.parts.cluster import Release, offer_buildpacks
from tests.parts.jupyter import check_image, hub_api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a node's daemon builds an environment without any cache

SECONDS = 500.0
"""Time limit of the first build."""
CONDA = {
    "binder/environment.yml": "dependencies: [python-graphviz, pip, pip: [humanize==4.12.3]]\n",
    "binder/apt.txt": "tree\n",
    "binder/postBuild": '#!/bin/bash\npython -c "import graphviz, humanize" && echo yes >made\n',
    "binder/start": '#!/bin/bash\nexport STARTED=yes\nexec "$@"\n',
    "environment.yml": "dependencies: [not-this-one]\n",
}
BROKEN = {
    "environment.yml": (
        "dependencies: [pip, pip: [humanize==99.99]]\n",
        "No matching distribution found for humanize==99.99",
    ),
    "apt.txt": ("no-such-package-at-all\n", "Unable to locate package no-such-package-at-all"),
}


@pytest.fixture(scope="module")
def hub(release: Release) -> Iterator[str]:
    with hub_api(release.cluster.gateway) as url:
        yield url


@pytest.fixture(scope="module")
def release_with_base(release: Release) -> Release:
    offer_buildpacks(release)
    return release


def test_an_image_is_built_and_used_and_what_cannot_be_built_is_named(release_with_base: Release, hub: str) -> None:
    release = release_with_base
    build = release.ended(_build(release, CONDA), SECONDS)
    assert build["state"] == "succeeded", release.log(build["name"])[-5000:]
    broken = {name: _build(release, {name: text}) for name, (text, _) in BROKEN.items()}
    says = {"echo $STARTED; cat made; command -v tree": r"^yes\nyes\n/usr/bin/tree$"}
    check_image(build["image"]["reference"], says, hub, _docker(release, build["node"]))
    for name, (_, words) in BROKEN.items():
        build = release.ended(broken[name], SECONDS)
        assert (build["state"], build["reason"], build["attempt"]) == ("failed", "repository", 1), build
        assert words in build["message"], build


def _build(release: Release, files: Mapping[str, str]) -> str:
    return release.build("ada/packs", release.commit("ada/packs", files))


def _docker(release: Release, node: str) -> list[str]:
    """Return the Docker command for that node's daemon, which has the layers."""
    name = release.dockerd()[node]["metadata"]["name"]
    kubectl = ["kubectl", f"--kubeconfig={release.cluster.kubeconfig}", f"--namespace={release.namespace}"]
    return [*kubectl, "exec", name, "--container=dockerd", "--", "docker"]
