"""Commands about builds: each is a few requests of the HTTP API, of a Kiln that runs or of this machine's records.

With `--json` a command prints what the API answered, and nothing else, on standard output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from kiln import target
from kiln.errors import CommandError, KilnError
from kiln.exits import Exit
from kiln.target import Target

if TYPE_CHECKING:
    from kiln.client import Server

F = TypeVar("F", bound=Callable[..., object])

COMPLETED = 50
"""Builds whose names a shell completes."""
STATES = ("queued", "running", "succeeded", "failed", "cancelled")


def server_flags(command: F) -> F:
    """Where Kiln is, and who asks."""
    server = click.option("--server", default=None, metavar="URL", help="Kiln's URL. [KILN_SERVER]")
    token = click.option(
        "--token-file", type=click.Path(path_type=Path), help="File with an API token. [KILN_TOKEN: the token itself]"
    )
    profile = click.option("--profile", metavar="NAME", help="Entry of profiles.yaml with both. [KILN_PROFILE]")
    return server(token(profile(command)))


def targeted(flags: dict[str, Any]) -> Target | None:
    """Takes the flags of `server_flags` out of `flags`. Raises CommandError."""
    return target.chosen(os.environ, **{name: flags.pop(name) for name in target.OPTIONS})


def connected(flags: dict[str, Any]) -> Server:
    """The server that they name, or this machine's records. Raises KilnError."""
    from kiln.client import Server  # noqa: PLC0415

    found = targeted(flags)
    if found:
        return Server(found.server, found.token)
    from kiln.here import opened  # noqa: PLC0415

    return opened(os.environ).server


def complete(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The names of the latest builds; none where they cannot be had."""
    flags = {name: context.params.get(name) for name in target.OPTIONS}
    try:
        items = connected(flags).list({"limit": COMPLETED})["items"]
    except KilnError:
        return []
    found = ((item["name"], f"{item['state']} {item['repository']}") for item in items)
    return [CompletionItem(name, help=about) for name, about in found if name.startswith(begun)]


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
@click.argument("name", shell_complete=complete)
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
@click.argument("name", shell_complete=complete)
@click.option("-f", "--follow", is_flag=True, help="Go on until the build has ended.")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt; by default the latest.")
@click.option("--json", "json", is_flag=True, help="Print a JSON object for each line.")
@server_flags
def logs(name: str, *, follow: bool, attempt: int | None, json: bool, **flags: Any) -> Exit:
    """Print the log of a build. With --follow the exit status is 1 where the build does not succeed."""
    if follow and attempt:
        raise click.UsageError("--follow goes on from one attempt to the next, so it takes no --attempt")
    if follow:
        return _follow(name, flags, json=json)
    for line in connected(flags).log(name, attempt):
        _line({"line": line}, json=json)
    return Exit.DONE


def _follow(name: str, flags: dict[str, Any], *, json: bool) -> Exit:
    """On this machine the build is gone on with: no other process may be there to do it."""
    from kiln import building  # noqa: PLC0415

    state = ""
    with building.place(flags) as where:
        for message in where.server.follow(name):
            if message.kind == "log":
                _line(message.data, json=json)
            elif message.kind == "state":
                state = message.data["state"]
    return Exit.DONE if state == "succeeded" else Exit.FAILED


def _line(line: dict[str, Any], *, json: bool) -> None:
    from kiln.progress import printable  # noqa: PLC0415

    if json:
        _print(line, indent=0)
    else:
        click.echo(printable(str(line.get("line") or "")))


@click.command("cancel")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete)
@as_json
@server_flags
def cancel(names: tuple[str, ...], *, json: bool, **flags: Any) -> None:
    """Cancel builds that have not ended."""
    from kiln import building  # noqa: PLC0415

    with building.place(flags) as where:
        for name in names:
            build = building.cancel(where, name)
            if json:
                _print(build)
            else:
                click.echo(f"{name}: {build['state'] if build['state'] in building.ENDED else 'cancelling'}")


@click.command("rebuild")
@click.argument("name", shell_complete=complete)
@as_json
@server_flags
def rebuild(name: str, *, json: bool, **flags: Any) -> Exit:
    """Build the same image of the same commit once more, follow the log, and print the image's reference."""
    from kiln import building  # noqa: PLC0415

    with building.place(flags, of=name) as where:
        where.ready()
        return building.finish(where, where.server.rebuild(name), as_json=json)


@click.command("open")
@click.argument("name", required=False, shell_complete=complete)
@click.option("--json", "json", is_flag=True, help="Print the address as JSON.")
@server_flags
def open_page(name: str | None, *, json: bool, **flags: Any) -> None:
    """Open the page of a build, or of all builds, in a browser."""
    from kiln.client import Server  # noqa: PLC0415

    found = targeted(flags)
    if found is None:
        raise CommandError("No web runs on this machine that has pages. Start `kiln serve`, and open it then.")
    url = Server(found.server).page(name)
    if json:
        _print({"url": url})
    else:
        click.echo(url)
    if click.launch(url):
        raise CommandError("No browser could be started. Open the address above.")


def _print(value: Any, indent: int = 2) -> None:
    import msgspec  # noqa: PLC0415

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=indent).decode() + "\n")


COMMANDS = (ls, show, logs, cancel, rebuild, open_page)
