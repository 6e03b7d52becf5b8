"""Build arguments reach the repository's Dockerfile; the names that the tool chain interprets are refused."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.arguments import RESERVED, check_name, checked_arguments
from builds.errors import Malformed, RuleError
from builds.triggers import BuildTemplate, TriggerRule
from tests.builds.rules import load

PROXIES = ["http_proxy", "HTTPS_PROXY", "Ftp_Proxy", "no_proxy", "ALL_PROXY", "rsync_proxy", "_proxy"]
BUILDKIT = [
    "BUILDKIT_SYNTAX",
    "BUILDKIT_CACHE_MOUNT_NS",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_ATTEST_SBOM",
    "buildkit_syntax",
    "BUILDKIT_",
    "BUILDKIT_OF_TOMORROW",
    "SOURCE_DATE_EPOCH",
    "TARGETPLATFORM",
    "TARGETSTAGE",
    "TARGETOSVERSION",
    "BUILDARCH",
    "BUILDVARIANT",
    "targetarch",
]
TOOL = ["NB_USER", "NB_UID", "REPO_DIR", "nb_user"]


@pytest.mark.parametrize("name", [*PROXIES, *BUILDKIT, *TOOL])
def test_what_the_tool_chain_understands_is_for_nobody(name: str) -> None:
    with pytest.raises(Malformed, match=f"{name} is reserved") as caught:
        checked_arguments({"R_VERSION": "4.5", name: "x"})
    assert caught.value.status == 400
    with pytest.raises(RuleError, match=rf"Trigger 'a', build\.build_args: .*{name}"):
        load([TriggerRule(name="a", build=BuildTemplate(build_args={name: "{data.x}"}))])


@pytest.mark.parametrize(
    "name", ["R_VERSION", "PROXY", "http_proxy_host", "BUILD", "BUILDKIT", "TARGET", "NB_GID", "_"]
)
def test_what_is_the_repositorys_own(name: str) -> None:
    assert checked_arguments({name: "x"}) == {name: "x"}


@given(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True), st.sampled_from([*PROXIES, *BUILDKIT, *TOOL]))
def test_no_case_gets_around_it(name: str, reserved: str) -> None:
    mixed = "".join(
        letter.upper() if other.isupper() else letter.lower()
        for letter, other in zip(reserved, name * len(reserved), strict=False)
    )
    with pytest.raises(Malformed):
        check_name(mixed)


def test_repo2dockers_own_are_all_known() -> None:
    """The arguments that repo2docker passes and that its templates declare.

    The test fails when a new version adds one.
    """
    tool = find_spec("repo2docker")
    assert tool
    assert tool.origin
    folder = Path(tool.origin).parent
    source = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    declared = set(re.findall(r"^ARG ([A-Za-z_]+)", source, re.MULTILINE))
    passed = set(re.findall(r'build_args\["(\w+)"\]', source)) | {"NB_USER", "NB_UID"}
    assert declared | passed == {"NB_USER", "NB_UID", "REPO_DIR"} <= RESERVED
