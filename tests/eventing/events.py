"""Events for the tests: a plain one, and a Hypothesis strategy for all that CloudEvents 1.0 allows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any

import msgspec
from hypothesis import strategies as st

from eventing.event import Event, Scalar

ORDINARY = {"specversion": "1.0", "id": "1", "source": "/here", "type": "com.example.thing"}
"""The required attributes."""

HEADERS = {f"ce-{name}": value for name, value in ORDINARY.items()}


def _allowed(char: str) -> bool:
    return ord(char) & 0xFFFE != 0xFFFE and not 0xFDD0 <= ord(char) <= 0xFDEF


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]).filter(_allowed), min_size=1, max_size=20)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('ab"é\n', max_size=3), inner, max_size=4),
    max_leaves=12,
)
sources = st.from_regex(
    r"(https?:|urn:|[a-z][a-z0-9+.-]*:)?(//[a-z0-9.-]+(:[0-9]{1,4})?)?(/([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})*)+"
    r"(\?[a-z=&/?]*)?(#[a-z/?]*)?",
    fullmatch=True,
)
extensions: st.SearchStrategy[Mapping[str, Scalar]] = st.dictionaries(
    st.from_regex(r"x[a-z0-9]{0,19}", fullmatch=True),
    text | st.booleans() | st.integers(-(2**31), 2**31 - 1),
    max_size=3,
)
json_types = st.sampled_from(["application/json", "Application/JSON; charset=utf-8", "text/json", "a/vnd.b_c+json"])
other_types = st.sampled_from(["text/plain", "application/octet-stream", 'text/plain; charset="us-ascii"', "image/png"])
contents = st.tuples(st.none() | json_types, json_values) | st.tuples(st.none() | other_types, st.binary(min_size=1))


@st.composite
def events(draw: st.DrawFn) -> Event:
    datacontenttype, data = draw(contents)
    return Event(
        id=draw(text),
        source=draw(sources),
        type=draw(text),
        subject=draw(st.none() | text),
        time=draw(st.none() | st.datetimes(timezones=st.just(UTC))),
        dataschema=draw(st.none() | st.just("https://schemas.example/a?b#c")),
        extensions=draw(extensions),
        datacontenttype=datacontenttype,
        data=data,
    )


def on_the_wire(event: Event) -> Event:
    """Return the event as a receiver sees it, with an explicit content type."""
    usual = "application/octet-stream" if isinstance(event.data, bytes) else "application/json"
    return msgspec.structs.replace(event, datacontenttype=event.datacontenttype or usual)
