"""Metrics of web (Prometheus). Labels have few values: never a path, a repository, a user or an event."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = Histogram(
    "kiln_http_request_seconds",
    "Seconds from the request to the head of its answer, by route, method and status.",
    ["route", "method", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
EVENTS = Counter(
    "kiln_events_received",
    "Received events and webhooks, by route and result: accepted, ignored or refused.",
    ["via", "outcome"],
)
ASKED = Counter(
    "kiln_builds_asked", "Requested builds, by source: api, pages, binderhub, events or the kind of Git host.", ["via"]
)
VIEWERS = Gauge("kiln_log_viewers", "Logs that viewers follow now.")
