"""Probes and findings. Probes run concurrently, so that a hanging probe does not delay the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from enum import StrEnum
from typing import NamedTuple

import msgspec

from builds.clients.errors import RegistryError
from builds.engines import EngineError
from builds.errors import RequestError
from eventing.errors import EventError
from kiln.doctor import cures
from kiln.doctor.cures import Cure
from kiln.errors import KilnError
from kiln.progress import printable

LIMIT = 45.0
"""Seconds for all probes together. The longest is the push to a registry that hands out tokens and takes its time."""
AT_ONCE = 32
SAFE = (RequestError, EngineError, EventError, KilnError, RegistryError)
"""Errors whose messages are written for people and hold no secret."""


class FindingState(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Symptom(Exception):
    """A probe found something wrong. `found` says what; `fields` fill in the text of the cure."""

    def __init__(self, cure: Cure, found: object, **fields: object) -> None:
        super().__init__(str(found))
        self.state = FindingState.FAILED if cure.fails else FindingState.WARNING
        self.cure = cure.text.format(**fields)


class Probe(NamedTuple):
    name: str
    run: Callable[[], str]
    """Returns what it found, in a few words. Raises Symptom."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a probe. `cure` is `None` if nothing is wrong."""

    probe: str
    state: FindingState
    found: str
    cure: str | None = None


def examine(probes: Sequence[Probe], *, limit: float | None = None) -> Iterator[Finding]:
    """Runs all probes, and yields their findings in the order of the probes. Takes at most `limit` seconds."""
    limit = LIMIT if limit is None else limit
    deadline, places = time.monotonic() + limit, threading.BoundedSemaphore(AT_ONCE)
    begun = [(probe, _begun(probe, places)) for probe in probes]
    for probe, outcome in begun:
        yield _finding(probe, outcome, max(0.0, deadline - time.monotonic()), limit)


def _begun(probe: Probe, places: threading.BoundedSemaphore) -> Future[str]:
    """Runs the probe on a daemon thread, because a hanging probe must not prevent the end of the command."""
    outcome: Future[str] = Future()

    def run() -> None:
        with places:
            try:
                outcome.set_result(probe.run())
            except Exception as error:  # noqa: BLE001  # it is examined in the caller's thread
                outcome.set_exception(error)

    threading.Thread(target=run, name=probe.name, daemon=True).start()
    return outcome


def _finding(probe: Probe, outcome: Future[str], seconds: float, limit: float) -> Finding:
    try:
        found = outcome.result(seconds)
    except Exception as error:  # noqa: BLE001  # a probe that fails in any way is a finding
        return of(probe.name, _symptom(error, limit))
    return Finding(probe=probe.name, state=FindingState.OK, found=_line(found))


def of(probe: str, symptom: Symptom) -> Finding:
    """Returns the finding for a symptom."""
    return Finding(probe=probe, state=symptom.state, found=_line(str(symptom)), cure=_line(symptom.cure))


def _symptom(error: Exception, limit: float) -> Symptom:
    """Returns the symptom for an exception. An unknown one shows only its type: its message may contain a secret."""
    if isinstance(error, Symptom):
        return error
    if isinstance(error, TimeoutError):
        return Symptom(cures.NO_ANSWER, f"The probe did not end within {limit:g} s.")
    if isinstance(error, SAFE):
        return Symptom(cures.AS_IT_SAYS, error)
    return Symptom(cures.UNKNOWN, f"The probe failed ({type(error).__name__}).")


def _line(text: str) -> str:
    """Returns the text on one line: it may contain the output of other programs and hosts."""
    return printable(" ".join(text.split()))
