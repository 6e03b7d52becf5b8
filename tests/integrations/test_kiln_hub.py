"""The Hub plug-in alone: its events from the Hub's log, and their delivery to a faulty receiver.

`tests/hub` runs it in a real Hub.
"""

from __future__ import annotations

import ast
import asyncio
import copy
import logging
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eventing.http import decode
from integrations.jupyterhub import kiln_hub
from integrations.jupyterhub.kiln_hub import (
    KilnHandler,
    RequestRefused,
    cloud_event,
    image_hook,
    image_of,
    profiles_of,
    wanted_of,
)
from tests.parts.kiln import until
from tests.parts.sink import CUT, SILENT, Answer, EventSink

SCHEMA = "https://schema.jupyter.org/jupyterhub/events/server-action"
HUB = "https://hub.example/jupyter/"
AT = 1795000000.364281


def record(action: str = "start", user: str = "ada", server: str = "stats", schema: str = SCHEMA) -> logging.LogRecord:
    """A record as the Hub logs it, including its malformed timestamp."""
    capsule = {
        "__timestamp__": "2026-11-21T23:29:53.364281+00:00Z",
        "__schema__": schema,
        "__schema_version__": "1",
        "__metadata_version__": 1,
        "action": action,
        "username": user,
        "servername": server,
    }
    made = logging.LogRecord("hub", logging.INFO, "", 0, capsule, None, None)
    made.created = AT
    return made


@pytest.fixture
def sink() -> Iterator[EventSink]:
    with EventSink() as sink:
        yield sink


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pause between two tries."""
    monkeypatch.setattr(KilnHandler, "LONGEST_PAUSE", 0.05)


def handler(sink: EventSink, **options: Any) -> KilnHandler:
    return KilnHandler(sink.url.removesuffix("events"), "a canary", source=HUB, period=1e9, **options)


def test_it_needs_the_standard_library_only() -> None:
    tree = ast.parse(Path(kiln_hub.__file__).read_text())
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_a_servers_start_is_a_cloud_event() -> None:
    sent = cloud_event(record(user='ädä "x" 100%', server=""), HUB)
    assert sent is not None
    (event,) = decode(sent.headers, sent.body)
    assert (event.type, event.source, event.dataschema) == ("org.jupyterhub.server.start", HUB, SCHEMA)
    assert event.subject == 'user/ädä "x" 100%/'
    assert event.time == datetime.fromtimestamp(AT, UTC)
    assert event.data == {"action": "start", "username": 'ädä "x" 100%', "servername": ""}


def test_an_older_hubs_schema_is_no_uri() -> None:
    sent = cloud_event(record("stop", schema="hub.jupyter.org/server-action"), HUB)
    assert sent is not None
    (event,) = decode(sent.headers, sent.body)
    assert (event.type, event.dataschema) == ("org.jupyterhub.server.stop", None)


def test_other_entries_are_no_events() -> None:
    assert cloud_event(record(schema="https://schema.example/other"), HUB) is None
    assert cloud_event(logging.LogRecord("hub", logging.INFO, "", 0, "a line", None, None), HUB) is None


def test_the_id_comes_of_what_has_happened() -> None:
    same, again = (cloud_event(record(), HUB) for _ in range(2))
    others = [cloud_event(record("stop"), HUB), cloud_event(record(server="x"), HUB), cloud_event(record(), "/other")]
    assert same == again
    assert len({one.headers["ce-id"] for one in (same, *others) if one}) == 4


@pytest.mark.usefixtures("quick")
def test_it_is_sent_until_it_is_taken_and_stays_the_same(sink: EventSink) -> None:
    sink.answer(503, Answer(status=429, retry_after="0"), CUT, 404)
    sending = handler(sink)
    sending.handle(record())
    sending.handle(record("stop"))
    received = sink.wait_for(lambda received: [one.status for one in received].count(202) == 2)
    first, *_, last = received
    assert len({one.headers["ce-id"] for one in received}) == 2
    assert [one.headers["ce-id"] for one in received[:5]] == [first.headers["ce-id"]] * 5
    assert (first.path, first.headers["authorization"]) == ("/events", "Bearer a canary")
    assert last.events[0].type == "org.jupyterhub.server.stop"
    assert sending.dropped == 0
    sending.close()


@pytest.mark.parametrize("status", [400, 401, 403, 422, 302])
def test_what_is_refused_for_good_is_dropped_and_told(
    sink: EventSink, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    sink.answer(Answer(status=status, body=b'{"detail": "This cannot be built."}', location="http://127.0.0.1:1/"))
    sending = handler(sink)
    sending.handle(record())
    sending.handle(record("stop"))
    sink.wait_for(lambda received: len(received) == 2)
    until(lambda: sending.dropped == 1)
    sending.close()
    assert f"it answered {status}" in caplog.text
    assert "This cannot be built." in caplog.text


def test_it_waits_for_nobody_and_the_queue_has_an_end(sink: EventSink, caplog: pytest.LogCaptureFixture) -> None:
    sink.answer(then=SILENT)
    sending = handler(sink, size=3)
    sending.handle(record())
    sink.wait_for(lambda received: len(received) == 1)  # the sender is delivering the event
    for _ in range(8):
        sending.handle(record())
    assert sending.dropped == 5
    assert "the queue is full" in caplog.text
    assert caplog.text.count("did not reach Kiln") == 1  # not a line per event
    sink.refuse()
    sending.close()


@pytest.mark.usefixtures("quick")
def test_what_is_too_old_is_dropped(sink: EventSink) -> None:
    sink.refuse()
    sending = KilnHandler(sink.url.removesuffix("events"), None, source=HUB, period=1.0)
    sending.handle(record())
    until(lambda: sending.dropped == 1)
    sending.close()


def test_what_is_left_at_the_end_is_tried_once_more(sink: EventSink) -> None:
    sink.answer(503)
    sending = handler(sink)
    sending.handle(record())
    sending.handle(record("stop"))
    sink.wait_for(lambda received: len(received) == 1)
    sending.close()
    assert [event.type.rpartition(".")[2] for event in sink.events] == ["start", "stop"]


def test_a_hub_that_is_none_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    """An error of the handler must not fail the start of a user's server."""
    sending = KilnHandler("http://127.0.0.1:1/", None)
    sending.handle(record())
    assert "KeyError" in capsys.readouterr().err
    sending.close()


def test_an_address_is_one() -> None:
    with pytest.raises(ValueError, match="http or https"):
        KilnHandler("kiln:80", None)
    with pytest.raises(ValueError, match="fallback"):
        image_hook("http://kiln/", None, fallback="any")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"repository": "https://x/a", "ref": "main"}, ("https://x/a", "main")),
        ({"repository": ["https://x/a "], "ref": [""]}, ("https://x/a", None)),
        ({"repository": []}, None),
        ({"profile": "x"}, None),
        (None, None),
    ],
)
def test_what_a_user_has_chosen(options: dict[str, Any] | None, wanted: tuple[str, str | None] | None) -> None:
    assert wanted_of(options) == wanted


def build(repository: str = "https://x.example/a.git", **given: Any) -> dict[str, Any]:
    image = {"repository": "r.example/a", "tag": "c0", "digest": "sha256:d", "reference": "r.example/a:c0@sha256:d"}
    whole = {"name": "build-a", "state": "succeeded", "reason": None, "message": None, "repository": repository}
    return {**whole, "subdir": None, "ref": "refs/heads/main", "commit": "c0ffee" * 7, "image": image, **given}


def test_the_image_of_a_build() -> None:
    assert image_of(build()) == "r.example/a:c0@sha256:d"
    assert image_of(build(), "tag") == "r.example/a:c0"
    with pytest.raises(RequestRefused, match=r"https://x.example/a.git failed. No file. \(build build-a\)"):
        image_of(build(state="failed", reason="repository", message="No file."))
    with pytest.raises(RequestRefused, match=r"was cancelled\. Kiln says only: requested\."):
        image_of(build(state="cancelled", reason="requested"))


def test_profiles_are_of_the_newest_images() -> None:
    new = {**build()["image"], "reference": "r.example/a:c1@sha256:e"}
    builds = [
        build(finished_at="2026-11-01T00:00:00Z"),
        build(finished_at="2026-11-02T00:00:00Z", image=new),
        build(subdir="<b>", finished_at=None),
        build("https://y.example/z", finished_at=None),
    ]
    first, second = profiles_of(builds, ["https://x.example/*"])
    assert first["kubespawner_override"] == {"image": "r.example/a:c1@sha256:e"}
    assert (first["display_name"], second["display_name"]) == ("x.example/a", "x.example/a (&lt;b&gt;)")
    assert first["description"] == "main at c0ffeec0ffee, built 2026-11-02"
    assert first["slug"].startswith("kiln-x-example-a-")
    assert first["slug"] != second["slug"]


def test_a_hook_can_be_copied() -> None:
    """The Hub deep-copies its configuration for each spawner."""
    hook = image_hook("http://127.0.0.1:1/", None)
    assert copy.deepcopy(hook) is hook


def test_a_thread_that_nobody_waits_for_says_nothing() -> None:
    """A cancelled start leaves its thread behind, and the result of the thread must not raise in the Hub."""
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        done.set()

    async def left() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(kiln_hub._in_thread(work), 0.01)
        go.set()
        assert await asyncio.to_thread(done.wait, 10)

    asyncio.run(left())


def test_the_story_is_the_same_for_who_comes_late() -> None:
    story = kiln_hub.Story()
    story.take(kiln_hub.Message("state", {"waiting": "2 builds are ahead."}, None))
    story.take(kiln_hub.Message("state", {"waiting": "2 builds are ahead."}, None))
    story.take(kiln_hub.Message("log", {"line": "Step 1", "phase": "build"}, "1:1"))

    async def seen(first: bool) -> list[dict[str, Any]]:
        found = []
        async for event in story.progress():
            found.append(event)
            if first and len(found) == 2:
                story.tell("The end")
                story.end()
        return found

    early, late = asyncio.run(seen(True)), asyncio.run(seen(False))
    assert early == late
    assert [event["message"] for event in early] == ["2 builds are ahead.", "Step 1", "The end"]
    assert [event["progress"] for event in early] == [0, 10, 10]


def test_a_story_has_an_end() -> None:
    story = kiln_hub.Story()
    for number in range(kiln_hub.MOST_LINES + 7):
        story.tell(str(number))
    story.end()

    async def seen() -> list[str]:
        return [event["message"] async for event in story.progress()]

    assert asyncio.run(seen()) == [str(number) for number in range(7, kiln_hub.MOST_LINES + 7)]


@pytest.mark.parametrize(("fallback", "image"), [("own", "own:1"), ("last", "own:1")])
def test_without_kiln_the_image_is_the_spawners_own(fallback: str, image: str) -> None:
    options = {"repository": "https://x.example/a"}
    spawner = SimpleNamespace(user_options=options, image="own:1", log=logging.getLogger("hub"))
    hook = image_hook("http://127.0.0.1:1/", None, fallback=fallback, patience=0)
    asyncio.run(hook(spawner))  # type: ignore[arg-type]
    assert spawner.image == image
