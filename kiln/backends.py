"""The backends of the commands about builds: a server, or the embedded Kiln on this machine.

Each backend offers the same HTTP API through `server`. Only the embedded one runs a controller in this process, because
otherwise no process might build.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click

from builds.build import stays_with_daemon
from kiln import target
from kiln.client import BuildJSON, Server
from kiln.embedded import EmbeddedKiln, open_kiln
from kiln.errors import CommandError


class _StderrHandler(logging.Handler):
    """Writes to the current `sys.stderr`, which rich replaces while it shows progress."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


class Backend(Protocol):
    """All methods raise CommandError, for example if the embedded controller has failed."""

    server: Server

    def check_ready(self) -> None:
        """Raises CommandError if no build can start."""

    def log_location(self, build: BuildJSON) -> str:
        """The URL of the build's page, or the path of its log."""

    def left_message(self, name: str) -> str:
        """Sentences about a build that the command leaves before its end."""

    def settle(self, name: str) -> bool:
        """Waits until all requests for an ended build are answered. Returns whether the build was reopened instead."""

    def cancel(self, name: str) -> BuildJSON:
        """Cancels a build, and returns it."""


class RemoteBackend:
    """A server. `arguments` are the options that select it, for a shell."""

    def __init__(self, server: Server, arguments: str) -> None:
        self.server, self._arguments = server, arguments

    def check_ready(self) -> None: ...

    def log_location(self, build: BuildJSON) -> str:
        return self.server.location(build["log"]["url"]).removesuffix("/log")

    def left_message(self, name: str) -> str:
        return f"The build continues on the server. To cancel it: kiln cancel{self._arguments} {name}"

    def settle(self, name: str) -> bool:  # noqa: ARG002
        return False

    def cancel(self, name: str) -> BuildJSON:
        return self.server.cancel(name)


class EmbeddedBackend:
    """The embedded Kiln and its controller."""

    def __init__(self, kiln: EmbeddedKiln) -> None:
        self.server, self._kiln = kiln.server, kiln

    def check_ready(self) -> None:
        if (trouble := self._kiln.trouble()) is not None:
            raise CommandError(f"{trouble} `kiln doctor` names the cure.")

    def log_location(self, build: BuildJSON) -> str:
        return str(self._kiln.log_file(build["name"], build["attempt"]))

    def left_message(self, name: str) -> str:
        queued = self.server.build(name)["state"] == "queued"
        state = "The build waits in the queue" if queued else "The build continues"
        return f"{state}. Run the same command again, or `kiln serve`, to complete it. To cancel it: kiln cancel {name}"

    def settle(self, name: str) -> bool:
        return self._kiln.settle(name)

    def cancel(self, name: str) -> BuildJSON:
        """Also waits for the end of the build: possibly no other process would complete the cancellation."""
        self.server.cancel(name)
        return self.server.wait(name)


@contextmanager
def open_backend(flags: dict[str, Any], *, push: bool | None = None, rebuilt: str | None = None) -> Iterator[Backend]:
    """The server that `flags` or the environment select, or else the embedded Kiln, with a controller for the duration
    of the context.

    Takes the options of `server_flags` out of `flags`. `push` selects the embedded Kiln. `rebuilt` is the name of a
    build to build again: if its image stayed on this machine, the new image does, too. Raises CommandError,
    click.UsageError.
    """
    options = {name: flags.pop(name) for name in target.OPTIONS}
    if push is not None and target.selects_server(os.environ, options):
        raise click.UsageError(
            "--push and --no-push apply to builds on this machine. The server has an image prefix of its own."
        )
    logging.basicConfig(format="kiln: %(message)s", level=logging.WARNING, handlers=[_StderrHandler()])
    found = None if push is not None else target.resolve(os.environ, **options)
    if found:
        yield RemoteBackend(Server(found.server, found.token), target.as_arguments(options))
        return
    kiln = open_kiln(os.environ, push=push)
    if rebuilt and stays_with_daemon(kiln.server.build(rebuilt)["image"]["repository"]):
        kiln = open_kiln(os.environ, push=False)
    with kiln.controller():
        yield EmbeddedBackend(kiln)
