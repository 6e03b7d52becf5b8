"""`eventing.http`: every event that can be decoded survives the round trip through the encoder."""

from __future__ import annotations

import contextlib

import msgspec

from eventing.errors import EventError
from eventing.event import Event
from eventing.http import decode, encode, wire_text
from tests.eventing.events import on_the_wire
from tests.fuzz.message import read_message


def decode_http(data: bytes) -> None:
    """`data`: an HTTP message."""
    with contextlib.suppress(EventError):
        for event in decode(*read_message(data)):
            check(event)


def check(event: Event) -> None:
    sent = on_the_wire(event)
    texts = {name: wire_text(value) for name, value in event.extensions.items()}
    assert decode(*encode(event, "structured")) == [sent]
    assert decode(*encode(event, "binary")) == [msgspec.structs.replace(sent, extensions=texts)]
