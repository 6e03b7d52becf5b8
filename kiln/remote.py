"""Commands about the builds of a Kiln that runs: each is a few requests of its HTTP API.

With `--json` a command prints what the API answered, and nothing else, on standard output.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kiln import target
from kiln.errors import CommandError
from kiln.target import Target

if TYPE_CHECKING:
    from kiln.client import Server

F = TypeVar("F", bound=Callable[..., object])

OPTIONS = ("server", "token_file", "profile")
STATES = ("queued", "running", "succeeded", "failed", "cancelled")


def server_flags(command: F) -> F:
    """Where Kiln is, and who asks."""
    server = click.option("--server", default=None, metavar="URL", help="Kiln's URL. [KILN_SERVER]")
    token = click.option(
        "--token-file", type=click.Path(path_type=Path), help="File with an API token. [KILN_TOKEN: the token itself]"
    )
    profile = click.option("--profile", metavar="NAME", help="Entry of profiles.yaml with both. [KILN_PROFILE]")
    return server(token(profile(command)))


def targeted(flags: dict[str, Any]) -> Target:
    """Takes the flags of `server_flags` out of `flags`. Raises CommandError."""
    return target.chosen(os.environ, **{name: flags.pop(name) for name in OPTIONS})


def repeated(flags: Mapping[str, Any]) -> str:
    """Those of them that were given, as a shell takes them, each with a space before it."""
    given = ((name.replace("_", "-"), flags[name]) for name in OPTIONS if flags[name])
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given)


def connected(flags: dict[str, Any]) -> Server:
    """The server that they name. Raises CommandError."""
    from kiln.client import Server  # noqa: PLC0415

    found = targeted(flags)
    return Server(found.server, found.token)


as_json = click.option("--json", "json", is_flag=True, help="Print the API's answer as JSON.")


@click.command("ls")
@click.option("--repository", metavar="URL", help="Only builds of this repository.")
@click.option("--state", type=click.Choice(STATES), help="Only builds in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@as_json
@server_flags
def ls(*, json: bool, **flags: Any) -> None:
    """List builds, newest first."""
    from kiln import tables  # noqa: PLC0415

    server = connected(flags)
    page = server.list({name: value for name, value in flags.items() if value is not None})
    if json:
        _print(page)
    else:
        tables.listed(page["items"], datetime.now(UTC))


@click.command("show")
@click.argument("name")
@as_json
@server_flags
def show(name: str, *, json: bool, **flags: Any) -> None:
    """Show all that is known of a build."""
    from kiln import tables  # noqa: PLC0415

    build = connected(flags).build(name)
    if json:
        _print(build)
    else:
        tables.shown(build)


@click.command("logs")
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until the build has ended.")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt; by default the latest.")
@server_flags
def logs(name: str, *, follow: bool, attempt: int | None, **flags: Any) -> int:
    """Print the log of a build. With --follow the exit status is 1 where the build does not succeed."""
    from kiln.progress import printable  # noqa: PLC0415

    if follow and attempt:
        raise click.UsageError("--follow goes on from one attempt to the next, so it takes no --attempt")
    server = connected(flags)
    if not follow:
        for line in server.log(name, attempt):
            click.echo(printable(line))
        return 0
    state = ""
    for message in server.follow(name):
        if message.kind == "log":
            click.echo(printable(str(message.data.get("line") or "")))
        elif message.kind == "state":
            state = message.data["state"]
    return 0 if state == "succeeded" else 1


@click.command("cancel")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@as_json
@server_flags
def cancel(names: tuple[str, ...], *, json: bool, **flags: Any) -> None:
    """Cancel builds that have not ended."""
    server = connected(flags)
    for name in names:
        build = server.cancel(name)
        if json:
            _print(build)
        else:
            click.echo(f"{name}: cancelling")


@click.command("open")
@click.argument("name", required=False)
@server_flags
def open_page(name: str | None, **flags: Any) -> None:
    """Open the page of a build, or of all builds, in a browser."""
    from kiln.client import Server  # noqa: PLC0415

    url = Server(targeted(flags).server).page(name)
    click.echo(url)
    if click.launch(url):
        raise CommandError("No browser could be started. Open the address above.")


def _print(value: Any) -> None:
    import msgspec  # noqa: PLC0415

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


COMMANDS = (ls, show, logs, cancel, open_page)
