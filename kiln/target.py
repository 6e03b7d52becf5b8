"""The server of a command, and the credential for it.

The first of these counts: options, `KILN_SERVER` with `KILN_TOKEN`, a profile, and the web of this machine. Without any
of them the command uses the embedded Kiln. A token belongs to the server that was named with it. So a token of the
environment or of a profile is never sent to a server from an option.

    ~/.config/kiln/profiles.yaml (XDG Base Directory Specification: $XDG_CONFIG_HOME in place of ~/.config)

    campus:
      server: https://kiln.example.edu/
      token_file: ~/.config/kiln/campus.token
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from builds.repository import is_loopback
from kiln import discovery, localtoken, yamlfile
from kiln.errors import CommandError, ConfigError
from kiln.settings import SETTINGS

OPTIONS = ("server", "token_file", "profile")
"""The options that select a server."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of profiles.yaml."""

    server: str
    token_file: str | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """`server` is a URL with the base path; `token_file` is the file that held the token, if any."""

    server: str
    token: str | None = None
    token_file: Path | None = None


def resolve(
    environ: Mapping[str, str], *, server: str | None, token_file: Path | None, profile: str | None
) -> Target | None:
    """The selected server; `None` for the embedded Kiln.

    Raises CommandError for an unreadable file or a missing profile.
    """
    named = None if server else profile or (None if environ.get("KILN_SERVER") else environ.get("KILN_PROFILE"))
    if named:
        kept = _profile(environ, named)
        file = token_file or (Path(kept.token_file).expanduser() if kept.token_file else None)
        return Target(server=kept.server, token=token_in(file), token_file=file)
    if not server and environ.get("KILN_SERVER"):
        token = environ.get("KILN_TOKEN") if token_file is None else token_in(token_file)
        return Target(server=environ["KILN_SERVER"], token=token, token_file=token_file)
    url = server or discovery.running_web(state_dir(environ)) or (local_url(environ) if in_cluster(environ) else None)
    if url is None:
        if token_file:
            raise CommandError("--token-file: No web runs on this machine. Name a server with --server.")
        return None
    file = token_file or local_token(environ, url)
    own = None if server or file else environ.get("KILN_TOKEN")
    return Target(server=url, token=own or token_in(file), token_file=file)


def selects_server(environ: Mapping[str, str], options: Mapping[str, object]) -> bool:
    """Whether an option or the environment selects a server."""
    named = (options["server"], options["profile"], environ.get("KILN_SERVER"), environ.get("KILN_PROFILE"))
    return any(named)


def as_arguments(options: Mapping[str, object]) -> str:
    """The options that have a value, quoted for a shell, each with a space before it."""
    given = ((name.replace("_", "-"), options[name]) for name in OPTIONS if options[name])
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given)


def local_url(environ: Mapping[str, str]) -> str:
    """The URL of this machine's running web, or else of the port that a web would use."""
    url = None if in_cluster(environ) else discovery.running_web(state_dir(environ))
    return url or _by_port(environ)


def in_cluster(environ: Mapping[str, str]) -> bool:
    """Whether the records are in a cluster, not on this machine."""
    return environ.get("KILN_ENGINE") == "kubernetes"


def state_dir(environ: Mapping[str, str]) -> Path:
    (setting,) = (setting for setting in SETTINGS if setting.name == "KILN_STATE_DIR")
    return Path(str(setting.read(environ.get(setting.name) or str(setting.default))))


def _by_port(environ: Mapping[str, str]) -> str:
    path = environ.get("KILN_BASE_PATH", "/").strip("/")
    return f"http://127.0.0.1:{environ.get('PORT') or 8000}/" + (f"{path}/" if path else "")


def local_token(environ: Mapping[str, str], url: str) -> Path | None:
    """The file with this machine's token, if it exists and `url` is a loopback address."""
    try:
        near = is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return None
    path = localtoken.path_in(state_dir(environ))
    return path if near and path.exists() else None


def profiles_file(environ: Mapping[str, str]) -> Path:
    """https://specifications.freedesktop.org/basedir-spec/latest/: a relative XDG_CONFIG_HOME is ignored."""
    folder = Path(environ.get("XDG_CONFIG_HOME") or "")
    return (folder if folder.is_absolute() else Path("~/.config").expanduser()) / "kiln" / "profiles.yaml"


def _profile(environ: Mapping[str, str], name: str) -> Profile:
    path = profiles_file(environ)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CommandError(
            f"The profile {name} cannot be read from {path}: {error.strerror}. Correct that, or use --server."
        ) from None
    try:
        profiles = msgspec.convert(yamlfile.document(content).value or {}, dict[str, Profile])
    except (ConfigError, msgspec.ValidationError) as error:
        raise CommandError(f"{path}: {error}") from None
    if name not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise CommandError(f"{path} has no profile {name}; it has {known}. Add {name}, or name another profile.")
    return profiles[name]


def token_in(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"The token file {file} cannot be read ({type(error).__name__}). Correct its path or permissions."
        ) from None
