"""The invariants of a build during which processes crash or connections break."""

from __future__ import annotations

from typing import Any

from tests.parts.cluster import Release, most_at_once

TERMINAL = ("succeeded", "failed", "cancelled")
TAKEOVER = 15.0
"""Seconds within which another controller leads after a leader has crashed."""


def check_exactly_once(release: Release, name: str, commit: str, seconds: float = 90.0) -> dict[str, Any]:
    """Wait for the end of the build and check that it was built and announced exactly once.

    It has one image and one end, the same at every sink. No attempt began while a pod of the previous one could still
    act.
    """
    build = release.ended(name, seconds)
    assert build["state"] == "succeeded", (build, release.log(name))
    assert build["image"]["digest"] == release.digest(build["image"]["repository"], commit)
    assert {delivery["state"] for delivery in build["deliveries"]} == {"delivered"}
    taken = [{(word(event.type), event.id) for event in release.events(sink, name)} for sink in release.sinks]
    assert all(events == taken[0] for events in taken), taken
    assert [kind for kind, _ in taken[0] if kind in TERMINAL] == ["succeeded"]
    assert len({made.split(".")[0] for _, made in taken[0]}) == 1
    pods = release.pods(name)
    numbers = [attempt["number"] for attempt in build["attempts"]]
    assert sorted(int(pod["metadata"]["labels"]["kiln.dev/attempt"]) for pod in pods) == numbers
    assert most_at_once(pods, lambda _: name) == {name: 1}
    return build


def word(kind: str) -> str:
    """Return the word of an event type, `dev.kiln.build.<word>.v1`."""
    return kind.split(".")[3]
