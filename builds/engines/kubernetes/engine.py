"""The controller's half: it observes by watches, and acts by Jobs. Only the holder of the Lease writes.

Watches lag behind. The engine overlays its own writes on the watch caches until these show something newer; otherwise
the plan could give a slot twice. An object that has left a watch is read once more before it counts as gone. A new
leader lists everything again before it acts, because its predecessor may have written in the last instant.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from msgspec.structs import replace

from builds.build import Attempt, Build, Phase, Sighting
from builds.builder.spec import Surroundings, spec_for
from builds.engines import Conflict, Refused, Unavailable, World
from builds.engines.kubernetes import jobs, sightings
from builds.engines.kubernetes.api import Absent, AlreadyExists, Api, ApiError, Busy, Conflict409, Propagation
from builds.engines.kubernetes.lease import Lease
from builds.engines.kubernetes.records import (
    COMPONENT,
    DAEMON,
    LABEL_OPEN,
    Manifest,
    Release,
    Unreadable,
    build_of,
    selector,
    summary_of,
)
from builds.engines.kubernetes.store import KubernetesRecords, translated
from builds.engines.kubernetes.watch import Watch
from builds.faults import Fault, crash_if_armed
from eventing.pulse import Pulse

log = logging.getLogger(__name__)

UNENDED = "status.phase!=Succeeded,status.phase!=Failed"
"""Pods that may still change. The engine reads an ended pod once more, and no longer watches it."""
SETTLING = 2.0
"""Seconds that the Job controller and the watch usually need until the pod of a new Job appears."""
LATE_POD = 10.0
"""Seconds for which a closed attempt keeps its slot if none of its pods was ever seen. The Job controller reads a Job,
waits for its own rate limit, and then creates the pod, even if the Job was deleted meanwhile."""
LATE_JOB = 60.0
"""Seconds for which the API server may still carry out a request to create a Job that it has not answered: the default
of its `--request-timeout`."""
STRAY_AFTER = 30.0
"""Seconds after which the engine ends a pod that belongs to no live attempt."""
ASK_AGAIN = 3.0
"""Seconds between two searches for the Events of an attempt that does not begin."""
SHARE = 20
"""Such searches may use one part in so many of the leader's time. For one object's Events, the API server searches all
Events of the namespace, and for one Job's pods all pods. Other users may have left thousands."""
ONE_BY_ONE = 5
"""Maximum number of unknown attempts to read separately; a single list is cheaper for more of them."""
READERS = 8
"""Pods that are read concurrently."""
MOST_ENDED = 1000
"""Ended pods whose names are remembered until their logs are archived."""
FEW = 100
"""Objects per page of a list that may have thousands."""

Key = tuple[str, int]


class KubernetesEngine(KubernetesRecords):
    """An `Engine` in a namespace. `template` is the operator's pod template, `image` the builder's.

    `lease` names the Lease that elects the leading controller; `identity` is this controller's.
    """

    def __init__(
        self,
        api: Api,
        release: Release,
        *,
        template: Manifest,
        image: str,
        surroundings: Surroundings,
        lease: str,
        identity: str,
        anchor: str | None = None,
        max_queued: int = 1000,
        max_queued_per_user: int = 20,
        refusal: Callable[[Build], str | None] = lambda _: None,
        git_keys: Callable[[Build], Sequence[str]] = lambda _: (),
        pulse: Pulse | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`refusal` returns why a stored record must not be built, and `git_keys` the keys of the Secret with Git
        credentials for a build's pod. `pulse` belongs to the loop that leads, or waits to lead.

        Raises TemplateError.
        """
        super().__init__(
            api, release, anchor=anchor, max_queued=max_queued, max_queued_per_user=max_queued_per_user, now=now
        )
        self._template = jobs.checked(template)
        self._image = image
        self._refusal = refusal
        self._git_keys = git_keys
        self._surroundings = surroundings
        self._woken = threading.Event()
        ours = selector(release.of(COMPONENT))
        self._records = Watch(api, "configmaps", labels=f"{ours},{LABEL_OPEN}", changed=self.wake)
        self._pods = Watch(api, "pods", labels=ours, fields=UNENDED, changed=self.wake)
        self._daemons = Watch(api, "pods", labels=selector(release.of(DAEMON)), changed=self.wake)
        self._watches = (self._records, self._pods, self._daemons)
        self._lease = Lease(api, lease, identity, changed=self.wake)
        self._pulse = pulse or Pulse("controller")
        self.pulses = (self._pulse, self._lease.pulse, *(watch.pulse for watch in self._watches))
        """The pulses of all threads whose liveness is monitored."""
        self._own = _Own()
        self._decoded: dict[str, Build] = {}
        self._unreadable: dict[str, tuple[str, str]] = {}
        self._attempts: dict[Key, _Attempt] = {}
        self._gone: deque[Manifest] = deque()
        self._deleted: list[Build] = []
        self._strays: dict[str, float] = {}
        self._late: dict[Key, _Late] = {}
        self._ended_pods: dict[Key, str] = {}
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._searches = _Budget(SHARE)
        self._term = 0
        self._with_jobs: dict[str, list[str]] = {}

    # ---- Leading ----------------------------------------------------------------------------------------------------

    @contextmanager
    def leading(self, stop: threading.Event) -> Iterator[Callable[[], bool]]:
        """Waits for leadership, or for `stop`. Yields a function that returns whether leadership is over.

        The watches run meanwhile, and list everything again before the first round.
        """
        while not (stop.is_set() or self._anew()):
            self._pulse.beat()
            self._woken.clear()
            self.wait(1.0)
        yield lambda: stop.is_set() or not self._leads

    def begin(self) -> None:
        """Starts the watches, and becomes a candidate for the Lease."""
        for watch in self._watches:
            watch.start()
        self._lease.start()

    def close(self) -> None:
        """Releases the Lease. Running attempts continue."""
        self._lease.stop()
        for watch in self._watches:
            watch.stop()
        self._readers.shutdown(wait=False, cancel_futures=True)
        super().close()

    @property
    def _leads(self) -> bool:
        """Whether this is still the term in which everything was read: leadership may have been lost and regained
        unnoticed."""
        return self._lease.leading and self._lease.term == self._term

    def _anew(self) -> bool:
        """If this controller leads, drops the state of an earlier term and reads the present one. Returns whether that
        succeeded."""
        self._term = self._lease.term
        if not self._lease.leading:
            return False
        self._own = _Own()
        self._attempts, self._late = {}, {}
        self._gone, self._deleted = deque(), []
        try:
            for watch in self._watches:
                self._pulse.beat()
                watch.fresh(timeout=5.0)
                watch.take_deleted()
        except ApiError as error:
            log.warning("Initial lists failed, not leading yet: %s", error)
            return False
        return True

    # ---- Engine -----------------------------------------------------------------------------------------------------

    def observe(self, in_flight: Collection[str] = ()) -> World:
        self._must_lead()
        self._woken.clear()
        with translated():
            self._look_for_the_deleted(in_flight)
            pods = {key: pod for pod in self._pods.objects().values() if (key := sightings.attempt_of(pod))}
            builds = self._open()  # after the pods, so that each of them has its record
            live = {(build.name, build.live.number): (build, build.live) for build in builds if build.live}
            self._know(live.keys(), in_flight)
            self._note_left(live)
            at_rest = {key: value for key, value in live.items() if key[0] not in in_flight}
            self._adopt(at_rest, pods)
            in_turn = sorted(at_rest, key=lambda key: self._attempts[key].searched_at)
            left = self._left_watch([key for key in in_turn if key not in pods])
            seen = [self._sighting(*live[key], pods, left) for key in in_turn]
            seen += self._left_over(pods, {key: build.uid for key, (build, _) in live.items()})
            seen += self._still_to_come(live, pods)
        nodes = sightings.nodes_of(self._daemons.objects().values())
        deleted, self._deleted = tuple(self._deleted), []
        return World(
            builds=builds,
            sightings=tuple(seen),
            nodes=nodes,
            scalable=True,
            deleted=deleted,
            unreadable={name: why for name, (_, why) in self._unreadable.items()},
        )

    def write(self, build: Build) -> Build:
        self._must_lead()
        with translated():
            try:
                written = self._put(replace(self._stored(build), status=build.status, open=build.open))
            except Conflict as conflict:
                self._reread(build, conflict)
                raise
        self._own.wrote(build.revision, written)
        self._queues.clear()
        self._must_lead()  # otherwise only the present leader may act on the write
        return written

    def start(self, build: Build, attempt: Attempt) -> None:
        self._must_lead()
        refused = self._refusal(build)
        job = jobs.job(
            build,
            attempt,
            spec_for(build, attempt, self._surroundings, refused),
            template=self._template,
            image=self._image,
            release=self._release,
            owner={"apiVersion": "v1", "kind": "ConfigMap", "name": build.name, "uid": build.uid},
            git_keys=() if refused else self._git_keys(build),
        )
        known = self._attempts.setdefault((build.name, attempt.number), _Attempt())
        known.node = attempt.node
        with translated():
            try:
                self._api.create("jobs", job)
            except AlreadyExists:
                self._must_be_ours(build, attempt)
            except Busy as error:
                known.unanswered_at = time.monotonic() if error.status is None else known.unanswered_at
                raise
        crash_if_armed(Fault.ENGINE_JOB_MADE)
        known.made_at, known.without = time.monotonic(), None
        known.had_job, known.unanswered_at = True, float("-inf")

    def stop(self, build: Build, attempt: Attempt) -> None:
        self._must_lead()
        with translated():
            pod = self._asked_pod(build, attempt)
            if pod is not None and sightings.terminal(pod):
                return
            if pod is not None and sightings.began(pod):
                # The pod's deadline, not the Job's, nor a deletion: those would also remove the log and the result.
                self._patch_away(pod)
            else:
                # The pod may still be created. The Job, and with it the attempt's slot, stays until the pod is gone.
                self._delete_job(jobs.job_name(build.name, attempt.number), "Foreground")

    def forget(self, build: Build) -> None:
        """Deletes the record, which owns Jobs and pods, unless it has changed meanwhile."""
        self._must_lead()
        with translated(), suppress(Absent, Conflict409):
            self._api.delete("configmaps", build.name, uid=build.uid, resource_version=build.revision)
        self._lists.clear()
        self._queues.clear()

    def keep_log(self, build: Build, attempt: int) -> None:
        self._must_lead()
        pod = self._ended_pods.pop((build.name, attempt), None)
        with translated():
            if content := self._logs.content(build.name, attempt, pod):
                self._archive.keep(build, attempt, content)

    def _keep_missing_log(self, build: Build, attempt: int) -> None:
        with translated():
            kept = self._archive.has(build, attempt)
        if not kept:
            self.keep_log(build, attempt)

    def clear_attempts(self, build: Build) -> None:
        """Deletes the attempts' objects even if a log could not be archived: the record contains the log's tail."""
        self._must_lead()
        for name in self._with_jobs.pop(build.name, ()):
            number = name.rpartition("-")[2]
            with suppress(Unavailable):
                self._keep_missing_log(build, int(number) if number.isdecimal() else 0)
            with translated():
                self._delete_job(name)

    def closed(self, before: datetime) -> Iterator[Build | None]:
        """The builds as in lists, which is sufficient for housekeeping.

        They come in small pages, because a process keeps the memory that it has once used.
        """
        labels = f"{selector(self._release.of(COMPONENT))},!{LABEL_OPEN}"
        with translated():
            yield from self._find_jobs()
            yield from self._archive.make_room()
            for page in self._api.pages("configmaps", labels=labels, metadata_only=True, limit=FEW):
                for stored in page.items:
                    build = self._readable(stored["metadata"], summary_of)
                    if build is not None and build.status.finished_at and build.status.finished_at <= before:
                        yield build
                yield None

    def wait(self, timeout: float) -> None:
        self._woken.wait(timeout)

    def wake(self) -> None:
        self._woken.set()

    # ---- What is ----------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[Build, ...]:
        """The open records, oldest first: the watch's state, overlaid with this process's own writes."""
        decoded: dict[str, Build] = {}
        unreadable: dict[str, tuple[str, str]] = {}
        for name, stored in self._records.objects().items():
            revision = stored["metadata"]["resourceVersion"]
            ours = (self._decoded.get(name), self._own.latest(name))
            try:
                if known := next((one for one in ours if one is not None and one.revision == revision), None):
                    decoded[name] = known
                elif (bad := self._unreadable.get(name)) and bad[0] == revision:
                    unreadable[name] = bad
                else:
                    decoded[name] = build_of(stored)
            except Unreadable as error:
                unreadable[name] = (revision, str(error))
        self._decoded, self._unreadable = decoded, unreadable
        builds = self._own.over(decoded)
        return tuple(sorted(builds, key=lambda build: (build.created_at, build.name)))

    def _know(self, live: Collection[Key], in_flight: Collection[str]) -> None:
        """Keeps the knowledge of live attempts, and of those that a start in progress is adding. It changes the
        dictionary in place, because a writer's thread adds to it as well."""
        for key in [*self._attempts]:
            if key not in live:
                self._note_late(key)
                if key[0] not in in_flight:
                    del self._attempts[key]
        for key in live:
            self._attempts.setdefault(key, _Attempt())

    def _note_left(self, live: Mapping[Key, tuple[Build, Attempt]]) -> None:
        """Notes the pods that have left the watch, some of which began and ended between two rounds."""
        for pod in self._pods.take_deleted():
            key = sightings.attempt_of(pod)
            if key is not None and key in live and pod["metadata"]["labels"].get(jobs.LABEL_UID) == live[key][0].uid:
                self._attempts[key].pod = pod["metadata"]["name"]

    def _note_late(self, key: Key) -> None:
        """Notes that the attempt is closed, if its pod may still be created."""
        known, now = self._attempts[key], time.monotonic()
        until = known.late_until(now)
        if until > now and key not in self._late:
            self._late[key] = _Late(known.node, until)

    def _look_for_the_deleted(self, in_flight: Collection[str]) -> None:
        """Notes open records that the API server confirms as deleted: a record usually leaves the watch because it is
        settled.

        Each is kept until the API server has answered about it. `World.deleted` contains it once.
        """
        self._gone += self._records.take_deleted()
        for _ in range(len(self._gone)):
            stored = self._gone[0]
            name, uid = stored["metadata"]["name"], stored["metadata"]["uid"]
            if name in in_flight:
                self._gone.rotate(-1)
                continue
            self._pulse.beat()
            written = self._own.latest(name)
            settled = written is not None and written.uid == uid and not written.open
            there = settled or self._still_ours(name, uid)
            self._gone.popleft()
            build = None if there else written or self._readable(stored, build_of)
            if build is not None and build.uid == uid:
                self._deleted.append(build)
                self._own.forget(name)

    def _still_ours(self, name: str, uid: str) -> bool:
        """Whether a record that has left the watch still exists. An open record that has lost its label gets the label
        back; otherwise no controller would see it again."""
        try:
            metadata = self._api.read("configmaps", name, metadata_only=True)["metadata"]
        except Absent:
            return False
        if metadata["uid"] != uid or not metadata.get("labels", {}).items() >= self._release.of(COMPONENT).items():
            return False
        record = self._readable(metadata, summary_of)
        if record is not None and record.open and LABEL_OPEN not in metadata["labels"]:
            log.warning("Label %s was removed from an open record, restoring it", LABEL_OPEN, extra={"build": name})
            with suppress(ApiError):
                self._api.patch("configmaps", name, {"metadata": {"labels": {LABEL_OPEN: "true"}}})
        return True

    def _sighting(
        self, build: Build, attempt: Attempt, pods: Mapping[Key, Manifest], left: Mapping[str, Manifest | None]
    ) -> Sighting:
        self._pulse.beat()
        known = self._attempts[build.name, attempt.number]
        known.node = attempt.node
        pod = pods.get((build.name, attempt.number))
        if pod is None or pod["metadata"]["labels"].get(jobs.LABEL_UID) != build.uid:
            pod = known.ended
        if pod is not None:
            known.pod = pod["metadata"]["name"]
        elif known.pod is not None:
            pod = left[known.pod] if known.pod in left else self._read_pod(known.pod)
            known.without = None if pod else self._without_pod(build, attempt, known)
        elif self._due(known):
            with self._searches.spending():  # of both searches, or the first would always use up the second's time
                pod = self._asked_pod(build, attempt)
                known.without = None if pod else self._without_pod(build, attempt, known)
            known.searched_at = time.monotonic()
        if pod is None:
            being_made = Sighting(
                build=build.name, attempt=attempt.number, phase=Phase.PENDING, waiting=sightings.BEING_MADE
            )
            return known.without or being_made
        known.pod, known.without = pod["metadata"]["name"], None
        if sightings.terminal(pod):
            self._note_ended((build.name, attempt.number), pod)
            known.ended = pod
        return sightings.of_pod(build, attempt.number, pod, self._events_of(known, pod, "Pod"), self._now())

    def _note_ended(self, key: Key, pod: Manifest) -> None:
        """Remembers the pod's name for `keep_log`; drops the oldest beyond `MOST_ENDED`."""
        self._ended_pods[key] = pod["metadata"]["name"]
        while len(self._ended_pods) > MOST_ENDED:
            self._ended_pods.pop(next(iter(self._ended_pods)), None)

    def _adopt(self, live: Mapping[Key, tuple[Build, Attempt]], pods: Mapping[Key, Manifest]) -> None:
        """Reads from one list which attempts of an earlier leader have no pod yet.

        With a search for each of them, the API server would search all pods of the namespace each time.
        """
        strange = {jobs.job_name(*key): key for key in live if key not in pods and self._attempts[key].strange}
        if len(strange) <= ONE_BY_ONE:
            return
        found: dict[str, Manifest] = {}
        for page in self._api.pages("jobs", labels=selector(self._release.of(COMPONENT)), limit=FEW):
            self._pulse.beat()
            found |= {name: job for job in page.items if (name := job["metadata"]["name"]) in strange}
        for name, key in strange.items():
            (build, attempt), job, known = live[key], found.get(name), self._attempts[key]
            if attempt.started_at is None and not (job and sightings.had_pod(job)):
                known.without = self._seen_of_job(build, attempt, job, known)
                known.searched_at = time.monotonic()

    def _due(self, known: _Attempt) -> bool:
        """Whether to search for its pod: immediately if nothing is known of it, otherwise every `ASK_AGAIN`. The pod of
        a Job of this process first gets `SETTLING` to appear in the watch."""
        if known.strange:
            return True
        young = known.made_at is not None and time.monotonic() - known.made_at < SETTLING
        return not young and self._searches.free(known.searched_at)

    def _left_watch(self, keys: Sequence[Key]) -> dict[str, Manifest | None]:
        """Pods by name that the watch has shown and no longer shows: each has ended, or is gone (`None`).

        They are read concurrently, because many end in the same second, and the loop waits for all of them.
        """
        known = (self._attempts[key] for key in keys)
        names = [one.pod for one in known if one.pod is not None and one.ended is None]
        found: dict[str, Manifest | None] = {}
        for name, pod in zip(names, self._readers.map(self._read_pod, names), strict=True):
            self._pulse.beat()
            found[name] = pod
        return found

    def _read_pod(self, name: str) -> Manifest | None:
        try:
            return self._api.read("pods", name)
        except Absent:
            return None

    def _still_to_come(self, live: Collection[Key], pods: Collection[Key]) -> Iterator[Sighting]:
        """Closed attempts whose pods may still be created. They keep their slots for a while."""
        now = time.monotonic()
        self._late = {key: late for key, late in self._late.items() if late.until > now and key not in live}
        for key, late in self._late.items():
            if key not in pods:
                yield Sighting(build=jobs.job_name(*key), attempt=key[1], phase=Phase.PENDING, node=late.node)

    def _left_over(self, pods: Mapping[Key, Manifest], live: Mapping[Key, str]) -> Iterator[Sighting]:
        """Running pods that belong to no record's live attempt: they occupy their slots until they have ended.

        Each is reported under the pod's own name, which is not a build's. A paused leader may have started one after
        its attempt was closed. Watches lag, so a pod gets `STRAY_AFTER` to be seen as ended.
        """
        known, self._strays = self._strays, {}
        for key, pod in pods.items():
            metadata = pod["metadata"]
            if key in live and metadata["labels"].get(jobs.LABEL_UID) == live[key]:
                continue
            phase = Phase.RUNNING if sightings.began(pod) else Phase.PENDING
            yield Sighting(build=metadata["name"], attempt=key[1], phase=phase, node=pod["spec"].get("nodeName"))
            if key[0] in self._unreadable:  # a newer version of Kiln may have written the record, and may return
                continue
            since = self._strays[metadata["name"]] = known.get(metadata["name"], time.monotonic())
            if time.monotonic() - since > STRAY_AFTER and "deletionTimestamp" not in metadata:
                log.warning("Pod %s outlived its attempt, deleting its Job", metadata["name"])
                self._pulse.beat()
                with suppress(ApiError):  # a policy may not permit it
                    self._delete_job(jobs.job_name(*key))

    def _without_pod(self, build: Build, attempt: Attempt, known: _Attempt) -> Sighting:
        try:
            job = self._api.read("jobs", jobs.job_name(build.name, attempt.number))
        except Absent:
            job = None
        return self._seen_of_job(build, attempt, job, known)

    def _seen_of_job(self, build: Build, attempt: Attempt, job: Manifest | None, known: _Attempt) -> Sighting:
        """The sighting of an attempt without a pod, by its Job or the lack of one."""
        started = attempt.started_at is not None
        if job is None or job["metadata"].get("labels", {}).get(jobs.LABEL_UID) != build.uid:
            known.had_job |= attempt.stopping is not None
            phase = Phase.LOST if started else Phase.ABSENT
            gone = "The build's Job has gone: it was deleted." if started else None
            return Sighting(build=build.name, attempt=attempt.number, phase=phase, waiting=gone)
        known.had_job = True
        return sightings.of_job(build, attempt.number, job, self._events_of(known, job, "Job"), started=started)

    def _events_of(self, known: _Attempt, thing: Manifest, kind: str) -> Sequence[Manifest]:
        """The Events of an attempt that has not begun. They are searched for every `ASK_AGAIN`, first after
        `SETTLING`."""
        if kind == "Pod" and (sightings.terminal(thing) or sightings.began(thing)):
            return []
        if time.monotonic() - known.seen_at > SETTLING and self._searches.free(known.asked_at):
            name = thing["metadata"]["name"]
            fields = f"involvedObject.kind={kind},involvedObject.name={name}"
            with self._searches.spending():
                known.said = list(self._api.list("events", fields=fields))
            known.asked_at = time.monotonic()
        return known.said

    def _asked_pod(self, build: Build, attempt: Attempt) -> Manifest | None:
        """The attempt's pod, read from the API server."""
        found = list(self._api.list("pods", labels=selector(jobs.labels(build, attempt))))
        return max(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    # ---- Pieces -----------------------------------------------------------------------------------------------------

    def _must_lead(self) -> None:
        if not self._leads:
            raise Unavailable("This controller does not lead.")

    def _stored(self, build: Build) -> Build:
        """The stored record at the build's revision, because the controller must not change web's part of it."""
        for known in (self._own.latest(build.name), self._decoded.get(build.name)):
            if known is not None and known.revision == build.revision:
                return known
        stored = self._require(build.name)
        if stored.revision != build.revision:
            raise Conflict(f"The record of {build.name} has changed since revision {build.revision}.")
        return stored

    def _reread(self, build: Build, conflict: Conflict) -> None:
        """Reads the record after a conflict. Otherwise the next round would plan from the same old revision.

        Raises Refused if the record has not changed, because then a policy has caused the answer.
        """
        now = self._find(build.name)
        if now is not None and now.revision == build.revision:
            raise Refused(f"The record is refused as if it had changed: {conflict.__cause__}") from conflict
        if now is not None:
            self._own.wrote(build.revision, now)

    def _must_be_ours(self, build: Build, attempt: Attempt) -> None:
        """Checks the existing Job of that name. Raises Unavailable if it belongs to a deleted record."""
        name = jobs.job_name(build.name, attempt.number)
        labels = self._api.read("jobs", name, metadata_only=True)["metadata"].get("labels", {})
        if labels.get(jobs.LABEL_UID) != build.uid:
            raise Unavailable(f"The Job {name} belongs to an earlier record of that name, and is still being deleted.")

    def _patch_away(self, pod: Manifest) -> None:
        """Sends SIGTERM by a deadline in the past; the kubelet keeps the pod, its log and its result."""
        with suppress(Absent):
            self._api.patch("pods", pod["metadata"]["name"], {"spec": {"activeDeadlineSeconds": 1}})

    def _delete_job(self, name: str, policy: Propagation = "Background") -> None:
        with suppress(Absent):
            self._api.delete("jobs", name, policy=policy)

    def _find_jobs(self) -> Iterator[None]:
        """Reads which builds have Jobs, one page at a time."""
        self._with_jobs = {}
        ours = selector(self._release.of(COMPONENT))
        for page in self._api.pages("jobs", labels=ours, metadata_only=True, limit=FEW):
            for job in page.items:
                build = job["metadata"]["labels"].get(jobs.LABEL_BUILD, "")
                self._with_jobs.setdefault(build, []).append(job["metadata"]["name"])
            yield None


class _Attempt:
    """The engine's knowledge of an attempt, besides the watch caches."""

    def __init__(self) -> None:
        self.seen_at = time.monotonic()
        self.made_at: float | None = None
        self.pod: str | None = None
        self.ended: Manifest | None = None
        self.without: Sighting | None = None
        self.searched_at = float("-inf")
        self.said: list[dict[str, Any]] = []
        self.asked_at = float("-inf")
        self.node: str | None = None
        self.had_job = False
        self.unanswered_at = float("-inf")

    @property
    def strange(self) -> bool:
        """Whether nothing is known of it: another leader started it, or recorded its start."""
        return self.made_at is None and self.without is None and self.pod is None

    def late_until(self, now: float) -> float:
        """The time until which its pod may be created although the attempt is closed (`now`, monotonic); past if it
        cannot be."""
        may_come = self.had_job and self.pod is None
        return max(now + LATE_POD if may_come else now, self.unanswered_at + LATE_JOB)


class _Late(NamedTuple):
    """The node of a deleted Job's pod, and the time (monotonic) until which the pod may be created."""

    node: str | None
    until: float


class _Budget:
    """Limits an expensive operation to one part in `share` of the time."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._next = float("-inf")

    def free(self, last: float) -> bool:
        """Whether another search is permitted, for an object that was last searched for at `last`."""
        now = time.monotonic()
        return now >= self._next and now - last > ASK_AGAIN

    @contextmanager
    def spending(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self._next = ended + self._share * (ended - began)


class _Own:
    """This process's own writes, kept while the watch shows older revisions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written: dict[str, tuple[Build, set[str]]] = {}

    def wrote(self, before: str, written: Build) -> None:
        """Notes a write; `before` is the revision that it was based on."""
        with self._lock:
            _, older = self._written.get(written.name, (written, set()))
            self._written[written.name] = (written, older | {before})

    def latest(self, name: str) -> Build | None:
        written = self._written.get(name)
        return None if written is None else written[0]

    def forget(self, name: str) -> None:
        self._written.pop(name, None)

    def over(self, seen: Mapping[str, Build]) -> list[Build]:
        """The open builds in their latest known state."""
        now = dict(seen)
        with self._lock:  # otherwise a concurrent write could count as an older one and be dropped
            for name, (written, older) in list(self._written.items()):
                shown = seen.get(name)
                if shown is None or shown.revision not in older:
                    del self._written[name]
                else:
                    now[name] = written
        return [build for build in now.values() if build.open]
