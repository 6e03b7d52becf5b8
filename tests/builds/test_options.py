"""Options of repo2docker: the refused ones, and those that lead to another image."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.options import CLASSES, MAX_APPENDIX, Options

DIFFERENT = (
    Options(),
    Options(base_image="registry.example/base:1"),
    Options(base_image="registry.example/base:2"),
    Options(buildpacks=("conda",)),
    Options(buildpacks=("conda", "python")),
    Options(appendix="RUN true"),
    Options(build_args={"A": "1"}),
    Options(build_args={"A": "2"}),
    Options(target_repo_dir="/srv/repo"),
)


def test_what_makes_another_image_has_another_label() -> None:
    labels = [options.label for options in DIFFERENT]
    assert labels[0] == ""
    assert len({*labels}) == len(labels)


@pytest.mark.parametrize("options", DIFFERENT)
def test_a_look_at_the_registry_makes_no_other_image(options: Options) -> None:
    assert msgspec.structs.replace(options, pull=True).label == options.label


def test_every_build_pack_of_repo2docker_can_be_chosen() -> None:
    program = "from repo2docker.app import Repo2Docker; print(*(one.__name__ for one in Repo2Docker().buildpacks))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.split() == [*Options(buildpacks=tuple(CLASSES)).classes]


@given(st.lists(st.sampled_from(tuple(CLASSES)), min_size=1, unique=True))
def test_build_packs_are_tried_in_repo2docker_s_order(packs: list[str]) -> None:
    options = msgspec.convert({"buildpacks": packs}, Options)
    everything = [name for names in CLASSES.values() for name in names]
    assert list(options.classes) == [name for name in everything if any(name in CLASSES[pack] for pack in packs)]  # type: ignore[index]


@pytest.mark.parametrize(
    "image",
    [
        *("debian", "buildpack-deps:24.04", "docker.io/library/buildpack-deps:24.04", "localhost:5000/base"),
        *("registry.example:443/a/b__c:V1.0_x", f"a.example/b@sha256:{'0' * 64}", f"a.example/b:1@sha256:{'a' * 64}"),
    ],
)
def test_base_images_that_can_be_had(image: str) -> None:
    assert list(Options(base_image=image).problems()) == []


@pytest.mark.parametrize(
    "image",
    ["", " debian", "Debian", "https://a.example/b", "a b", "a:b:c", "a@sha256:0", "a\nRUN true", "-x", "${BASE}"],
)
def test_base_images_that_cannot(image: str) -> None:
    (problem,) = Options(base_image=image).problems()
    assert problem.startswith("base_image: ")


@pytest.mark.parametrize(
    "text", ["RUN true", "# why\n\nrun true\n", "USER root\nRUN true\nUSER ${NB_USER}", "ENV A=1 \\\n  B=2"]
)
def test_appendices_that_are_instructions(text: str) -> None:
    assert list(Options(appendix=text).problems()) == []


@pytest.mark.parametrize(
    "text", ["", " \n", "# only why", "FROM scratch", "pip install x", "RUN true" + " " * MAX_APPENDIX, "RUN a\0b"]
)
def test_appendices_that_are_not(text: str) -> None:
    assert all(problem.startswith("appendix: ") for problem in Options(appendix=text).problems())
    assert list(Options(appendix=text).problems())


@pytest.mark.parametrize("path", ["srv", "", "/", "/srv/../etc", "/srv/./x", "/srv/", "/a b", "${HOME}"])
def test_folders_that_cannot_be(path: str) -> None:
    (problem,) = Options(target_repo_dir=path).problems()
    assert problem.startswith("target_repo_dir: ")


@pytest.mark.parametrize("name", ["http_proxy", "BUILDKIT_SYNTAX", "REPO_DIR", "1A", ""])
def test_arguments_are_held_to_the_rules_of_requests(name: str) -> None:
    (problem,) = Options(build_args={name: "x"}).problems()
    assert problem.startswith("build_args: ")
