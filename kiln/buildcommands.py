"""Commands about builds: each sends a few requests to the HTTP API of a server or of the embedded Kiln.

With `--json` a command prints the API's response alone on standard output.
"""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from builds.build import State
from kiln import target
from kiln.errors import CommandError, KilnError
from kiln.exits import Exit
from kiln.target import Target

if TYPE_CHECKING:
    from kiln.client import Server

F = TypeVar("F", bound=Callable[..., object])

MAX_COMPLETED = 50
"""Builds whose names a shell completes."""
STATES = [state.value for state in State]


def not_empty(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty value, which a shell makes of an unset variable."""
    if value == "":
        raise click.BadParameter("must not be empty.")
    return value


def server_flags(command: F) -> F:
    """Add the options that select the server and the credential."""
    server = click.option("--server", default=None, metavar="URL", callback=not_empty, help="Kiln's URL. [KILN_SERVER]")
    token = click.option(
        "--token-file", type=click.Path(path_type=Path), help="File with an API token. [KILN_TOKEN: the token itself]"
    )
    profile = click.option(
        "--profile", metavar="NAME", callback=not_empty, help="Entry of profiles.yaml with both. [KILN_PROFILE]"
    )
    return server(token(profile(command)))


def selected(flags: dict[str, Any]) -> Target | None:
    """The server that `flags` select; takes the options of `server_flags` out of them. Raises CommandError."""
    return target.resolve(os.environ, **{name: flags.pop(name) for name in target.OPTIONS})


def connected(flags: dict[str, Any]) -> Server:
    """The server that `flags` select, or else the embedded Kiln. Raises KilnError."""
    from kiln.client import Server  # noqa: PLC0415

    found = selected(flags)
    if found:
        return Server(found.server, found.token)
    from kiln.embedded import open_kiln  # noqa: PLC0415

    return open_kiln(os.environ).server


def complete(context: click.Context, _parameter: click.Parameter, prefix: str) -> list[CompletionItem]:
    """The names of the latest builds that begin with `prefix`; none after an error."""
    flags = {name: context.params.get(name) for name in target.OPTIONS}
    try:
        items = connected(flags).list({"limit": MAX_COMPLETED})["items"]
    except KilnError:
        return []
    found = ((item["name"], f"{item['state']} {item['repository']}") for item in items)
    return [CompletionItem(name, help=about) for name, about in found if name.startswith(prefix)]


as_json = click.option("--json", "json", is_flag=True, help="Print the API's response as JSON.")


@click.command("ls")
@click.option("--repository", metavar="URL", help="Only builds of this repository.")
@click.option("--state", type=click.Choice(STATES), help="Only builds in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many, newest first.")
@click.option(
    "--continue",
    metavar="CURSOR",
    callback=not_empty,
    help="Go on after an earlier list: its `continue`, with the same other options.",
)
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
        tables.print_builds(page["items"], datetime.now(UTC))


@click.command("show")
@click.argument("name", shell_complete=complete)
@as_json
@server_flags
def show(name: str, *, json: bool, **flags: Any) -> None:
    """Show all facts about a build."""
    from kiln import tables  # noqa: PLC0415

    build = connected(flags).build(name)
    if json:
        _print(build)
    else:
        tables.print_build(build)


@click.command("logs")
@click.argument("name", shell_complete=complete)
@click.option("-f", "--follow", is_flag=True, help="Continue to the end of the build.")
@click.option("--attempt", type=click.IntRange(1), help="The number of the attempt; by default the latest.")
@click.option("--json", "json", is_flag=True, help="Print a JSON object for each line.")
@server_flags
def logs(name: str, *, follow: bool, attempt: int | None, json: bool, **flags: Any) -> Exit:
    """Print the log of a build.

    With --follow the exit status is 1 unless the build succeeds.
    """
    if follow and attempt:
        raise click.UsageError("--follow covers all attempts. Omit --attempt, or --follow.")
    if follow:
        return _follow(name, flags, json=json)
    for line in connected(flags).log(name, attempt):
        _line(line, json=json)
    return Exit.DONE


def _follow(name: str, flags: dict[str, Any], *, json: bool) -> Exit:
    """Without a server a controller runs meanwhile: possibly no other process would continue the build."""
    from kiln.backends import open_backend  # noqa: PLC0415

    state = ""
    with open_backend(flags) as backend:
        for message in backend.server.follow(name):
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
    from kiln.backends import open_backend  # noqa: PLC0415
    from kiln.client import ENDED  # noqa: PLC0415

    problems: list[str] = []
    with open_backend(flags) as backend:
        for name in dict.fromkeys(names):
            try:
                build = backend.cancel(name)
            except CommandError as error:
                problems += [f"{name}: {problem}" for problem in error.problems] if len(names) > 1 else error.problems
                continue
            if json:
                _print(build, indent=2 if len(names) == 1 else 0)
            else:
                click.echo(f"{name}: {build['state'] if build['state'] in ENDED else 'cancelling'}")
    if problems:
        raise KilnError(problems)


@click.command("rebuild")
@click.argument("name", shell_complete=complete)
@as_json
@server_flags
def rebuild(name: str, *, json: bool, **flags: Any) -> Exit:
    """Build an image again, from the same commit.

    The log goes to standard error, and the image's reference to standard output.
    """
    from kiln.backends import open_backend  # noqa: PLC0415
    from kiln.follow import follow  # noqa: PLC0415

    with open_backend(flags, rebuilt=name) as backend:
        backend.check_ready()
        return follow(backend, backend.server.rebuild(name), as_json=json)


@click.command("open")
@click.argument("name", required=False, shell_complete=complete)
@click.option("--json", "json", is_flag=True, help="Print the address as JSON.")
@server_flags
def open_page(name: str | None, *, json: bool, **flags: Any) -> None:
    """Open the page of a build in a browser.

    Without NAME it opens the list of builds.
    """
    from kiln.client import Server  # noqa: PLC0415

    found = selected(flags)
    if found is None:
        raise CommandError("No web runs on this machine. Start `kiln serve`, then open the page.")
    url = Server(found.server).page(name)
    if json:
        _print({"url": url})
    else:
        click.echo(url)
    if not webbrowser.open(url):
        raise CommandError("No browser was found. Open the printed address in one.")


def _print(value: Any, indent: int = 2) -> None:
    import msgspec  # noqa: PLC0415

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=indent).decode() + "\n")


COMMANDS = (ls, show, logs, cancel, rebuild, open_page)
