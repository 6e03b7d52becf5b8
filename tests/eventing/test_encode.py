"""Every event is encoded as a well-formed HTTP message that carries exactly that event."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.errors import EncodeError
from eventing.event import Event
from eventing.http import decode, encode, wire_text
from tests.eventing.events import events, on_the_wire

PLAIN = Event(id="1", source="/here", type="com.example.thing")


def plain(**changes: Any) -> Event:
    return msgspec.structs.replace(PLAIN, **changes)


@given(events())
def test_structured_comes_back_as_it_was(event: Event) -> None:
    assert decode(*encode(event, "structured")) == [on_the_wire(event)]


@given(events())
def test_binary_comes_back_but_for_the_types_of_extensions(event: Event) -> None:
    texts = {name: wire_text(value) for name, value in event.extensions.items()}
    assert decode(*encode(event, "binary")) == [msgspec.structs.replace(on_the_wire(event), extensions=texts)]


@given(events(), st.sampled_from(["binary", "structured"]))
def test_headers_are_printable_ascii(event: Event, mode: Any) -> None:
    headers, _ = encode(event, mode)
    assert "content-type" in headers
    for name, value in headers.items():
        assert re.fullmatch(r"content-type|ce-[a-z0-9]+", name)
        assert re.fullmatch(r"[ -~]*", value)


def test_binary() -> None:
    event = plain(
        subject='50 % "of" café',
        time=datetime(2026, 9, 14, 10, 1, 31, tzinfo=timezone(timedelta(hours=2))),
        extensions={"truth": True, "lie": False, "number": 5},
        data=[True, {"a": "é"}],
    )
    assert encode(event, "binary") == (
        {
            "ce-specversion": "1.0",
            "ce-id": "1",
            "ce-source": "/here",
            "ce-type": "com.example.thing",
            "ce-subject": "50%20%25%20%22of%22%20caf%C3%A9",
            "ce-time": "2026-09-14T10:01:31+02:00",
            "ce-truth": "true",
            "ce-lie": "false",
            "ce-number": "5",
            "content-type": "application/json",
        },
        '[true,{"a":"é"}]'.encode(),
    )


def test_structured() -> None:
    headers, body = encode(plain(extensions={"truth": True, "number": 5}, data=False), "structured")
    assert headers == {"content-type": "application/cloudevents+json"}
    assert json.loads(body) == {
        "specversion": "1.0",
        "id": "1",
        "source": "/here",
        "type": "com.example.thing",
        "datacontenttype": "application/json",
        "truth": True,
        "number": 5,
        "data": False,
    }


def test_nothing_is_added() -> None:
    """Encoding adds neither a time nor data, so each send of an event has the same message."""
    assert "ce-time" not in encode(PLAIN, "binary")[0]
    assert encode(PLAIN, "binary")[1] == b""
    assert set(json.loads(encode(PLAIN, "structured")[1])) == {"specversion", "id", "source", "type", "datacontenttype"}


def test_bytes() -> None:
    event = plain(datacontenttype="image/png", data=b"\xff\x00")
    assert encode(event, "binary")[1] == b"\xff\x00"
    assert json.loads(encode(event, "structured")[1])["data_base64"] == "/wA="


def test_bytes_without_a_type() -> None:
    assert encode(plain(data=b"\xff"), "binary")[0]["content-type"] == "application/octet-stream"
    assert json.loads(encode(plain(data=b"\xff"), "structured")[1])["datacontenttype"] == "application/octet-stream"


@pytest.mark.parametrize("mode", ["binary", "structured"])
@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "a\r\nset-cookie: x"},
        {"subject": "\n"},
        {"source": "not a uri"},
        {"time": datetime(2026, 9, 14)},  # noqa: DTZ001 - that is the fault
        {"datacontenttype": "text/plain\r\nset-cookie: x", "data": b""},
        {"extensions": {"a\r\nset-cookie": "x"}},
        {"extensions": {"abc\n": "x"}},
        {"extensions": {"data": "x"}},
        {"extensions": {"n": 2**31}},
        {"extensions": {"n": 1.5}},
        {"data": b"bytes under JSON", "datacontenttype": "application/json"},
        {"data": "text under PNG", "datacontenttype": "image/png"},
        {"data": float("nan")},
        {"data": {"a": datetime(2026, 9, 14, tzinfo=UTC)}},
        {"data": "\ud800"},
    ],
)
def test_what_has_no_form(changes: dict[str, Any], mode: Any) -> None:
    with pytest.raises(EncodeError):
        encode(plain(**changes), mode)
