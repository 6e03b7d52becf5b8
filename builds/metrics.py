"""What the controller counts (Prometheus). Labels are words from short lists: never a repository, a user or a URL."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

BUILDS = Gauge("kiln_builds", "Open builds by state.", ["state"])
ENDED = Counter("kiln_builds_ended", "Builds that ended, by state and reason.", ["state", "reason"])
ATTEMPTS = Counter("kiln_attempts_ended", "Attempts that ended, by state and reason.", ["state", "reason"])
SECONDS = Histogram(
    "kiln_build_seconds",
    "From being asked for to the end, by state.",
    ["state"],
    buckets=(5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200),
)
QUEUE_AGE = Gauge("kiln_queue_age_seconds", "For how long the oldest queued build has waited; 0 where none does.")
SLOTS = Gauge("kiln_slots", "Slots for attempts, on nodes that are ready: used or free.", ["state"])
PHASES = Histogram(
    "kiln_phase_seconds",
    "Parts of a build that has ended: each wait for an attempt (queue), and of each attempt fetch, build and push.",
    ["phase"],
    buckets=(0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 3600),
)
FOUND = Counter("kiln_images_found", "Attempts that had nothing to build: the registry had their image already.")
LEADER = Gauge("kiln_leader", "1 while this controller acts; 0 while it stands by or cannot reach its records.")
WATCH_RESTARTS = Counter(
    "kiln_watch_restarts", "Times that a watch of the Kubernetes API was begun anew after a failure, by kind.", ["kind"]
)
DELIVERIES = Counter("kiln_deliveries", "Tries to give an event to a sink, by outcome.", ["outcome"])
DEAD_LETTERS = Counter(
    "kiln_dead_letters",
    "Events that a sink refused for good, did not take in time, or had not taken when the record was deleted.",
)
"""Each is logged with its event id and sink as well."""
SYNC_RUNS = Counter("kiln_sync_looks", "Looks at listed repositories, by outcome.", ["outcome"])
SYNC_ASKED = Counter("kiln_sync_asked", "Builds that no webhook had asked for, and a look at their repository did.")
SYNC_FAILING = Gauge("kiln_sync_failing", "Polled repositories that could not be looked at the last time.")
IMAGES_DELETED = Counter("kiln_images_deleted", "Images that the rule `keep` did not need any more.")
PRUNE_FAILING = Gauge("kiln_prune_failing", "Image repositories that could not be pruned the last time.")
CONFLICTS = Counter("kiln_conflicts", "Writes that were given up because the record had changed.")
PLAN_SECONDS = Histogram(
    "kiln_plan_seconds", "One look: observing and planning.", buckets=(0.005, 0.02, 0.1, 0.5, 2, 10)
)
RECORDS_PUT_ASIDE = Gauge(
    "kiln_records_put_aside", "Open records that cannot be read, planned or written, and wait to be retried."
)
