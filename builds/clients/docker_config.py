"""Reads a docker `config.json` and its credentials as the docker command does.

docker-py's own reader (`docker.auth`) is not suitable. It falls back to `auths` if a credential helper has no entry,
fails on `null`, and matches keys of Docker Hub that docker does not. It also takes 0.2 s to import.

https://github.com/docker/cli/tree/v28.2.2/cli/config (configfile/file.go, credentials/file_store.go, native_store.go)
https://github.com/docker/docker-credential-helpers
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from builds.clients.errors import RegistryUnreachable

DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
NO_LOGIN = "/nonexistent/docker/config.json"
"""A docker configuration without credentials. (Without any path, the user's own is read.)"""
TOKEN_USER = "<token>"  # noqa: S105 (what credential helpers say in place of a name)

HELPER_TIMEOUT = 20.0
"""Seconds for a credential helper, which may query a cloud."""

_NO_ENTRY = ("credentials not found in native keychain", "no credentials server URL", "no credentials username")
"""A helper's output if it has no entry; any other failure is an error."""


class RegistryLogin(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials for one registry. At most one of password, identity token and registry token is set."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """To be exchanged for a token (OAuth 2.0, RFC 6749 §6)."""
    registry_token: str = ""
    """The bearer token itself."""


class DockerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The credentials part of a `config.json`. `path` is for messages."""

    path: Path
    auths: Mapping[str, RegistryLogin] = {}
    helpers: Mapping[str, str] = {}
    store: str = ""

    def login(self, host: str) -> RegistryLogin | None:
        """Credentials for a registry (`host` or `host:port`); `None` if the file has none.

        A credential helper that answers decides alone: docker reads `auths` only if no helper is configured, or the
        helper fails. Raises Unreachable if a helper fails and `auths` has no entry.
        """
        key = DOCKER_HUB_KEY if host == DOCKER_HUB else host
        helper = self.helpers[key] if key in self.helpers else self._store()
        stored = self._stored(key)
        try:
            found = _from_helper(helper, key) if helper else stored
        except RegistryUnreachable:
            if stored is None:
                raise
            found = stored
        return None if found == RegistryLogin() else found

    def _store(self) -> str:
        """The store of credentials: docker uses the platform's usual one if the file contains no credentials at all."""
        if self.store or self.helpers or self.auths or self.path == Path(NO_LOGIN):
            return self.store
        usual = "osxkeychain" if sys.platform == "darwin" else "pass" if shutil.which("pass") else "secretservice"
        return usual if shutil.which(f"docker-credential-{usual}") else ""

    def _stored(self, key: str) -> RegistryLogin | None:
        if key in self.auths:
            return self.auths[key]
        return next((login for name, login in self.auths.items() if hostname(name) == key), None)


def folder() -> Path:
    """The folder of this user's docker configuration."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def read(config: str | os.PathLike[str] | None) -> DockerConfig:
    """A docker `config.json`, by default the user's own; empty if the file does not exist.

    Raises RegistryUnreachable for a file that docker would not read.
    """
    path = Path(config) if config else folder() / "config.json"
    content = _lowered(_content(path))
    auths = _objects(content.get("auths", {}), path)
    helpers = content.get("credhelpers", {})
    store = content.get("credsstore", "")
    if not isinstance(store, str) or not all(isinstance(name, str) for name in _object(helpers, path).values()):
        raise _not_docker(path)
    logins = {name: _login(entry, path) for name, entry in auths.items()}
    return DockerConfig(
        path=path, auths={name: login for name, login in logins.items() if login}, helpers=helpers, store=store
    )


def for_tools(config: str | os.PathLike[str]) -> bytes:
    """The same file for another client. It has no `null` values, which docker-py rejects, no entries that cannot be
    decoded, and no context, whose address the client could not reach. Raises RegistryUnreachable."""
    path = Path(config)
    content = _content(path)
    for name in list(content):
        if name.lower() == "currentcontext":
            del content[name]
        elif name.lower() == "auths":
            entries = _objects(content[name], path)
            content[name] = {host: entry for host, entry in entries.items() if _login(_lowered(entry), path)}
    return json.dumps(content).encode()


def secrets(config: str | os.PathLike[str] | None) -> Iterator[str]:
    """The secrets in a docker `config.json` (by default the user's own). Raises RegistryUnreachable."""
    for login in read(config).auths.values():
        pair = base64.b64encode(f"{login.username}:{login.password}".encode()).decode() if login.password else ""
        yield from filter(None, (login.password, pair, login.identity_token, login.registry_token))


def hostname(key: str) -> str:
    """The registry of a key of `auths`, by the rules of docker's `ConvertToHostname`."""
    if "://" in key:
        try:
            return urlsplit(key).netloc.rpartition("@")[2] or key.partition("/")[0]
        except ValueError:
            return ""
    return key.partition("/")[0]


def _content(path: Path) -> dict[str, Any]:
    """The content of the file without its `null` values."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError:
        raise _not_docker(path) from None
    try:
        content: dict[str, Any] = _without_null(msgspec.json.decode(text, type=dict[str, Any]) if text.strip() else {})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _not_docker(path) from None
    return content


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(part) for name, part in value.items() if part is not None}
    return value


def _lowered(content: Mapping[str, Any]) -> dict[str, Any]:
    """Go's decoder ignores the case of a field's name."""
    return {name.lower(): value for name, value in content.items()}


def _object(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _not_docker(path)
    return value


def _objects(value: Any, path: Path) -> dict[str, dict[str, Any]]:
    return {name: _object(entry, path) for name, entry in _object(value, path).items()}


def _login(entry: Mapping[str, Any], path: Path) -> RegistryLogin | None:
    """An entry of `auths`; `None` if its `auth` cannot be decoded, so that it is of no use."""
    known = _lowered(entry)
    if not all(isinstance(known.get(name, ""), str) for name in ("auth", "username", "password", "identitytoken")):
        raise _not_docker(path)
    pair = _decoded(known["auth"]) if known.get("auth") else (known.get("username", ""), known.get("password", ""))
    if pair is None:
        return None
    token, registry_token = known.get("identitytoken", ""), str(known.get("registrytoken", ""))
    return RegistryLogin(
        username=pair[0],
        password="" if token or registry_token else pair[1],
        identity_token="" if registry_token else token,
        registry_token=registry_token,
    )


def _decoded(auth: str) -> tuple[str, str] | None:
    try:
        padded = re.sub(r"[\r\n]", "", auth)  # as Go's decoder does
        user, colon, password = base64.b64decode(padded, validate=True).decode().partition(":")
    except ValueError:
        return None
    return (user, password.strip("\0")) if user and colon else None


def _from_helper(helper: str, key: str) -> RegistryLogin | None:
    """The entry of a credential helper, which runs in this process's environment because it may read files of its
    own."""
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=HELPER_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise RegistryUnreachable(
            f"The credential helper {program} did not answer within {HELPER_TIMEOUT:.0f} s."
        ) from None
    except (OSError, ValueError) as error:
        raise RegistryUnreachable(f"The credential helper {program} cannot be run ({type(error).__name__}).") from None
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode:
        if said in _NO_ENTRY:
            return None
        words = (said or done.stderr.decode(errors="replace").strip())[:300]
        raise RegistryUnreachable(
            f"The credential helper {program} failed: {words or f'exit status {done.returncode}'}"
        )
    try:
        found = _lowered(msgspec.json.decode(said, type=dict[str, Any]))
        user, secret = found.get("username") or "", found["secret"]
        return (
            RegistryLogin(identity_token=secret)
            if user == TOKEN_USER
            else RegistryLogin(username=user, password=secret)
        )
    except (msgspec.MsgspecError, KeyError):
        raise RegistryUnreachable(f"The credential helper {program} printed no credentials.") from None


def _not_docker(path: Path) -> RegistryUnreachable:
    return RegistryUnreachable(f"The docker configuration {path} cannot be read, or is not what docker writes.")
