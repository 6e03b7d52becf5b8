"""What web counts (Prometheus). Labels are words from short lists: never a path, a repository, a user or an event."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = Histogram(
    "kiln_http_request_seconds",
    "From the request to the head of its answer, by route, method and status.",
    ["route", "method", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
EVENTS = Counter(
    "kiln_events_received",
    "Events and webhooks that came in, by the route's word and what became of them: accepted, ignored or refused.",
    ["via", "outcome"],
)
ASKED = Counter(
    "kiln_builds_asked", "Builds asked for, by where: api, binderhub, events or the Git host's word.", ["via"]
)
VIEWERS = Gauge("kiln_log_viewers", "Logs that are being followed now.")
