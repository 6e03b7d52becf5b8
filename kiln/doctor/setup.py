"""Probes of the configuration, the folder of secrets and the state folder."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

from eventing.hosts import DIALECTS
from kiln import localtoken
from kiln.doctor import cures
from kiln.doctor.findings import Finding, Probe, Symptom, of
from kiln.doctor.machine import GIB, Room
from kiln.errors import CommandError, KilnError
from kiln.settings import SETTINGS
from kiln.wiring import Kiln

STATE_ROOM, STATE_AMPLE = 64 << 20, 1 * GIB
"""Bytes: below the first the folder counts as full, below the second it is worth a warning."""


def version() -> Probe:
    said = f"{metadata.version('kiln-images')}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    return Probe("kiln", lambda: said)


def invalid(error: KilnError) -> Iterator[Finding]:
    """Yields one finding for each problem."""
    for problem in error.problems:
        yield of("configuration", Symptom(cures.CONFIGURATION, problem))


def valid(kiln: Kiln) -> Probe:
    found = kiln.settings
    return Probe("configuration", lambda: f"valid; engine {found.engine}, images under {found.image_prefix}")


def probes(kiln: Kiln) -> Iterator[Probe]:
    yield Probe("secrets", partial(_secrets, kiln))
    if kiln.settings.engine == "local":
        yield Probe("state folder", partial(state_folder, kiln.settings.state_dir))


def unconfigured(environ: Mapping[str, str]) -> Iterator[Probe]:
    """Yields the probe of the state folder, without a valid configuration."""
    (setting,) = (setting for setting in SETTINGS if setting.name == "KILN_STATE_DIR")
    if environ.get("KILN_ENGINE", "local") == "local":
        folder = setting.read(environ.get(setting.name) or str(setting.default))
        yield Probe("state folder", partial(state_folder, Path(str(folder))))


def _secrets(kiln: Kiln) -> str:
    """Summarizes the secrets. Unreadable secrets are problems of the configuration."""
    root, secrets = kiln.secrets.root, kiln.secrets
    if root is None:
        return "none (KILN_SECRETS_DIR is not set)"
    if kiln.settings.engine == "local" and _open(root) and (shown := _shown(root)):
        raise Symptom(cures.SECRETS_READABLE, f"Every user of this machine can read {shown}.", folder=root)
    hosts = [word for word in DIALECTS if secrets.webhooks(word)]
    tokens = len(secrets.api_tokens())
    return f"webhooks of {', '.join(hosts) or 'no host'}; API tokens: {tokens}"


def _open(root: Path) -> bool:
    """Reports whether other users can enter the folder."""
    return all(_others(folder, stat.S_IXOTH) for folder in root.resolve().parents)


def _shown(root: Path) -> Path | None:
    """Returns a secret that other users can read, if any. A folder that they cannot enter protects its content."""
    if not _others(root, stat.S_IXOTH):
        return None
    entries = sorted(root.iterdir())
    files = [entry for entry in entries if entry.is_file() and _others(entry, stat.S_IROTH)]
    deeper = (found for entry in entries if entry.is_dir() and (found := _shown(entry)))
    return files[0] if files else next(deeper, None)


def _others(path: Path, what: int) -> bool:
    return bool(path.stat().st_mode & what)


def state_folder(folder: Path) -> str:
    there = _nearest(folder)
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise Symptom(cures.STATE_DENIED, f"This user may not write to {there} (KILN_STATE_DIR is {folder}).")
    token = localtoken.path_in(folder)
    if token.exists():
        _token(token)
    return f"{_room(there)} in {folder}"


def _nearest(folder: Path) -> Path:
    """Returns the folder, or its nearest existing parent."""
    for path in (folder, *folder.parents):
        with suppress(PermissionError):  # it is in a folder that this user may not enter
            if path.exists():
                return path
    return Path("/")


def _token(path: Path) -> None:
    try:
        localtoken.read(path)
    except CommandError as error:
        raise Symptom(cures.TOKEN_FILE, error) from None


def _room(folder: Path) -> Room:
    found = Room.of(folder)
    if found.free < STATE_ROOM:
        raise Symptom(cures.STATE_FULL, f"The disk of {folder} is full: {found}.")
    if found.no_files:
        raise Symptom(cures.STATE_NO_INODES, f"The disk of {folder} has no free inodes.")
    if found.free < STATE_AMPLE:
        raise Symptom(cures.STATE_NEARLY_FULL, f"The disk of {folder} is nearly full: {found}.")
    if found.few_files:
        raise Symptom(cures.STATE_FEW_INODES, f"The disk of {folder} has few free inodes: {found}.")
    return found
