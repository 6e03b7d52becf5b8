"""The command `kiln`. Each command imports what it needs when it runs, so that none pays for another.

Exit status: 0 done, 1 it went wrong (a sentence on standard error says what), 2 misused, 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import click

from builds.repository import is_loopback
from kiln.errors import CommandError, KilnError
from kiln.settings import SETTINGS, for_web

F = TypeVar("F", bound=Callable[..., object])


def main() -> None:
    """Runs the command line and exits with its status."""
    try:
        status = commands.main(prog_name="kiln", standalone_mode=False)
    except KilnError as error:
        for problem in error.problems:
            click.echo(f"kiln: {problem}", err=True)
        status = 1
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        status = 130
    sys.exit(status)


@click.group()
@click.version_option(package_name="kiln-images")
def commands() -> None:
    """Turns events into container images."""


def settings_flags(command: F) -> F:
    """Every `KILN_*` setting as an option: `KILN_IMAGE_PREFIX` is `--image-prefix`."""
    for setting in reversed(SETTINGS):
        if not setting.name.startswith("K_") and setting.name != "KILN_FAULT":
            option = click.option(setting.flag, setting.name, help=f"{setting.says} [{setting.name}]", metavar="VALUE")
            command = option(command)
    return command


def environment(flags: dict[str, Any]) -> dict[str, str]:
    """The environment, with what was given as options before it."""
    return {**os.environ, **{name: value for name, value in flags.items() if value is not None}}


@commands.command()
@settings_flags
def web(**flags: Any) -> None:
    """Serve the API, the pages and the webhooks."""
    from kiln import localtoken, vitals, wiring  # noqa: PLC0415
    from kiln.gunicorn import Web  # noqa: PLC0415

    kiln = wiring.load(environment(flags))
    for_web(kiln.settings)
    ops = wiring.ops(kiln, "web")
    token = localtoken.ensured(kiln.settings.state_dir).decode() if kiln.settings.loopback_only else None
    vitals.end_with_any_thread()
    Web(kiln.settings, ops, lambda stopping: wiring.app(kiln, stopping), token).run()


@commands.command()
@settings_flags
def controller(**flags: Any) -> None:
    """Run the builds that were asked for. One of these runs at a time."""
    from builds.engines import EngineError  # noqa: PLC0415
    from kiln import wiring  # noqa: PLC0415

    kiln = wiring.load(environment(flags))
    try:
        wiring.run_controller(kiln)
    except EngineError as error:
        raise CommandError(str(error)) from error


@commands.command()
@click.option(
    "--event", "saved", type=click.File("rb"), help="Show what this saved request would build, and build nothing."
)
@click.option("--online", is_flag=True, help="Look also at what has to answer: Docker, registries, Git hosts, sinks.")
@settings_flags
def check(saved: BinaryIO | None, online: bool, **flags: Any) -> int:
    """Check the environment, the YAML file and the secrets."""
    from kiln import doctor  # noqa: PLC0415

    return doctor.check(environment(flags), None if saved is None else saved.read(), click.echo, online=online)


@commands.command()
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--dry-run", "dry", is_flag=True, help="Show what is missing, and ask for nothing.")
@settings_flags
def sync(urls: tuple[str, ...], dry: bool, **flags: Any) -> int:
    """Ask for what the listed repositories have and no webhook has told of."""
    from kiln.sync import run  # noqa: PLC0415

    return run(environment(flags), urls, dry=dry, say=click.echo, complain=lambda text: click.echo(text, err=True))


def server_flags(command: F) -> F:
    """Where Kiln is, and who asks."""
    server = click.option("--server", default=None, metavar="URL", help="Kiln's URL; by default this machine's.")
    token = click.option("--token-file", type=click.Path(path_type=Path), help="File with an API token.")
    return server(token(command))


@commands.command()
@click.argument("repository", metavar="URL")
@click.option("--ref", help="Branch, tag, full ref or commit; by default HEAD.")
@click.option("--subdir", help="Folder of the repository to build.")
@click.option("--image", help="Image repository, without tag.")
@click.option("--tag", "tags", multiple=True, help="Further tag to set on the image. Can be repeated.")
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME=VALUE", help="Can be repeated.")
@click.option("--force", is_flag=True, help="Build again what was built before.")
@server_flags
def build(server: str | None, token_file: Path | None, build_args: tuple[str, ...], **asked: Any) -> int:
    """Ask for an image of a repository, follow the log, and print the image's reference."""
    from kiln.client import Server  # noqa: PLC0415
    from kiln.progress import Progress, printable  # noqa: PLC0415

    body = {name: value for name, value in asked.items() if value} | {"build_args": _pairs(build_args)}
    server = server or _here()
    token_file = token_file or _local_token(server)
    kiln = Server(server, _token(token_file))
    made = kiln.ask(body)
    location = kiln.location(made["log"]["url"]).removesuffix("/log")
    click.echo(f"{made['name']}: {location}", err=True)
    try:
        with Progress(sys.stderr) as progress:
            for message in kiln.follow(made["name"]):
                progress.show(message)
                if message.kind == "state":
                    made = message.data
    except KeyboardInterrupt:
        header = f' -H "Authorization: Bearer $(cat {shlex.quote(str(token_file))})"' if token_file else ""
        click.echo(f"The build goes on. To cancel it: curl -X DELETE{header} {shlex.quote(location)}", err=True)
        return 130
    if made["state"] == "succeeded":
        click.echo(made["image"]["reference"])
        return 0
    click.echo(
        printable(f"kiln: {made['state']} ({made['reason']}): {made['message'] or 'no reason was given'}"), err=True
    )
    return 1


@commands.command()
@click.argument("file", type=click.File("rb"))
@click.option("--to", "url", metavar="URL", help="By default /events of this machine's Kiln.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with an API token.")
def send(file: BinaryIO, url: str | None, token_file: Path | None) -> int:
    """Post a saved event (JSON, a JSON array for a batch, or a whole HTTP request) and print the answer."""
    from kiln import saved  # noqa: PLC0415
    from kiln.client import Server  # noqa: PLC0415

    url = url or f"{_here()}events"
    request = saved.parse(file.read())
    answer = Server(url, _token(token_file or _local_token(url))).send(url, request.headers, request.body)
    click.echo(f"{answer.status_code} {answer.reason}")
    if "Location" in answer.headers:
        click.echo(f"Location: {answer.headers['Location']}")
    if answer.text:
        click.echo(answer.text)
    return 0 if answer.ok else 1


def _here() -> str:
    path = os.environ.get("KILN_BASE_PATH", "/").strip("/")
    return f"http://127.0.0.1:{os.environ.get('PORT') or 8000}/" + (f"{path}/" if path else "")


def _local_token(url: str) -> Path | None:
    """The file with this machine's token, where there is one and it would not leave the machine."""
    from kiln import localtoken  # noqa: PLC0415

    try:
        here = is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return None
    (setting,) = (setting for setting in SETTINGS if setting.name == "KILN_STATE_DIR")
    folder = setting.read(os.environ.get(setting.name) or str(setting.default))
    path = localtoken.path_in(Path(str(folder)))
    return path if here and path.exists() else None


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--token-file: {file} cannot be read ({type(error).__name__})") from None


def _pairs(arguments: tuple[str, ...]) -> dict[str, str]:
    pairs = [argument.partition("=") for argument in arguments]
    if any(not name or not equals for name, equals, _ in pairs):
        raise click.UsageError("--build-arg must be NAME=VALUE")
    return {name: value for name, _, value in pairs}
