"""The wheel contains all that Kiln needs, and works outside the source tree."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.parts import wheel
from tests.parts.kiln import ROOT, get
from tests.parts.wheel import InstalledKiln

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def kiln(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledKiln]:
    folder = tmp_path_factory.mktemp("installed")
    with InstalledKiln(wheel.install(built, folder), folder) as installation:
        yield installation


def test_the_wheel_has_every_file_of_its_packages(built: Path) -> None:
    """Hatchling leaves out files that .gitignore matches."""
    tree = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    sources = {str(path.relative_to(ROOT)) for path in tree if path.parent.name != "__pycache__"}
    packed = {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}
    assert packed == sources
    assert {Path(name).suffix for name in packed} >= {".py", ".html", ".css", ".js", ".json", ".svg", ".typed"}


def imported() -> Iterator[tuple[str, str]]:
    """Each top-level package of another distribution that Kiln imports, with the importing file."""
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            own = {*PACKAGES, *sys.stdlib_module_names, "_typeshed"}
            for top in {name.partition(".")[0] for name in names} - own:
                yield top, str(path.relative_to(ROOT))


def required(names: set[str]) -> set[str]:
    """These distributions and all that they require, by their normalized names."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            needs = (Requirement(one) for one in metadata.distribution(name).requires or ())
            names |= {
                canonicalize_name(one.name) for one in needs if not one.marker or one.marker.evaluate({"extra": ""})
            }
    return found


def test_every_import_is_a_dependency() -> None:
    """A test environment has more packages than a user's, so a missing dependency would not fail there."""
    extras = [one for group in PROJECT["project"]["optional-dependencies"].values() for one in group]
    declared = {canonicalize_name(Requirement(one).name) for one in [*PROJECT["project"]["dependencies"], *extras]}
    available = required(declared)
    providers = metadata.packages_distributions()
    missing = {
        (top, path)
        for top, path in imported()
        if not {canonicalize_name(one) for one in providers.get(top, ())} & available
    }
    assert missing == set()


def test_the_command_runs_in_an_empty_folder(kiln: InstalledKiln) -> None:
    version = PROJECT["project"]["version"]
    assert kiln.run("--version").stdout == f"kiln, version {version}\n"
    assert json.loads(kiln.run("ls", "--json").stdout)["items"] == []
    assert kiln.run("check").stdout.endswith("Configuration is valid\n")
    python = Path(kiln.program[0]).with_name("python")
    where = [python, "-c", "import builds, eventing, handlers, kiln; print(kiln.__file__)"]
    done = subprocess.run(where, cwd=kiln.cwd, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(python.parents[1])


def test_web_serves_its_pages_styles_and_schemas(kiln: InstalledKiln) -> None:
    web = kiln.start("web")
    status, page = get(str(web.url), kiln.authorization)
    assert status == 200
    linked = re.findall(r'(?:href|src)="/?(static/[^"]+)"', page.decode())
    assert linked
    for path in (*linked, "schemas/build.v1.json", "openapi.json"):
        assert get(f"{web.url}{path}")[0] == 200, path
