"""Deletes the images that the rule `keep` no longer needs.

The records are the ledger: they contain the refs that an image was built for, and the time of the last request. So with
a rule, a record stays as long as its image does. It is deleted when the image is gone and `KILN_HISTORY` has passed.

Nothing is locked. Immediately before a deletion, tags and record are read again; immediately after it, the record once
more. If a request came in between, the same manifest is restored, which the registry accepts unchanged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec

from builds import metrics
from builds.build import Build, stays_with_daemon
from builds.clients.errors import RegistryError, Unauthorized
from builds.clients.inventory import REFERRERS, Inventory, artifacts
from builds.clients.registry import Manifest, Registry
from builds.engines import EngineError, NotFound, Records
from builds.image import is_reserved
from builds.repository import glob_match
from builds.retention import Pushed, Recorded, RetentionDecision, Rule, judge, recorded, waits

log = logging.getLogger(__name__)

PRUNE_INTERVAL = 3600.0
"""Seconds between two rounds of the controller."""
LEADER_CHECK_INTERVAL = 1.0
"""Seconds after which a process that does not lead checks again whether it leads."""
PAGE = 200
"""Records per page."""

NO_RULE = Rule(per_ref=1, period=timedelta.max)
"""Keeps everything, for callers that only list."""


class ImageReview(msgspec.Struct, frozen=True, kw_only=True):
    """The review of one image repository. `error` is the reason of a failure; the review then has no verdicts."""

    repository: str
    verdicts: Sequence[RetentionDecision] = ()
    records: Sequence[Recorded] = ()
    error: str | None = None

    @property
    def unneeded(self) -> list[RetentionDecision]:
        return [verdict for verdict in self.verdicts if verdict.kept is None]


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """The result for a repository: the deleted images, and why the others could not be deleted."""

    deleted: Sequence[Pushed]
    error: str | None = None


class Pruner:
    """For one thread at a time. `registry` makes a client for an image. `allowed`: patterns of image repositories."""

    def __init__(
        self,
        *,
        records: Records,
        registry: Callable[[str], Registry],
        allowed: Sequence[str],
        rule: Rule = NO_RULE,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._records = records
        self._registry = registry
        self._allowed = allowed
        self._rule = rule
        self._clock = clock
        self._inventory = Inventory()

    def review(self, more: Iterable[str] = ()) -> Iterator[ImageReview]:
        """Reviews the repositories that records name, and `more`, one per step. Raises EngineError."""
        records: dict[str, list[Recorded]] = {repository: [] for repository in more}
        for build in _all(self._records):
            records.setdefault(build.request.image, []).append(recorded(build))
        for repository in sorted(records):
            yield self._review(repository, records[repository])

    def _review(self, repository: str, records: Sequence[Recorded]) -> ImageReview:
        if stays_with_daemon(repository):  # Kiln does not delete these
            return ImageReview(repository=repository, records=records)
        named = {record.digest for record in records if record.digest}
        try:
            images = self._inventory.images(self._registry(repository), repository, named)
        except RegistryError as error:
            absent = isinstance(error, Unauthorized) and not records  # also the answer for a missing one
            return ImageReview(repository=repository, error=None if absent else str(error))
        allowed = any(glob_match(pattern, repository) for pattern in self._allowed)
        verdicts = judge(images, records, self._rule, self._clock(), allowed=allowed)
        return ImageReview(repository=repository, verdicts=verdicts, records=records)

    def prune(self, review: ImageReview) -> Pruned:
        """Deletes the images that the review found unneeded, unless they are needed by now."""
        deleted: list[Pushed] = []
        if not review.unneeded:
            return Pruned(deleted=deleted)
        registry = self._registry(review.repository)
        try:
            moved = _digests_of_others(registry, review)
            unneeded = (one for one in review.unneeded if one.image.digest not in moved)
            deleted.extend(one.image for one in unneeded if self._delete(registry, one, review))  # one by one
        except (RegistryError, EngineError) as error:
            return Pruned(deleted=deleted, error=str(error))
        return Pruned(deleted=deleted)

    def _delete(self, registry: Registry, verdict: RetentionDecision, review: ImageReview) -> bool:
        """Returns whether the image is gone permanently. Raises RegistryError, EngineError."""
        image = verdict.image
        before = self._unused(image)
        whole = registry.manifest(image.repository, image.digest, body=True)
        if before is None or whole is None:
            return False
        belonging = artifacts(registry, image.repository, image.digest)
        registry.remove(image.repository, image.digest)
        if self._asked_since(before):
            _restore(registry, image, whole)
            return False
        metrics.IMAGES_DELETED.inc()
        log.info("Image deleted: %s@%s", image.repository, image.digest, extra={"build": image.build})
        _remove(registry, image.repository, {*belonging, *image.parts} - _needed_without(image, review))
        return True

    def _unused(self, image: Pushed) -> Build | None:
        """The record of an image that no request waits for."""
        try:
            build = self._records.get(image.build or "")
        except NotFound:
            return None
        used_at = recorded(build).used_at
        return None if waits(build) or self._clock() - used_at < self._rule.period else build

    def _asked_since(self, before: Build) -> bool:
        try:
            after = self._records.get(before.name)
        except NotFound:
            return False
        return waits(after) or {cause.key for cause in after.causes} != {cause.key for cause in before.causes}


def _all(records: Records) -> Iterator[Build]:
    cursor: str | None = None
    while True:
        page = records.list(limit=PAGE, cursor=cursor)
        yield from page.builds
        cursor = page.cursor
        if cursor is None:
            return


def _digests_of_others(registry: Registry, review: ImageReview) -> set[str]:
    """The digests of all tags that do not belong to commits: a tag may have been set or moved since the review."""
    tags = registry.tags(review.repository)
    others = [tag for tag in tags if not is_reserved(tag) and not REFERRERS.fullmatch(tag)]
    found = [registry.manifest(review.repository, tag) for tag in others]
    return {manifest.digest for manifest in found if manifest}


def _restore(registry: Registry, image: Pushed, whole: Manifest) -> None:
    for reference in image.tags or (image.digest,):
        registry.put(image.repository, reference, whole.media_type, whole.body or b"")


def _needed_without(image: Pushed, review: ImageReview) -> set[str]:
    """The digests that something else in the repository has or refers to."""
    others = [verdict.image for verdict in review.verdicts if verdict.image.digest != image.digest]
    return {digest for other in others for digest in (other.digest, *other.parts)}


def _remove(registry: Registry, repository: str, digests: Collection[str]) -> None:
    """Ignores failures: a leftover is garbage in the registry, and no reason to stop."""
    for digest in sorted(digests):
        with suppress(RegistryError):
            registry.remove(repository, digest)


class Retention:
    """Prunes periodically while this process leads, and forgets the records of deleted images.

    It runs in a separate thread beside the controller's, because a silent registry must not delay builds.
    """

    def __init__(
        self,
        pruner: Pruner,
        *,
        records: Records,
        forget: Callable[[Build], None],
        history: timedelta,
        leading: Callable[[], bool],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pruner = pruner
        self._records = records
        self._forget = forget
        self._history = history
        self._leading = leading
        self._clock = clock
        self._monotonic = monotonic
        self._due = monotonic()
        self._logged: dict[str, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Prunes until `stop` is set; a deletion in progress then completes."""
        while not stop.is_set():
            if self._leading() and self._monotonic() >= self._due:
                self.run_once(stop)
                self._due = self._monotonic() + PRUNE_INTERVAL
            stop.wait(LEADER_CHECK_INTERVAL)

    def run_once(self, stop: threading.Event) -> None:
        """Reviews all repositories once, prunes them, and forgets expired records."""
        failed = 0
        try:
            for review in self._pruner.review():
                if stop.is_set() or not self._leading():
                    return
                failed += not self._prune(review)
        except EngineError as error:
            self._log_trouble("", f"The records cannot be read: {error}")
            failed += 1
        except Exception:
            log.exception("Pruning images failed")
            failed += 1
        metrics.PRUNE_FAILING.set(failed)

    def _prune(self, review: ImageReview) -> bool:
        pruned = self._pruner.prune(review)
        error = review.error or pruned.error
        self._log_trouble(review.repository, error or "")
        if review.error is None:
            self._forget_records(review, {image.digest for image in pruned.deleted})
        return error is None

    def _forget_records(self, review: ImageReview, deleted: Collection[str]) -> None:
        """Forgets expired records whose image is no longer in the registry."""
        there = {verdict.image.digest for verdict in review.verdicts} - {*deleted}
        for record in review.records:
            over = self._clock() - record.ended_at >= self._history
            if over and record.digest is not None and record.digest not in there and not record.waits:
                with suppress(NotFound):
                    build = self._records.get(record.build)
                    if recorded(build) == record:
                        self._forget(build)

    def _log_trouble(self, repository: str, trouble: str) -> None:
        """Logs trouble when it begins or changes."""
        if trouble != self._logged.get(repository, ""):
            self._logged[repository] = trouble
            if trouble:
                log.warning("Images of %s are not pruned: %s", repository, trouble)
