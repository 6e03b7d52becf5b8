"""This machine's Kiln while no web of it runs: the records are asked in this process, and builds are done by it.

Everything is as with a server, because it is the same code: web's application answers, in this process; a controller's
work is done on a thread, as long as no other process does it. So a build is one build, whoever asked where, and one
that was left alone is taken up by whoever comes next.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from builds.build import LOCAL_IMAGES
from builds.engines import EngineError, NotFound, Records
from kiln import localtoken, wiring
from kiln.client import Server
from kiln.errors import CommandError
from kiln.inprocess import InProcess
from kiln.wiring import Kiln

if TYPE_CHECKING:
    from flask import Flask

change = msgspec.structs.replace

PREFIX = f"{LOCAL_IMAGES}kiln/"
PRIVATE_PREFIX = f"{LOCAL_IMAGES}kiln-private/"
"""How images are called that are pushed nowhere."""
SETTLING = 10.0
"""Seconds in which those who asked for a build that has ended are answered."""
ENDING = 5.0
"""Seconds for a controller's work to end."""


class Here:
    """This machine's Kiln, with web's application to ask (`server`)."""

    def __init__(self, kiln: Kiln, app: Flask) -> None:
        self.kiln = kiln
        token = localtoken.ensured(kiln.settings.state_dir).decode()
        self.server = Server(f"http://127.0.0.1{kiln.settings.base_path}", token, InProcess(app))
        self._records: Records = app.extensions["kiln"].records

    def log_file(self, name: str, attempt: int) -> Path:
        """Where the builder of an attempt writes its log, as JSON lines."""
        return self.kiln.settings.state_dir.absolute() / "attempts" / f"{name}-{attempt}" / "log"

    def trouble(self) -> str | None:
        """Why nothing can be built on this machine now, in a sentence; `None` if it can."""
        from builds.engines.local.daemon import DaemonProbe  # noqa: PLC0415

        return DaemonProbe(self.kiln.docker_host, self.kiln.settings.daemon).trouble()

    def reopened(self, name: str) -> bool:
        """Waits, for a while, until everybody who asked for a build that has ended is answered. Returns whether it was
        opened again instead, because its image has gone. Raises CommandError."""
        try:
            build = self._records.get(name)
            while build.open and build.state.ended:
                changed = self._records.changed(name, build.revision, SETTLING)
                if changed is None:
                    return False  # a sink does not take its events: the next controller goes on with that
                build = changed
        except NotFound:
            return False
        except EngineError as error:
            raise CommandError(str(error)) from None
        return not build.state.ended

    @contextmanager
    def at_work(self) -> Iterator[Work]:
        """Does a controller's work on a thread as long as the context lasts, unless another process does it."""
        work = Work(self.kiln)
        work.thread.start()
        try:
            yield work
        finally:
            work.stop()
            work.thread.join(ENDING)


class Work:
    """A controller's work on a thread. `error` is what has ended it early; the main thread gets SIGINT then."""

    def __init__(self, kiln: Kiln) -> None:
        self.stop = wiring.StopSignal()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, args=(kiln,), name="controller", daemon=True)

    def check(self) -> None:
        """Raises CommandError where the work has ended by an error."""
        if self.error is not None:
            raise CommandError(f"The build cannot be gone on with: {self.error} The same command takes it up again.")

    def _run(self, kiln: Kiln) -> None:
        try:
            wiring.control(kiln, self.stop, lambda _: None)
        except Exception as error:  # noqa: BLE001  (whatever it is, nobody builds any more)
            self.error = error
            os.kill(os.getpid(), signal.SIGINT)


def prefixed(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment, in which images stay on this machine where it names no registry."""
    return environ if environ.get("KILN_IMAGE_PREFIX") else {**environ, "KILN_IMAGE_PREFIX": PREFIX}


def opened(environ: Mapping[str, str], *, push: bool | None = None) -> Here:
    """This machine's Kiln. With `push` the images of what is asked for are pushed, by default where an image prefix
    names a registry; without they stay with this machine's daemon.

    Raises KilnError.
    """
    prefix = environ.get("KILN_IMAGE_PREFIX")
    if push and not prefix:
        raise CommandError("--push: KILN_IMAGE_PREFIX must be set, such as registry.example/org/.")
    kiln = wiring.load(prefixed(environ))
    asked = _staying(kiln) if push is False or not prefix else kiln
    try:
        return Here(kiln, wiring.app(_owned(asked), threading.Event()))
    except EngineError as error:
        raise CommandError(str(error)) from None


def _staying(kiln: Kiln) -> Kiln:
    """The same, where all images stay on this machine: also those of private repositories, under a prefix of their
    own."""
    settings = change(kiln.settings, image_prefix=PREFIX)
    private = PRIVATE_PREFIX if kiln.config.private_image_prefix else None
    config = change(kiln.config, private_image_prefix=private)
    return change(kiln, settings=settings, config=config, images=wiring.image_policy(settings, config))


def _owned(kiln: Kiln) -> Kiln:
    """The same, for the one whose state folder it is: who can read that needs nobody's leave."""
    own = ("local",)
    settings = change(kiln.settings, auth=own, events_auth=own, loopback_only=True)
    return change(kiln, settings=settings)
