"""`kiln build` and `kiln rebuild` from the request to the image: follow the log, ask on Ctrl-C, tell how it ended.

A command that ends before its build leaves it running. On a terminal Ctrl-C asks first, because a person may mean
either; a second Ctrl-C, and a signal where nobody can be asked, leave it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, Protocol

import click
import msgspec

from builds.build import LOCAL_IMAGES
from builds.explanation import NEXT_STEPS
from kiln import target
from kiln.client import Server
from kiln.errors import CommandError
from kiln.exits import Exit
from kiln.here import Here, Work, opened
from kiln.progress import Progress, printable

Shape = dict[str, Any]
"""A build as the API gives it (`builds.report.BuildView`)."""

ENDED = ("succeeded", "failed", "cancelled")


class Place(Protocol):
    """Where a build is done. All methods raise CommandError."""

    server: Server

    def ready(self) -> None:
        """Raises CommandError where nothing can be built."""

    def log_of(self, build: Shape) -> str:
        """Where its log is."""

    def left(self, name: str) -> str:
        """What becomes of a build that the command does not wait for, in sentences."""

    def check(self) -> None:
        """Raises CommandError where nobody builds any more."""

    def settle(self, name: str) -> bool:
        """Waits until all of an ended build is done. Returns whether it was opened again instead."""


class AtServer:
    """`repeated` are the options that name the server, as a shell takes them."""

    def __init__(self, server: Server, repeated: str) -> None:
        self.server, self._repeated = server, repeated

    def ready(self) -> None: ...

    def log_of(self, build: Shape) -> str:
        return self.server.location(build["log"]["url"]).removesuffix("/log")

    def left(self, name: str) -> str:
        return f"The build goes on. To cancel it: kiln cancel{self._repeated} {name}"

    def check(self) -> None: ...

    def settle(self, name: str) -> bool:  # noqa: ARG002
        return False


class OnThisMachine:
    def __init__(self, here: Here, work: Work) -> None:
        self.server, self._here, self._work = here.server, here, work

    def ready(self) -> None:
        if (trouble := self._here.trouble()) is not None:
            raise CommandError(f"{trouble} Start it, or name another by KILN_DOCKER_HOST; `kiln doctor` says more.")

    def log_of(self, build: Shape) -> str:
        return str(self._here.log_file(build["name"], build["attempt"]))

    def left(self, name: str) -> str:
        return (
            "The build goes on by itself, and the same command takes it up again (so does `kiln serve`). "
            f"To cancel it: kiln cancel {name}"
        )

    def check(self) -> None:
        self._work.check()

    def settle(self, name: str) -> bool:
        return self._here.reopened(name)


@contextmanager
def place(flags: dict[str, Any], *, push: bool | None = None, of: str | None = None) -> Iterator[Place]:
    """Where the environment says, and `flags` (those of `kiln.remote.server_flags`, which are taken out). Without a
    server it is this machine, on which a controller's work is done as long as the context lasts.

    `push` is for this machine alone. `of` names the build that is done again: its image tells whether it is pushed.
    Raises CommandError, click.UsageError.
    """
    named = {name: flags.pop(name) for name in target.OPTIONS}
    if push is not None and target.is_named(os.environ, named):
        raise click.UsageError(
            "--push and --no-push are for builds on this machine: the server has its own image prefix"
        )
    found = None if push is not None else target.chosen(os.environ, **named)
    if found:
        yield AtServer(Server(found.server, found.token), target.repeated(named))
        return
    here = opened(os.environ, push=push)
    if of and here.server.build(of)["image"]["repository"].startswith(LOCAL_IMAGES):
        here = opened(os.environ, push=False)
    logging.basicConfig(format="kiln: %(message)s", level=logging.WARNING)
    with here.at_work() as work:
        try:
            yield OnThisMachine(here, work)
        except KeyboardInterrupt:
            work.check()
            raise


def finish(where: Place, made: Shape, *, as_json: bool) -> Exit:
    """Follows the build, prints its image's reference (as JSON the whole build), and returns the exit status."""
    click.echo(f"{made['name']}: {where.log_of(made)}", err=True)
    try:
        with _sigterm_raises():
            made = _followed(where, made)
    except _Left as left:
        click.echo(where.left(made["name"]), err=True)
        return left.status
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(made), indent=2))
    if made["state"] == "succeeded":
        _tell_image(made, as_json=as_json)
        return Exit.DONE
    said = made["message"] or "No reason was given."
    next_step = NEXT_STEPS.get(made["reason"] or "", "")
    click.echo(printable(f"kiln: error: {made['state']} ({made['reason']}): {said} {next_step}".rstrip()), err=True)
    return Exit.FAILED


def cancel(where: Place, name: str) -> Shape:
    """Cancels a build, and on this machine waits for its end: no other process may be there to end it."""
    build = where.server.cancel(name)
    if isinstance(where, AtServer):
        return build
    return next(message.data for message in where.server.follow(name) if message.data.get("state") in ENDED)


def _tell_image(made: Shape, *, as_json: bool) -> None:
    reference = made["image"]["reference"]
    if not as_json:
        click.echo(reference)
    if sys.stderr.isatty():
        click.echo(f"To run it: docker run --rm --publish 127.0.0.1:8888:8888 {reference}", err=True)


class _Left(Exception):
    """The command ends before the build."""

    def __init__(self, status: Exit) -> None:
        self.status = status


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _followed(where: Place, made: Shape) -> Shape:
    """The build as it ended. Raises _Left."""
    name, last = made["name"], None
    while True:
        try:
            with Progress(sys.stderr) as progress:
                for message in where.server.follow(name, last):
                    last = message.id or last
                    progress.show(message)
            if not where.settle(name):
                return where.server.build(name)
        except KeyboardInterrupt as interrupt:
            where.check()
            _ask(where, name, interrupt)


def _ask(where: Place, name: str, interrupt: KeyboardInterrupt) -> None:
    """Asks whether to cancel the build, and does. Raises _Left where nobody can be asked, or is in a hurry."""
    if isinstance(interrupt, _Terminated):
        raise _Left(Exit.TERMINATED) from None
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise _Left(Exit.INTERRUPTED) from None
    try:
        if click.confirm("Cancel the build? Ctrl-C again leaves it running", err=True):
            with suppress(CommandError):  # it has just ended: it is told next
                where.server.cancel(name)
    except (click.Abort, KeyboardInterrupt):
        raise _Left(Exit.INTERRUPTED) from None
