"""Follow a build to its end, for `kiln build` and `kiln rebuild`: progress, Ctrl-C, and the exit status.

The build continues when the command ends early. On a terminal Ctrl-C asks whether to cancel the build. A second Ctrl-C
leaves it running, as does a signal to a command without a terminal.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import click
import msgspec

from builds.explanation import NEXT_STEPS
from kiln.backends import Backend
from kiln.client import BuildJSON
from kiln.errors import CommandError
from kiln.exits import Exit
from kiln.progress import Progress, printable


def follow(backend: Backend, build: BuildJSON, *, as_json: bool) -> Exit:
    """Follow the build, print its image's reference (as JSON the whole build), and return the exit status."""
    click.echo(f"{build['name']}: {backend.log_location(build)}", err=True)
    try:
        with _sigterm_raises():
            build = _ended(backend, build)
    except _Left as left:
        with suppress(CommandError):  # the server may be unreachable by now
            click.echo(backend.left_message(build["name"]), err=True)
        return left.status
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(build), indent=2))
    if build["state"] == "succeeded":
        _print_image(build, as_json=as_json)
        return Exit.DONE
    message = build["message"] or "No reason given."
    sentence = message if message.endswith((".", "!", "?")) else f"{message}."
    cure = NEXT_STEPS.get(build["reason"] or "", "")
    click.echo(printable(f"kiln: error: {build['state']} ({build['reason']}): {sentence} {cure}".rstrip()), err=True)
    return Exit.FAILED


def _print_image(build: BuildJSON, *, as_json: bool) -> None:
    reference = build["image"]["reference"]
    if not as_json:
        click.echo(reference)
    if sys.stderr.isatty():
        click.echo(f"To run it: docker run --rm --publish 127.0.0.1:8888:8888 {reference}", err=True)


class _Left(Exception):
    """The command ends before the build."""

    def __init__(self, status: Exit) -> None:
        self.status = status


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended(backend: Backend, build: BuildJSON) -> BuildJSON:
    """Show the progress of a build, and return it when it has ended. Raises _Left."""
    name, last = build["name"], None
    while True:
        try:
            with Progress(sys.stderr) as progress:
                for message in backend.server.follow(name, last):
                    last = message.id or last
                    progress.show(message)
            if not backend.settle(name):
                return backend.server.build(name)
        except KeyboardInterrupt as interrupt:
            _ask_to_cancel(backend, name, interrupt)


def _ask_to_cancel(backend: Backend, name: str, interrupt: KeyboardInterrupt) -> None:
    """Ask the user, and cancel the build on `y`. Raises _Left without a terminal, after SIGTERM or a second Ctrl-C."""
    if isinstance(interrupt, _Terminated):
        raise _Left(Exit.TERMINATED) from None
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise _Left(Exit.INTERRUPTED) from None
    try:
        if click.confirm("Cancel the build? Ctrl-C again leaves it running", err=True):
            with suppress(CommandError):  # the build has just ended; the caller shows how
                backend.server.cancel(name)
    except (click.Abort, KeyboardInterrupt):
        raise _Left(Exit.INTERRUPTED) from None
