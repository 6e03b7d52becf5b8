"""Polls the listed repositories, each at its own interval, while this process leads.

It runs in a separate thread beside the controller's, because a silent Git host must not delay builds. Repositories are
polled one after the other, which bounds the load on hosts and records. Intervals vary by a tenth, so that repositories
that began together spread out.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from builds import metrics
from builds.engines import EngineError
from builds.errors import RequestError
from builds.sync.missing import Listed
from builds.sync.reconciler import SyncReport

log = logging.getLogger(__name__)

MAX_PAUSE = 3600.0
"""Seconds between two rounds for a failing repository, unless its interval is longer."""
LEADER_CHECK_INTERVAL = 1.0
"""Seconds after which a process that does not lead checks again whether it leads."""


class Poller:
    """`reconcile` is `Sync.reconcile`; `leading` returns whether this process leads."""

    def __init__(
        self,
        reconcile: Callable[[Listed], SyncReport],
        listed: Sequence[Listed],
        *,
        leading: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reconcile = reconcile
        self._listed = {one.url: one for one in listed if one.poll is not None}
        self._leading = leading
        self._monotonic = monotonic
        self._due = dict.fromkeys(self._listed, monotonic())
        self._failures = dict.fromkeys(self._listed, 0)
        self._logged: dict[str, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Polls until `stop` is set; a round in progress then completes."""
        while not stop.is_set():
            stop.wait(min(LEADER_CHECK_INTERVAL, self.poll_due()))

    def poll_due(self) -> float:
        """Polls the repository that has been due for longest. Returns the seconds until the next one is due."""
        if not self._due or not self._leading():
            return LEADER_CHECK_INTERVAL
        url = min(self._due, key=lambda url: self._due[url])
        if self._due[url] <= self._monotonic():
            self._poll(self._listed[url])
        return max(0.0, min(self._due.values()) - self._monotonic())

    def _poll(self, listed: Listed) -> None:
        url = listed.url
        try:
            report = self._reconcile(listed)
        except (RequestError, EngineError) as error:
            self._log_trouble(url, f"cannot be polled: {error}")
            self._failures[url] += 1
        except Exception:
            log.exception("Polling %s failed", url)
            self._failures[url] += 1
        else:
            self._log_report(url, report)
            self._failures[url] = 0
        metrics.SYNC_RUNS.labels("failed" if self._failures[url] else "done").inc()
        metrics.SYNC_FAILING.set(sum(map(bool, self._failures.values())))
        self._due[url] = self._monotonic() + self._pause(listed)

    def _pause(self, listed: Listed) -> float:
        interval = listed.poll or MAX_PAUSE
        backoff = min(interval * (1 << min(self._failures[listed.url], 16)), max(interval, MAX_PAUSE))
        return backoff * random.uniform(0.9, 1.1)  # noqa: S311  (not a secret)

    def _log_report(self, url: str, report: SyncReport) -> None:
        names = dict.fromkeys(ask.name for ask in report.asked)
        for name in names:
            log.info("Requested a build without a webhook: %s", url, extra={"build": name})
        metrics.SYNC_ASKED.inc(len(names))
        compared = report.comparison
        troubles = [*compared.refused, *compared.unanswered]
        if report.left:
            troubles.append("The queue is full, so some builds are postponed.")
        self._log_trouble(url, " ".join(troubles))

    def _log_trouble(self, url: str, trouble: str) -> None:
        """Logs trouble when it begins, changes or ends."""
        if trouble == self._logged.get(url, ""):
            return
        self._logged[url] = trouble
        if trouble:
            log.warning("Repository %s: %s", url, trouble)
        else:
            log.info("Repository %s: polling works again", url)
