"""Leader election: of several controllers, only the holder of a renewed Lease acts.

https://kubernetes.io/docs/concepts/architecture/leases/#leader-election

The rules are client-go's, and no rule compares the clocks of two machines. A candidate counts the seconds for which it
has observed no change of the record. The leader counts from *before* it sent the renewal that succeeded. So it stops
`duration - stop_after` seconds before another may follow it, even if it cannot reach the API server. Each write carries
the resourceVersion it was decided on: of two candidates that see an expired Lease, one gets it.

The installation creates the Lease. This module never does, so no role needs the permission.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from builds.engines.kubernetes.api import Absent, Api, ApiError, Conflict409, Object
from eventing.pulse import Pulse

log = logging.getLogger(__name__)

AFTER_CONFLICT = 0.1
"""Seconds between another candidate's write and the next read of the Lease."""
NEVER = -math.inf


class Record(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The Lease's `spec`. An empty holder means that the Lease was released."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


def held(record: Record, identity: str, duration: float, now: datetime) -> Record:
    """The record with which `identity` takes or keeps the Lease."""
    time_ = _micro(now)
    mine = record.holder_identity == identity
    before = record.lease_transitions or 0
    changes = 0 if mine or record.acquire_time is None else 1
    return Record(
        holder_identity=identity,
        lease_duration_seconds=math.ceil(duration),
        acquire_time=record.acquire_time if mine and record.acquire_time else time_,
        renew_time=time_,
        lease_transitions=before + changes,
    )


def released(record: Record, now: datetime) -> Record:
    """The record that allows the next candidate to take the Lease without waiting."""
    return msgspec.structs.replace(record, holder_identity="", lease_duration_seconds=1, renew_time=_micro(now))


def remaining(record: Record, identity: str, seen: float, now: float, duration: float) -> float:
    """Seconds until `identity` may take it: none if it is free or its own, otherwise as long as the holder has claimed
    it.

    `seen` is the time, on the clock of `now`, at which the record was first observed in its present form.
    """
    if not record.holder_identity or record.holder_identity == identity:
        return 0.0
    return max(seen + (record.lease_duration_seconds or duration) - now, 0.0)


class Lease:
    """The Lease `name`, for the candidate `identity`, which must be unique to each process.

    It is renewed every `retry` seconds and is free `duration` seconds after the last renewal. `changed` is called from
    the Lease's thread when leadership begins, or is found to have ended.
    """

    def __init__(
        self,
        api: Api,
        name: str,
        identity: str,
        *,
        duration: float = 9.0,
        stop_after: float = 6.0,
        retry: float = 2.0,
        monotonic: Callable[[], float] = time.monotonic,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        if not 0 < retry < stop_after < duration:
            raise ValueError("A Lease is renewed before its leader must stop, and that is before it expires.")
        self.name = name
        self.term = 0
        """The number of terms of leadership: a new leader must read everything again."""
        self._api = api
        self._identity = identity
        self._duration = duration
        self._stop_after = stop_after
        self._retry = retry
        self._patience = (stop_after - retry) / 2  # for one exchange: a second one fits before the end
        self._monotonic = monotonic
        self._changed = changed
        self._until = NEVER
        self._led = False
        self._record: Record | None = None  # as last read; read first if missing
        self._version = ""
        self._seen = NEVER
        self._trouble: str | None = None
        self._stopping = threading.Event()
        self.pulse = Pulse("lease")
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends leadership and releases the Lease. The controller must have stopped before."""
        self._stopping.set()
        self._thread.join()
        self._until = NEVER
        self._notice()
        try:
            self._release()
        except ApiError as error:
            log.warning("Lease %s not released, it expires in %g s: %s", self.name, self._duration, error)

    @property
    def leading(self) -> bool:
        """Whether this candidate leads. Check before each write: leadership ends by the clock alone."""
        return self._monotonic() < self._until and not self._stopping.is_set()

    @property
    def trouble(self) -> str | None:
        """Why the last exchange about the Lease failed; `None` after a successful one."""
        return self._trouble

    # In its thread. --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = 0.0
        self.pulse.beat()
        while not self._stopping.wait(pause):
            pause = self._turn()
            self._notice()
            self.pulse.beat()
        self.pulse.rest()

    def _turn(self) -> float:
        """Reads the Lease, and writes it if it is ours or free. Returns the seconds until the next turn."""
        try:
            record = self._current()
            wait = remaining(record, self._identity, self._seen, self._monotonic(), self._duration)
            if not wait:
                self._take(record)
        except Conflict409:
            self._record = None
            return AFTER_CONFLICT
        except ApiError as error:
            self._fails(error)
            return self._retry / 4 if self.leading else self._retry
        self._works()
        return min(wait or self._retry, self._retry)

    def _current(self) -> Record:
        """The known record, if it is ours: no other candidate writes it then. Else the record as read now."""
        if self._record is not None and self._record.holder_identity == self._identity:
            return self._record
        return self._saw(self._api.read("leases", self.name, timeout=self._patience))

    def _saw(self, lease: Object) -> Record:
        record = _record_of(lease)
        if record != self._record:
            self._record, self._seen = record, self._monotonic()
        self._version = lease["metadata"]["resourceVersion"]
        return record

    def _take(self, record: Record) -> None:
        """Takes or renews the Lease. The term counts from before the request: the response may take long."""
        sent = self._monotonic()
        self._write(held(record, self._identity, self._duration, datetime.now(UTC)))
        if not self.leading:
            self.term += 1
        self._until = sent + self._stop_after

    def _release(self) -> None:
        record = self._saw(self._api.read("leases", self.name, timeout=self._patience))
        if record.holder_identity == self._identity:
            self._write(released(record, datetime.now(UTC)))

    def _write(self, record: Record) -> None:
        body = {"metadata": {"resourceVersion": self._version}, "spec": msgspec.to_builtins(record)}
        self._saw(self._api.patch("leases", self.name, body, timeout=self._patience))

    def _notice(self) -> None:
        leading = self.leading
        if leading != self._led:
            self._led = leading
            log.info("%s %s Lease %s", self._identity, "acquired" if leading else "lost", self.name)
            self._changed()

    def _fails(self, error: ApiError) -> None:
        if isinstance(error, Absent):  # a new Lease has no holder
            self._record, self._until = None, NEVER
            message = f"Lease {self.name} not found in namespace {self._api.namespace}. Run `helm upgrade`."
        else:
            message = str(error)
        if message != self._trouble:
            log.warning("Lease %s unavailable: %s", self.name, message)
        self._trouble = message

    def _works(self) -> None:
        if self._trouble is not None:
            log.info("Lease %s available again", self.name)
        self._trouble = None


def _record_of(lease: Object) -> Record:
    return msgspec.convert(lease.get("spec") or {}, Record)


def _micro(moment: datetime) -> str:
    """A time as a `MicroTime`."""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"
