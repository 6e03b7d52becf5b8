"""The controller's Prometheus metrics. Label values come from short lists, and never name a repository, user or URL."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

BUILDS = Gauge("kiln_builds", "Open builds by state.", ["state"])
ENDED = Counter("kiln_builds_ended", "Builds that ended, by state and reason.", ["state", "reason"])
ATTEMPTS = Counter("kiln_attempts_ended", "Attempts that ended, by state and reason.", ["state", "reason"])
SECONDS = Histogram(
    "kiln_build_seconds",
    "From the request to the end, by state.",
    ["state"],
    buckets=(5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200),
)
QUEUE_AGE = Gauge("kiln_queue_age_seconds", "How long the oldest queued build has waited; 0 if none waits.")
SLOTS = Gauge("kiln_slots", "Slots for attempts on ready nodes: used or free.", ["state"])
PHASES = Histogram(
    "kiln_phase_seconds",
    "Phases of an ended build: each wait for an attempt (queue), and of each attempt fetch, build and push.",
    ["phase"],
    buckets=(0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 3600),
)
FOUND = Counter("kiln_images_found", "Attempts that had nothing to build: the registry already had their image.")
LEADER = Gauge("kiln_leader", "1 while this controller leads; 0 while it stands by or cannot reach its records.")
WATCH_RESTARTS = Counter(
    "kiln_watch_restarts", "Watches of the Kubernetes API that were restarted after a failure, by kind.", ["kind"]
)
DELIVERIES = Counter("kiln_deliveries", "Attempts to deliver an event to a sink, by outcome.", ["outcome"])
DEAD_LETTERS = Counter(
    "kiln_dead_letters",
    "Events that a sink refused permanently, did not accept in time, or lacked when the record was deleted.",
)
"""Each failure is also logged, with its event id and sink."""
SYNC_RUNS = Counter("kiln_sync_looks", "Rounds over listed repositories, by outcome.", ["outcome"])
SYNC_ASKED = Counter("kiln_sync_asked", "Builds that synchronisation requested because a webhook was missing.")
SYNC_FAILING = Gauge("kiln_sync_failing", "Polled repositories whose last round failed.")
IMAGES_DELETED = Counter("kiln_images_deleted", "Images that the rule `keep` no longer needed.")
PRUNE_FAILING = Gauge("kiln_prune_failing", "Image repositories that could not be pruned in the last round.")
CONFLICTS = Counter("kiln_conflicts", "Writes that were abandoned because the record had changed.")
PLAN_SECONDS = Histogram(
    "kiln_plan_seconds", "One round of observing and planning.", buckets=(0.005, 0.02, 0.1, 0.5, 2, 10)
)
RECORDS_PUT_ASIDE = Gauge(
    "kiln_records_put_aside", "Open records that cannot be read, planned or written, and wait for a retry."
)
