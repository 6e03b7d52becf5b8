"""A link out of a repository is refused where the installed repo2docker would read its target."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from builds.builder.tool import READ


def test_every_file_that_repo2docker_reads_is_known() -> None:
    """The test collects the names from repo2docker's code. Names of its own files contain a slash or are computed."""
    found = find_spec("repo2docker")
    assert found
    assert found.origin
    sources = "".join(path.read_text() for path in Path(found.origin).parent.glob("buildpacks/**/*.py"))
    named = re.findall(r"(?:binder_path|open|exists|isfile)\(\s*f?\"([^\"/{]+)\"", sources)
    loops = re.findall(r"for \w+ in [\[(]([^\])]*)[\])]:\n\s+\w+ = self\.binder_path\(", sources)
    named += [name for loop in loops for name in re.findall(r"\"([^\"]+)\"", loop)]
    named += re.findall(r"^\s*\w+ = \"([A-Z]\w+|[\w.]+\.(?:toml|yml|txt))\"$", sources, re.MULTILINE)
    assert {"Dockerfile", "environment.yml", "apt.txt", "DESCRIPTION", ".dockerignore", "setup.py"} <= {*named}
    assert {*named} - {*READ} <= {"r", "w", "rb"}
