"""The server finds the exact end of each request however its bytes are split, and does not wait for malformed ones."""

from __future__ import annotations

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped]
from gunicorn.http.parser import RequestParser  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from kiln.arrival import KEPT, LARGEST_HEAD, Arrival

LARGEST = 10_000
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
bodies = st.binary(max_size=200) | st.just(b"0\r\n\r\n") | st.just(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n")


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    chunks = draw(st.lists(bodies.filter(bool), max_size=5))
    extension = draw(st.sampled_from([b"", b";a=b", b' ; a="0 "', b";a=" + b"b" * 1000]))
    trailers = draw(st.sampled_from([b"", b"X-Sum: 1\r\n", b"X-Sum: 1\r\nX-More: 0\r\n"]))
    said = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + said + b"0\r\n" + trailers + b"\r\n"


requests = st.one_of(
    st.just(HEAD + b"\r\n"),
    bodies.map(lambda body: HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body),
    bodies.map(lambda body: HEAD + b"content-length:%d\t\r\nExpect: 100-Continue\r\n\r\n" % len(body) + body),
    chunked(),
)


@given(st.lists(requests, min_size=1, max_size=4), st.data())
def test_each_is_whole_at_its_last_byte_and_not_before(asked: list[bytes], data: st.DataObject) -> None:
    arrival = Arrival(LARGEST)
    for each in asked:
        left = each
        while left:
            assert not arrival.whole
            cut = data.draw(st.integers(1, len(left)))
            arrival.feed(left[:cut])
            left = left[cut:]
        assert arrival.whole
        assert b"".join(iter(lambda: arrival.read(7), b"")) == each
        assert arrival.next()
        assert len(arrival) == 0


@given(st.lists(requests, min_size=1, max_size=4))
def test_those_that_come_together_are_given_one_by_one(asked: list[bytes]) -> None:
    arrival = Arrival(LARGEST)
    arrival.feed(b"".join(asked))
    for each in asked:
        assert arrival.whole
        assert arrival.read(1 << 20) == each
        assert arrival.next()


@given(st.lists(requests, min_size=1, max_size=4))
def test_gunicorns_parser_wants_no_more_than_that(asked: list[bytes]) -> None:
    """Nor less: what it leaves would be taken for the next request."""
    parser = RequestParser(Config(), iter([b"".join(asked)]), ("127.0.0.1", 1))
    for at, _ in enumerate(asked):
        next(parser)
        assert parser.finish_body()
        assert parser.unreader.buf.getvalue() == b"".join(asked[at + 1 :])


@given(requests, st.data())
def test_what_was_not_read_to_its_end_leads_to_no_other(asked: bytes, data: st.DataObject) -> None:
    arrival = Arrival(LARGEST)
    arrival.feed(asked + HEAD + b"\r\n")
    arrival.read(data.draw(st.integers(0, len(asked) - 1)))
    assert not arrival.next()


def test_of_a_large_body_only_what_was_not_read_yet_is_kept() -> None:
    body = bytes(range(256)) * 4096
    words, following = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body, HEAD + b"\r\n"
    arrival = Arrival(len(body))
    arrival.feed(words + following)
    read, most = b"", len(arrival)
    while piece := arrival.read(10_000):
        read += piece
        assert len(arrival) <= most - len(read) + KEPT + 10_000
    assert read == words
    assert arrival.next()
    assert arrival.read(1000) == following


@pytest.mark.parametrize(
    "words",
    [
        HEAD + b"Content-Length: %d\r\n\r\n" % (LARGEST + 1),
        HEAD + b"Content-Length: 9999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 10_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (2 * LARGEST_HEAD) + bytes(LARGEST_HEAD + LARGEST + 1),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X" * (LARGEST_HEAD + 1),
        b"X" * (LARGEST_HEAD + 1),
    ],
)
def test_the_parser_is_to_refuse_what_is_too_large_or_malformed(words: bytes) -> None:
    arrival = Arrival(LARGEST)
    arrival.feed(words)
    assert arrival.whole


def test_who_breaks_off_within_a_body_is_not_waited_for() -> None:
    arrival = Arrival(LARGEST)
    arrival.feed(HEAD + b"Content-Length: 5\r\n\r\nab")
    arrival.feed(b"")
    assert arrival.whole
    assert arrival.read(1000).endswith(b"ab")
    assert not arrival.next()


def test_who_breaks_off_within_a_head_has_asked_for_nothing() -> None:
    arrival = Arrival(LARGEST)
    arrival.feed(HEAD)
    arrival.feed(b"")
    assert not arrival.whole
