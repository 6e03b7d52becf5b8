"""The small parts of the command: logs, the ops port, server-sent events, progress."""

from __future__ import annotations

import io
import json
import logging
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln.client import Message, messages
from kiln.logs import JSONFormatter
from kiln.ops import Ops
from kiln.progress import Progress, printable
from tests.parts.kiln import get


def logged(message: str, *args: object, **extra: object) -> dict[str, object]:
    record = logging.getLogger("kiln.test").makeRecord(
        "kiln.test", logging.WARNING, "file", 1, message, args, None, extra=extra
    )
    line = JSONFormatter().format(record)
    assert "\n" not in line
    return json.loads(line)


def test_a_log_line_is_one_line_of_json() -> None:
    line = logged("a %s\nb", "line", build="build-x", event_id="e-1", about=None, thing=object)
    assert line["message"] == "a line\nb"
    assert (line["level"], line["logger"]) == ("warning", "kiln.test")
    assert (line["build"], line["event_id"], line["thing"]) == ("build-x", "e-1", "<class 'object'>")
    assert "about" not in line
    assert str(line["time"]).endswith("Z")


def test_an_exception_is_in_its_line() -> None:
    record = logging.makeLogRecord({"msg": "m", "exc_info": (KeyError, KeyError("x"), None)})
    assert "KeyError: 'x'" in json.loads(JSONFormatter().format(record))["exception"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_ops_port_is_alive_before_it_is_ready(host: str) -> None:
    ops = Ops(host, 0)
    ops.serve()
    url = f"http://{f'[{host}]' if ':' in host else host}:{ops.address[1]}"
    assert get(f"{url}/livez") == (200, b"alive\n")
    assert get(f"{url}/readyz") == (503, b"not yet: start\n")
    ops.waiting_for = None
    assert get(f"{url}/readyz?verbose") == (200, b"ready\n")


def test_metrics_come_in_the_form_that_is_asked_for() -> None:
    ops = Ops("127.0.0.1", 0)
    ops.serve()
    url = f"http://127.0.0.1:{ops.address[1]}/metrics"
    for accept, expected in (("text/plain", "text/plain"), ("application/openmetrics-text", "application/openmetrics")):
        request = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith(expected)


def test_messages_are_read_from_lines() -> None:
    lines = (
        b': hello\n\nid: 1:2\nevent: log\ndata: {"line":"a"}\n\nevent: state\ndata: {"state":"queued"}\n\ndata: x\n\n'
    )
    assert list(messages(lines.split(b"\n"))) == [
        Message(kind="log", data={"line": "a"}, id="1:2"),
        Message(kind="state", data={"state": "queued"}),
    ]


def test_a_message_that_was_cut_off_does_not_count() -> None:
    assert list(messages([b"id: 1:2", b"event: log", b'data: {"line":"a"}'])) == []


@given(st.text())
def test_nothing_that_is_shown_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert all(character == "\t" or character.isprintable() or character > "\x9f" for character in shown)
    assert "\x1b" not in shown


def test_colours_and_titles_are_taken_out_of_a_log() -> None:
    assert printable("\x1b[31mred\x1b[0m\r\n\x07 done\x9b2J") == "red done"


def test_without_a_terminal_progress_is_plain_lines() -> None:
    out = io.StringIO()
    with Progress(out) as progress:
        progress.show(Message(kind="state", data={"state": "queued", "waiting": "All nodes are busy."}))
        progress.show(Message(kind="state", data={"state": "queued", "waiting": "All nodes are busy."}))
        progress.show(Message(kind="log", data={"line": "one\x1b[2J"}))
        progress.show(Message(kind="state", data={"state": "succeeded"}))
    assert out.getvalue() == "[queued: All nodes are busy.]\none\n[succeeded]\n"
