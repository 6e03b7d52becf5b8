"""Which Kiln the command talks to, and as whom.

What comes first counts: options, then `KILN_SERVER` and `KILN_TOKEN`, then a profile, then this machine's Kiln: its web
if one runs, or else its records themselves. A token
belongs to the server that was named with it: one of the environment or of a profile is never sent to a server from an
option.

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
from kiln import localtoken, running, yamlfile
from kiln.errors import CommandError, ConfigError
from kiln.settings import SETTINGS

OPTIONS = ("server", "token_file", "profile")
"""By which a command is told."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the file."""

    server: str
    token_file: str | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """`server` is a URL with the base path; `token_file` is where the token was read, if it was a file."""

    server: str
    token: str | None = None
    token_file: Path | None = None


def chosen(
    environ: Mapping[str, str], *, server: str | None, token_file: Path | None, profile: str | None
) -> Target | None:
    """`None` where this machine's records are asked without a server.

    Raises CommandError for a file that cannot be read, and for a profile that is not there.
    """
    named = None if server else profile or (None if environ.get("KILN_SERVER") else environ.get("KILN_PROFILE"))
    if named:
        kept = _profile(environ, named)
        file = token_file or (Path(kept.token_file).expanduser() if kept.token_file else None)
        return Target(server=kept.server, token=token_in(file), token_file=file)
    if not server and environ.get("KILN_SERVER"):
        token = environ.get("KILN_TOKEN") if token_file is None else token_in(token_file)
        return Target(server=environ["KILN_SERVER"], token=token, token_file=token_file)
    url = server or running.found(state_dir(environ)) or (here(environ) if in_cluster(environ) else None)
    if url is None:
        if token_file:
            raise CommandError(
                "--token-file: no web runs on this machine that a token could be for. Name one by --server."
            )
        return None
    file = token_file or local_token(environ, url)
    own = None if server or file else environ.get("KILN_TOKEN")
    return Target(server=url, token=own or token_in(file), token_file=file)


def is_named(environ: Mapping[str, str], options: Mapping[str, object]) -> bool:
    """Whether a server is named, by an option or the environment."""
    named = (options["server"], options["profile"], environ.get("KILN_SERVER"), environ.get("KILN_PROFILE"))
    return any(named)


def repeated(options: Mapping[str, object]) -> str:
    """Those of the options that were given, as a shell takes them, each with a space before it."""
    given = ((name.replace("_", "-"), options[name]) for name in OPTIONS if options[name])
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given)


def here(environ: Mapping[str, str]) -> str:
    """This machine's web: the one that runs, or else where it would be."""
    url = None if in_cluster(environ) else running.found(state_dir(environ))
    return url or _by_port(environ)


def in_cluster(environ: Mapping[str, str]) -> bool:
    """Whether the records are not this machine's."""
    return environ.get("KILN_ENGINE") == "kubernetes"


def state_dir(environ: Mapping[str, str]) -> Path:
    (setting,) = (setting for setting in SETTINGS if setting.name == "KILN_STATE_DIR")
    return Path(str(setting.read(environ.get(setting.name) or str(setting.default))))


def _by_port(environ: Mapping[str, str]) -> str:
    path = environ.get("KILN_BASE_PATH", "/").strip("/")
    return f"http://127.0.0.1:{environ.get('PORT') or 8000}/" + (f"{path}/" if path else "")


def local_token(environ: Mapping[str, str], url: str) -> Path | None:
    """The file with this machine's token, where there is one and it would not leave the machine."""
    try:
        near = is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return None
    path = localtoken.path_in(state_dir(environ))
    return path if near and path.exists() else None


def profiles_file(environ: Mapping[str, str]) -> Path:
    """https://specifications.freedesktop.org/basedir-spec/latest/: a relative path there is ignored."""
    folder = Path(environ.get("XDG_CONFIG_HOME") or "")
    return (folder if folder.is_absolute() else Path("~/.config").expanduser()) / "kiln" / "profiles.yaml"


def _profile(environ: Mapping[str, str], name: str) -> Profile:
    path = profiles_file(environ)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CommandError(f"The profile {name} needs {path}, which cannot be read: {error.strerror}") from None
    try:
        profiles = msgspec.convert(yamlfile.document(content).value or {}, dict[str, Profile])
    except (ConfigError, msgspec.ValidationError) as error:
        raise CommandError(f"{path}: {error}") from None
    if name not in profiles:
        raise CommandError(f"{path} has no profile {name}; it has {', '.join(sorted(profiles)) or 'none'}")
    return profiles[name]


def token_in(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--token-file: {file} cannot be read ({type(error).__name__})") from None
