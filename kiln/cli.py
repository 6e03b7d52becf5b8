"""The command `kiln`. Each subcommand imports its modules when it runs, so that all start fast.

An error is one line on standard error: `kiln: error:`, the fault, and the next step. The exit statuses are in
`kiln.exits`.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urljoin, urlsplit

import click

from kiln import buildcommands, target
from kiln.buildcommands import not_empty, server_flags
from kiln.errors import CommandError, KilnError, NotKnown
from kiln.exits import Exit
from kiln.settings import SETTINGS, for_web

if TYPE_CHECKING:
    from requests import Response

    from eventing.saved import Saved

F = TypeVar("F", bound=Callable[..., object])


def main() -> None:
    """Run the command line and exit with its status."""
    _prepare_streams()
    sys.exit(_run())


def _prepare_streams() -> None:
    if sys.stdout is None:  # the caller has closed it
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack characters of an event


def _run() -> int:
    """Run the command line, print the errors, and return the exit status."""
    try:
        status: int = commands.main(prog_name="kiln", standalone_mode=False)
        sys.stdout.flush()
    except (KilnError, click.ClickException, OSError, UnicodeEncodeError) as error:
        return _reported(error)
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    return status


def _reported(error: Exception) -> Exit:
    match error:
        case KilnError():
            return _failed(error.problems)
        case click.ClickException():
            return _misused(error)
        case BrokenPipeError():  # the reader of the output has ended, such as `head`
            _discard_output()
            return Exit.FAILED
        case OSError():
            _discard_output()
            return _failed([f"{error.filename or 'Standard output'}: {error.strerror}"])
        case UnicodeEncodeError() if not all(map(_is_text, sys.argv)):
            return _failed(["An argument contains bytes that are not UTF-8. Correct it, or rename the file."])
    raise error


def _failed(problems: Iterable[str]) -> Exit:
    for problem in problems:
        _complain(f"kiln: error: {problem}")
    return Exit.FAILED


def _is_text(argument: str) -> bool:
    """Whether an argument holds no byte that Python could not decode."""
    return not any("\udc80" <= letter <= "\udcff" for letter in argument)


def _discard_output() -> None:
    """Discard buffered output, which Python would otherwise write at its end, with another error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _misused(error: click.ClickException) -> Exit:
    """Print the error, and where to find the options."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _complain(error.format_message())
        return Exit.MISUSED
    context = error.ctx if isinstance(error, click.UsageError) else None
    _complain(f"kiln: error: {error.format_message()}")
    if context:
        _complain(f"{context.get_usage()}\n`{context.command_path} --help` shows every option.")
    return Exit.MISUSED


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kiln-images")
def commands() -> None:
    """Turn events into container images."""


def settings_flags(command: F) -> F:
    """Add every `KILN_*` setting as an option: `KILN_IMAGE_PREFIX` is `--image-prefix`."""
    for setting in reversed(SETTINGS):
        if not setting.name.startswith("K_") and setting.name != "KILN_FAULT":
            option = click.option(setting.flag, setting.name, help=f"{setting.says} [{setting.name}]", metavar="VALUE")
            command = option(command)
    return command


def environment(flags: dict[str, Any]) -> dict[str, str]:
    """The environment; values of options take precedence."""
    return {**os.environ, **{name: value for name, value in flags.items() if value is not None}}


@commands.command()
@settings_flags
def web(**flags: Any) -> None:
    """Serve the API, the pages and the webhooks."""
    from kiln import localtoken, ports, vitals, wiring  # noqa: PLC0415
    from kiln.gunicorn import Web  # noqa: PLC0415

    kiln = wiring.load(environment(flags))
    for_web(kiln.settings)
    ports.check(kiln.settings.host, kiln.settings.port)
    ops = wiring.ops(kiln, "web")
    token = localtoken.ensured(kiln.settings.state_dir).decode() if kiln.settings.loopback_only else None
    vitals.end_with_any_thread()
    Web(kiln.settings, ops, lambda stopping: wiring.app(kiln, stopping), token).run()


@commands.command()
@settings_flags
def controller(**flags: Any) -> None:
    """Run the requested builds. Further controllers wait for the first to end."""
    from builds.engines import EngineError  # noqa: PLC0415
    from kiln import wiring  # noqa: PLC0415

    kiln = wiring.load(environment(flags))
    try:
        wiring.run_controller(kiln)
    except EngineError as error:
        raise CommandError(str(error)) from error


@commands.command()
@settings_flags
def serve(**flags: Any) -> int:
    """Run web and controller, and restart them when they end."""
    from kiln import logs, wiring  # noqa: PLC0415
    from kiln import serve as both  # noqa: PLC0415

    given = environment(flags)
    found = wiring.load(given).settings
    for_web(found)
    logs.configure(found.log_level)
    return both.serve(given, found)


@commands.command()
@click.option(
    "--event", "saved", type=click.File("rb"), help="Show what this saved request would build, and build nothing."
)
@click.option("--online", is_flag=True, help="Run the probes of `kiln doctor` as well.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@settings_flags
def check(saved: BinaryIO | None, *, online: bool, as_json: bool, **flags: Any) -> int:
    """Check the environment, the YAML file and the secrets.

    With --event and a webhook's payload alone, --host names its Git host, such as `--host github`.
    """
    from eventing.hosts import DIALECTS  # noqa: PLC0415
    from kiln import check as checking  # noqa: PLC0415

    host = flags.pop("KILN_HOST") if saved and flags["KILN_HOST"] in DIALECTS else None
    event = None if saved is None else _content(saved)
    report = checking.check(environment(flags), event, host=host, online=online)
    for line in [report.as_json()] if as_json else report.lines():
        click.echo(line)
    return Exit.DONE if report.valid else Exit.FAILED


@commands.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@server_flags
@settings_flags
def diagnose(*, as_json: bool, **flags: Any) -> int:
    """Find faults, and name their cures.

    It examines this machine and the services that Kiln uses. With --server or --profile it examines that server from
    this machine. The exit status is 1 if a probe failed.
    """
    from kiln.doctor import installation, report, server  # noqa: PLC0415
    from kiln.embedded import with_prefix  # noqa: PLC0415

    options = {name: flags.pop(name) for name in target.OPTIONS}
    remote = target.resolve(os.environ, **options) if target.selects_server(os.environ, options) else None
    found = server.findings(remote) if remote else installation(with_prefix(environment(flags)))
    return report.report(found, as_json=as_json)


@commands.command()
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option("--dry-run", "dry", is_flag=True, help="Show missing builds without requesting them.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@settings_flags
def sync(urls: tuple[str, ...], dry: bool, as_json: bool, **flags: Any) -> int:
    """Request builds that no webhook requested.

    It compares the refs of the listed repositories, or of each URL, with the builds.
    """
    from kiln.sync import run  # noqa: PLC0415

    return run(environment(flags), urls, dry=dry, as_json=as_json, say=click.echo, complain=_complain)


@commands.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@settings_flags
@click.pass_context
def images(context: click.Context, /, as_json: bool, **flags: Any) -> int | None:
    """List the images that Kiln has pushed, and why each is kept."""
    context.obj = flags | {"as_json": as_json}
    if context.invoked_subcommand is not None:
        return None
    from kiln.images import show  # noqa: PLC0415

    return show(environment(flags), as_json=as_json, say=click.echo, complain=_complain)


@images.command()
@click.option("--delete", is_flag=True, help="Delete the images instead of only listing them.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@settings_flags
@click.pass_obj
def prune(before: dict[str, Any], /, delete: bool, as_json: bool, **flags: Any) -> int:
    """List the images that the rule `keep` does not retain, or delete them."""
    from kiln.images import prune  # noqa: PLC0415

    as_json = before.pop("as_json") or as_json
    given = environment(before | {name: value for name, value in flags.items() if value is not None})
    return prune(given, delete=delete, as_json=as_json, say=click.echo, complain=_complain)


def _complain(text: str) -> None:
    click.echo(text, err=True)


@commands.command()
@click.argument("repository", metavar="URL", callback=not_empty)
@click.option("--ref", help="Branch, tag, full ref or commit; by default HEAD.")
@click.option("--subdir", help="Folder of the repository to build.")
@click.option("--image", help="Image repository, without tag.")
@click.option("--tag", "tags", multiple=True, help="Further tag to set on the image. Can be repeated.")
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME=VALUE", help="Can be repeated.")
@click.option("--force", is_flag=True, help="Build again even if the image exists.")
@click.option(
    "--push/--no-push",
    default=None,
    help="On this machine: push the image, or leave it with the local daemon. By default KILN_IMAGE_PREFIX decides.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the build as JSON at its end.")
@server_flags
def build(build_args: tuple[str, ...], *, push: bool | None, as_json: bool, **asked: Any) -> Exit:
    """Build an image of a repository.

    The log goes to standard error, and the image's reference to standard output. Without a server this machine builds
    it, and no other process of Kiln needs to run.
    """
    from kiln.backends import open_backend  # noqa: PLC0415
    from kiln.follow import follow  # noqa: PLC0415

    _check_served(asked["repository"])
    pairs = _pairs(build_args)
    with open_backend(asked, push=push) as backend:
        backend.check_ready()
        body = {name: value for name, value in asked.items() if value} | {"build_args": pairs}
        return follow(backend, backend.server.ask(body), as_json=as_json)


def _check_served(repository: str) -> None:
    """Raises CommandError for a local folder, whose commit could be gone before the build begins."""
    path = "://" not in repository and (repository.startswith((".", "/", "~")) or Path(repository).exists())
    if path or repository.startswith("file:"):
        raise CommandError(
            f"{repository} is a local folder, and Kiln builds repositories that a Git host serves. Push it to a Git "
            "host and name its URL, or build the folder with jupyter-repo2docker."
        )


@commands.command()
@click.argument("image")
@click.option("--repository", metavar="URL", help="The repository that the image must come from.")
@click.option("--commit", help="The commit (40 or 64 hexadecimal digits) that the image must come from.")
@click.option("--builder-id", "builder", metavar="URI", help="The Kiln that must have built the image.")
@click.option("--key", type=click.Path(path_type=Path), help="Public key (PEM) of the required signature.")
@click.option("--registry-config", type=click.Path(path_type=Path), help="A docker config.json; by default the user's.")
@click.option(
    "--insecure-registry", "insecure", multiple=True, metavar="HOST:PORT", help="A registry that speaks plain HTTP."
)
@click.option("--json", "as_json", is_flag=True, help="Print the statement as JSON.")
def verify(registry_config: Path | None, insecure: tuple[str, ...], *, as_json: bool, **asked: Any) -> Exit:
    """Check the provenance of an image.

    IMAGE is name:tag or name@digest. The output is the facts that its provenance statement proves.

    Exit status: 0 the statement is valid, 1 it is not, 3 it could not be read.
    """
    import msgspec  # noqa: PLC0415

    from builds.clients.registry import Registry  # noqa: PLC0415
    from kiln.verify import VerifyOptions, describe  # noqa: PLC0415
    from kiln.verify import verify as verified  # noqa: PLC0415

    config = registry_config or os.environ.get("KILN_REGISTRY_CONFIG") or None
    try:
        image, found = verified(VerifyOptions(**asked), Registry(config, insecure))
    except NotKnown as error:
        _failed(error.problems)
        return Exit.UNKNOWN
    for line in [msgspec.json.encode(found.statement).decode()] if as_json else describe(image, found):
        click.echo(line)
    return Exit.DONE


@commands.command()
@click.argument("file", type=click.File("rb"))
@click.option("--to", "url", metavar="URL", help="Kiln's URL, or that of a route; by default this machine's Kiln.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with an API token.")
@click.option("--host", metavar="HOST", help="The Git host (github, gitea, …) of the payload in the file.")
@click.option("--sign", is_flag=True, help="Sign a webhook again, with a secret of KILN_SECRETS_DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print the response as JSON.")
def send(
    file: BinaryIO, url: str | None, token_file: Path | None, host: str | None, *, sign: bool, as_json: bool
) -> Exit:
    """Post a saved event or webhook to Kiln.

    The matching route receives it. FILE is an event as JSON, an array of events, an HTTP request, a webhook's record,
    the text of its delivery page, or, with --host, its payload alone.
    """
    from kiln.client import Server  # noqa: PLC0415

    request = _saved(_content(file), host)
    url = _route(url, request.word)
    token_file = token_file or (None if request.word else target.local_token(os.environ, url))
    headers = _signed(request) if sign else request.sent
    answer = Server(url, target.token_in(token_file)).send(url, headers, request.body)
    _show(answer, as_json=as_json)
    if answer.status_code == HTTPStatus.UNAUTHORIZED and request.word and not sign:
        _failed(["The signature does not match: the body or the secret has changed. --sign signs the webhook again."])
    return Exit.DONE if answer.ok else Exit.FAILED


def _show(answer: Response, *, as_json: bool) -> None:
    location = answer.headers.get("Location")
    if as_json:
        response = {"status": answer.status_code, "reason": answer.reason, "location": location, "body": answer.text}
        click.echo(json.dumps(response))
        return
    click.echo(f"{answer.status_code} {answer.reason}")
    if location:
        click.echo(f"Location: {location}")
    if answer.text:
        click.echo(answer.text)


def _content(file: BinaryIO) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise CommandError(f"{file.name} cannot be read: {error.strerror}. Name another file.") from None


def _route(url: str | None, word: str | None) -> str:
    """The URL of the matching route, if `url` is `None`, Kiln's own or its route for events; else `url`."""
    url = url or f"{target.local_url(os.environ)}events"
    with suppress(ValueError):  # the client reports an invalid URL
        path = urlsplit(url).path
        if word and (not path or path.endswith(("/", "/events"))):
            return urljoin(url, f"webhooks/{word}")
    return url


def _saved(content: bytes, host: str | None) -> Saved:
    """Raises CommandError."""
    from eventing import saved  # noqa: PLC0415
    from eventing.errors import SavedError  # noqa: PLC0415

    try:
        return saved.parse(content, host)
    except SavedError as error:
        raise CommandError(str(error)) from None


def _signed(request: Saved) -> dict[str, str]:
    """The headers of a webhook, signed with a secret of this machine. Raises CommandError."""
    from eventing.hosts import DIALECTS  # noqa: PLC0415
    from kiln.secrets import Secrets  # noqa: PLC0415

    if request.word is None:
        raise CommandError("--sign: only webhooks of Git hosts are signed. Omit --sign.")
    folder = os.environ.get("KILN_SECRETS_DIR")
    try:
        secrets = Secrets(Path(folder) if folder else None).webhooks(request.word)
    except OSError as error:
        raise CommandError(
            f"--sign: KILN_SECRETS_DIR cannot be read: {error.strerror}. Correct its path or permissions."
        ) from None
    if not secrets:
        raise CommandError(
            f"--sign: KILN_SECRETS_DIR has no secret in webhooks/{request.word}. Add a file with the secret."
        )
    return DIALECTS[request.word].signed(request.sent, request.body, secrets[0], datetime.now(UTC))


def _pairs(arguments: tuple[str, ...]) -> dict[str, str]:
    pairs = [argument.partition("=") for argument in arguments]
    if any(not name or not equals for name, equals, _ in pairs):
        raise click.UsageError("--build-arg must have the form NAME=VALUE")
    return {name: value for name, _, value in pairs}


for command in buildcommands.COMMANDS:
    commands.add_command(command)
