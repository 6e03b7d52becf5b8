"""Kiln embedded in a command, for a machine where no web runs.

It runs the same code as a server. Web's application answers requests in this process. A thread does the work of the
controller, unless another process holds the controller's lock. So concurrent commands share one build, and the next
command or server completes a build that the last one left.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from builds.build import LOCAL_IMAGES, stays_with_daemon
from builds.engines import EngineError, NotFound, Records
from kiln import localtoken, wiring
from kiln.client import Server
from kiln.errors import CommandError
from kiln.wiring import Kiln
from kiln.wsgiadapter import WSGIAdapter

if TYPE_CHECKING:
    from flask import Flask

change = msgspec.structs.replace

LOCAL_PREFIX = f"{LOCAL_IMAGES}kiln/"
LOCAL_PRIVATE_PREFIX = f"{LOCAL_IMAGES}kiln-private/"
"""Prefixes of images that stay with the daemon."""
SETTLE_TIMEOUT = 10.0
"""Seconds to wait for the answers to all requests for an ended build."""
STOP_TIMEOUT = 5.0
"""Seconds to wait for the end of the controller's thread."""


class EmbeddedKiln:
    """`server` sends requests to web's application in this process. `stopping` ends the application's streams.

    A request raises CommandError if the controller has failed.
    """

    def __init__(self, kiln: Kiln, app: Flask, stopping: threading.Event, token: str) -> None:
        self.kiln = kiln
        self._stopping = stopping
        self._failure: Exception | None = None
        self.server = Server(f"http://127.0.0.1{kiln.settings.base_path}", token, WSGIAdapter(app, self._check))
        self._records: Records = app.extensions["kiln"].records

    def log_file(self, name: str, attempt: int) -> Path:
        """The file to which the builder of an attempt writes its log, as JSON lines."""
        return self.kiln.settings.state_dir.absolute() / "attempts" / f"{name}-{attempt}" / "log"

    def trouble(self) -> str | None:
        """The reason why this machine cannot build now, as a sentence; `None` if it can."""
        from builds.engines.local.daemon import DaemonProbe  # noqa: PLC0415

        if shutil.which("git") is None:
            return "git is not installed, or is not on PATH."
        return DaemonProbe(self.kiln.docker_host, self.kiln.settings.daemon).trouble()

    def settle(self, name: str) -> bool:
        """Waits up to `SETTLE_TIMEOUT` until all requests for an ended build are answered.

        Returns whether the build was reopened instead, because its image is gone. Raises CommandError.
        """
        try:
            build = self._records.get(name)
            while build.open and build.state.ended:
                changed = self._records.changed(name, build.revision, SETTLE_TIMEOUT)
                if changed is None:
                    return False  # a sink does not accept its events: the next controller retries
                build = changed
        except NotFound:
            return False
        except EngineError as error:
            raise CommandError(str(error)) from None
        return not build.state.ended

    @contextmanager
    def controller(self) -> Iterator[None]:
        """Runs a controller for the duration of the context; it is idle while another process is the controller."""
        stop = wiring.StopSignal()
        thread = threading.Thread(target=self._control, args=(stop,), name="controller", daemon=True)
        try:
            thread.start()
            yield
        finally:
            stop()
            thread.join(STOP_TIMEOUT)

    def _control(self, stop: wiring.StopSignal) -> None:
        try:
            wiring.control(self.kiln, stop, lambda _: None)
        except Exception as error:  # noqa: BLE001  (after any error this process builds no longer)
            self._failure = error
            self._stopping.set()  # who follows a build requests its state next

    def _check(self) -> None:
        if self._failure is not None:
            raise CommandError(
                f"The controller failed: {self._failure}. Remove the cause, and run the same command again to continue."
            )


def with_prefix(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment; if it has no image prefix, with one under which images stay on this machine."""
    return environ if environ.get("KILN_IMAGE_PREFIX") else {**environ, "KILN_IMAGE_PREFIX": LOCAL_PREFIX}


def open_kiln(environ: Mapping[str, str], *, push: bool | None = None) -> EmbeddedKiln:
    """The embedded Kiln.

    `push` decides whether it pushes the images of requested builds or leaves them with the daemon; by default the image
    prefix decides. Raises KilnError.
    """
    kiln = wiring.load(with_prefix(environ))
    if push and stays_with_daemon(kiln.settings.image_prefix):
        raise CommandError("--push needs a registry. Set KILN_IMAGE_PREFIX, for example to registry.example/org/.")
    requests = _without_registry(kiln) if push is False or not environ.get("KILN_IMAGE_PREFIX") else kiln
    token = localtoken.ensured(kiln.settings.state_dir).decode()
    stopping = threading.Event()
    try:
        return EmbeddedKiln(kiln, wiring.app(_for_owner(requests), stopping), stopping, token)
    except EngineError as error:
        raise CommandError(str(error)) from None


def _without_registry(kiln: Kiln) -> Kiln:
    """A copy whose images all stay on this machine. Those of private repositories have a prefix of their own."""
    settings = change(kiln.settings, image_prefix=LOCAL_PREFIX)
    private = LOCAL_PRIVATE_PREFIX if kiln.config.private_image_prefix else None
    config = change(kiln.config, private_image_prefix=private)
    return change(kiln, settings=settings, config=config, images=wiring.image_policy(settings, config))


def _for_owner(kiln: Kiln) -> Kiln:
    """A copy that ignores `KILN_AUTH` and authenticates only the owner of the state folder, whose permissions protect
    it."""
    local = ("local",)
    settings = change(kiln.settings, auth=local, events_auth=local, loopback_only=True)
    return change(kiln, settings=settings)
