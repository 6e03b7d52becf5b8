"""Every build survives the round trip through a ConfigMap, and the largest one fits."""

from __future__ import annotations

import base64
import json
import lzma
from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from builds.arguments import MAX_BYTES
from builds.build import (
    MAX_ATTEMPTS_KEPT,
    MAX_CAUSES,
    MAX_DELIVERIES_KEPT,
    MAX_OUTBOX,
    Announcement,
    Build,
    Delivery,
    DeliveryState,
    State,
)
from builds.engines import QueueFull, Submission
from builds.engines.kubernetes.records import (
    LABEL_OPEN,
    LABEL_REPOSITORY,
    LABEL_STATE,
    SUMMARY,
    UNPACKED,
    Unreadable,
    build_of,
    made_at,
    manifest,
    patch,
    summary_of,
)
from builds.engines.marks import joined
from builds.intake import MAX_VALUE
from builds.report import as_json, event
from tests.builds.engine_factories import new_submission
from tests.builds.kubernetes_objects import RELEASE, build
from tests.builds.plan_factories import NOW, failed

CONFIGMAP = 1 << 20
"""https://kubernetes.io/docs/concepts/configuration/configmap/#motivation"""
ANNOTATIONS = 256 << 10
"""https://kubernetes.io/docs/reference/using-api/: of all annotations of an object."""


def stored(made: Build) -> dict[str, Any]:
    """Return the record as the API server gives it back."""
    found = manifest(made, RELEASE, None)
    found["metadata"] |= {"uid": made.uid, "resourceVersion": made.revision}
    return found


def announced(made: Build, number: int, word: str = "queued") -> Announcement:
    told = event(made, word, number, source="/kiln", now=NOW)
    waiting = Delivery(sink="hub", event=told.id, type=told.type, due_at=NOW)
    return Announcement(event=told, at=NOW, deliveries=(waiting,))


def _asked(number: int) -> Submission:
    """A submission by another user each time, so that no two can be merged."""
    return new_submission("b", f"{number}-{'x' * MAX_VALUE}", by=f"user:{number}", args={"A": "v" * MAX_BYTES})


def largest() -> Build:
    """A record in which every bounded field is at its limit."""
    made = joined(None, [_asked(0)], uid=lambda: "uid-1", now=NOW, share=20)
    with suppress(QueueFull):
        for number in range(1, MAX_CAUSES):
            made = joined(made, [_asked(number)], uid=str, now=NOW, share=20)
    attempts = tuple(failed(number, message="m" * 1024) for number in range(MAX_ATTEMPTS_KEPT))
    done = Delivery(
        sink="hub", event="e" * 60, type="t" * 30, state=DeliveryState.DEAD, due_at=NOW, at=NOW, error="e" * 500
    )
    status = replace(
        made.status,
        attempts=attempts,
        deliveries=(done,) * MAX_DELIVERIES_KEPT,
        log_tail="t" * 2048,
        message="m" * 1024,
    )
    made = replace(made, revision="1", status=status)
    outbox = tuple(announced(made, number) for number in range(MAX_OUTBOX + MAX_CAUSES))
    return replace(made, status=replace(status, outbox=outbox))


def test_it_comes_back_as_it_was() -> None:
    made = build()
    made = replace(made, status=replace(made.status, outbox=(announced(made, 1), announced(made, 2)), log_tail="tail"))
    assert build_of(stored(made)) == made


def test_what_selects_it_is_in_its_labels() -> None:
    waiting = stored(build())["metadata"]["labels"]
    assert (waiting[LABEL_STATE], waiting[LABEL_OPEN]) == ("queued", "true")
    assert len(waiting[LABEL_REPOSITORY]) <= 63
    assert waiting["app.kubernetes.io/instance"] == "kiln"
    settled = replace(build(), open=False)
    assert LABEL_OPEN not in stored(settled)["metadata"]["labels"]
    assert patch(settled)["metadata"]["labels"][LABEL_OPEN] is None
    assert patch(settled)["metadata"]["resourceVersion"] == settled.revision


def test_an_outbox_that_is_empty_again_leaves_the_record() -> None:
    assert patch(build())["binaryData"] == {"outbox": None}


def test_a_list_shows_the_same_as_the_build_without_its_log() -> None:
    made = build()
    made = replace(made, status=replace(made.status, outbox=(announced(made, 1),), log_tail="tail"))
    metadata = stored(made)["metadata"]
    assert as_json(summary_of(metadata), tail=False) == as_json(made, tail=False)
    assert made_at(metadata) == made.created_at


def test_the_largest_record_fits() -> None:
    made = largest()
    found = stored(made)
    assert build_of(found) == made
    assert len(json.dumps(found)) < CONFIGMAP * 0.6
    assert len(found["metadata"]["annotations"][SUMMARY]) < ANNOTATIONS * 0.8


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ('{"version": 2}', "has version 2"),
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"version": 1}', "cannot be read"),
        ("[" * 10_000, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(record: str, says: str) -> None:
    found = stored(build())
    found["data"]["record"] = record
    found["metadata"]["annotations"][SUMMARY] = record
    with pytest.raises(Unreadable, match=f"b {says}"):
        build_of(found)
    with pytest.raises(Unreadable, match=f"b {says}"):
        summary_of(found["metadata"])


def test_a_time_without_zone_cannot_be_read() -> None:
    found = stored(build())
    text = found["data"]["record"].replace("+00:00", "").replace("00Z", "00")
    found["data"]["record"] = found["metadata"]["annotations"][SUMMARY] = text
    for read in (lambda: build_of(found), lambda: summary_of(found["metadata"]), lambda: made_at(found["metadata"])):
        with pytest.raises(Unreadable):
            read()


def test_a_damaged_outbox_is_named() -> None:
    bomb = base64.b64encode(lzma.compress(b"[" + b" " * UNPACKED + b"]", preset=0)).decode()
    for damaged in ("!", "AAAA", "/Td6WFoAAATm1rRGAgAhARAAAACocI6GAQABQQAAAAA=", bomb, bomb[:-40]):
        found = stored(build()) | {"binaryData": {"outbox": damaged}}
        with pytest.raises(Unreadable, match="The outbox of b"):
            build_of(found)


def test_one_that_was_asked_for_again_waits_in_every_list() -> None:
    made = build()
    over = replace(made, status=replace(made.status, state=State.FAILED, round=1, answered=(made.causes[0].key,)))
    again = joined(over, [new_submission("b", "2")], uid=str, now=NOW, share=20)
    assert stored(again)["metadata"]["labels"][LABEL_STATE] == "queued"
