"""docker's `config.json`, each row twice: the same file and registry through `docker push` and through Kiln."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builds.clients.registry import Registry as Client
from builds.clients.registry import RegistryError
from tests.parts.registry import Registry

USER, PASSWORD = "ada", secrets.token_hex(12)
AUTH = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
STALE = {"auth": base64.b64encode(b"ada:stale").decode()}
BROKEN = {"auth": "%%%"}

ROWS: dict[str, dict[str, Any]] = {
    "host": {"auths": {"H": AUTH}},
    "with a slash": {"auths": {"H/": AUTH}},
    "http": {"auths": {"http://H": AUTH}},
    "https with a slash": {"auths": {"https://H/": AUTH}},
    "v1": {"auths": {"https://H/v1/": AUTH}},
    "v2": {"auths": {"http://H/v2/": AUTH}},
    "host and v2": {"auths": {"H/v2/": AUTH}},
    "a path below": {"auths": {"H/tests": AUTH}},
    "the exact key wins": {"auths": {"https://H/v1/": STALE, "H": AUTH}},
    "an empty exact key wins": {"auths": {"H": {}, "https://H/": AUTH}},
    "another host": {"auths": {"another.H": AUTH, "H.another": AUTH, "https://another/H": AUTH}},
    "the same host without its port": {"auths": {"127.0.0.1": AUTH}},
    "user name and password": {"auths": {"H": {"username": USER, "password": PASSWORD}}},
    "the pair wins over them": {"auths": {"H": {**AUTH, "username": "x", "password": "y"}}},
    "a NUL at the end": {"auths": {"H": {"auth": base64.b64encode(f"{USER}:{PASSWORD}\0\0".encode()).decode()}}},
    "null entry": {"auths": {"H": None}},
    "null members": {"auths": {"H": {**AUTH, "identitytoken": None, "email": None}}},
    "null sections": {"auths": {"H": AUTH}, "credHelpers": None, "credsStore": None},
    "all null": {"auths": None, "credHelpers": None, "credsStore": None},
    "other case": {"Auths": {"H": {"Auth": AUTH["auth"]}}},
    "a helper for the host": {"credHelpers": {"H": "right"}},
    "the helper wins": {"auths": {"H": STALE}, "credHelpers": {"H": "right"}},
    "a helper with nothing wins": {"auths": {"H": AUTH}, "credHelpers": {"H": "nothing"}},
    "a helper that fails": {"auths": {"H": AUTH}, "credHelpers": {"H": "failing"}},
    "a failing helper and nothing else": {"credHelpers": {"H": "failing"}},
    "a missing helper": {"auths": {"H": AUTH}, "credHelpers": {"H": "missing"}},
    "a helper for another key": {"auths": {"H": AUTH}, "credHelpers": {"https://H": "nothing"}},
    "the store": {"credsStore": "right"},
    "the store wins": {"auths": {"H": STALE}, "credsStore": "right"},
    "the host's helper before the store": {"credHelpers": {"H": "right"}, "credsStore": "nothing"},
    "no helper for the host": {"auths": {"H": AUTH}, "credHelpers": {"H": ""}, "credsStore": "nothing"},
    "null helper": {"auths": {"H": AUTH}, "credHelpers": {"H": None}},
    "empty": {},
}

HELPERS = {
    "right": """read -r key; cat >/dev/null
test -f "$HOME/.right" && test "$RIGHT_PROFILE" = set || { echo "no home, no profile"; exit 1; }
printf '{"ServerURL":"%s","Username":"ada","Secret":"PASSWORD"}' "$key" """,
    "nothing": "cat >/dev/null; echo credentials not found in native keychain; exit 1",
    "failing": "cat >/dev/null; echo the vault is sealed >&2; exit 2",
}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("closed"), {USER: PASSWORD}) as registry:
        yield registry


@pytest.fixture(scope="module")
def pushed(closed: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image that the registry and the daemon have."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    image = f"{closed.host}/tests/config:x"
    write(folder, {"auths": {closed.host: AUTH}})
    docker(folder, "build", "--tag", image, str(folder)).check_returncode()
    docker(folder, "push", image).check_returncode()
    yield image
    docker(folder, "image", "rm", image)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's home, with credential helpers that find their data there and in the environment."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.right").touch()
    (tmp_path / "bin").mkdir()
    for name, script in HELPERS.items():
        program = tmp_path / f"bin/docker-credential-{name}"
        program.write_text(f"#!/bin/sh\n{script.replace('PASSWORD', PASSWORD)}\n")
        program.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RIGHT_PROFILE", "set")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def write(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def docker(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DOCKER_CONFIG": str(config)}
    return subprocess.run(["docker", *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("row", ROWS)
def test_kiln_is_let_in_where_docker_is(row: str, pushed: str, closed: Registry, home: Path) -> None:
    config = write(home, json.loads(re.sub(r"\bH\b", closed.host, json.dumps(ROWS[row]))))
    done = docker(home, "push", pushed)
    image, _, tag = pushed.rpartition(":")
    try:
        let_in = Client(config).manifest(image, tag) is not None
    except RegistryError:
        let_in = False
    assert let_in == (done.returncode == 0), done.stderr
