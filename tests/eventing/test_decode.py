"""HTTP requests are decoded as CloudEvents 1.0 requires, or refused with the right status and a sentence."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventing.errors import DecodeError, NotACloudEvent
from eventing.event import Event
from eventing.http import decode
from tests.eventing.events import HEADERS, ORDINARY

STRUCTURED = {"content-type": "application/cloudevents+json"}
BATCH = {"content-type": "application/cloudevents-batch+json"}


def binary(body: bytes = b"", content_type: str | None = "application/json", /, **attributes: str | None) -> Event:
    headers = {**HEADERS, **{f"ce-{name}": value for name, value in attributes.items()}, "content-type": content_type}
    (event,) = decode({name: value for name, value in headers.items() if value is not None}, body)
    return event


def structured(**members: Any) -> Event:
    (event,) = decode(STRUCTURED, json.dumps({**ORDINARY, **members}).encode())
    return event


class TestMode:
    @pytest.mark.parametrize(
        "content_type",
        [
            "application/cloudevents+json",
            "Application/CloudEvents+JSON",
            "application/cloudevents+json ; charset=UTF-8",
        ],
    )
    def test_content_type_decides_and_the_body_wins(self, content_type: str) -> None:
        (event,) = decode({**HEADERS, "Content-Type": content_type}, json.dumps({**ORDINARY, "id": "inner"}).encode())
        assert event.id == "inner"

    def test_binary_with_any_other_content_type(self) -> None:
        assert binary(b"hello", "text/plain").data == b"hello"

    def test_header_names_in_any_case(self) -> None:
        (event,) = decode({name.title(): value for name, value in HEADERS.items()}, b"")
        assert (event.id, event.source, event.type) == ("1", "/here", "com.example.thing")

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"content-type": "application/json"},
            {"content-type": "text/plain"},
            {"content-type": ""},
            {"content-type": "application/cloudevents"},
            {"content-type": "application/cloudevents+xml"},
            {"content-type": "application/cloudevents-batch"},
            {**HEADERS, "content-type": "application/cloudevents+avro"},
        ],
    )
    def test_what_is_no_cloudevent_is_415(self, headers: dict[str, str]) -> None:
        with pytest.raises(NotACloudEvent) as refused:
            decode(headers, json.dumps(ORDINARY).encode())
        assert refused.value.status == 415

    def test_what_wants_to_be_one_and_is_not_is_400(self) -> None:
        with pytest.raises(DecodeError) as refused:
            decode({"ce-id": "1"}, b"")
        assert (refused.value.status, type(refused.value)) == (400, DecodeError)

    @pytest.mark.parametrize("name", ["ce-id", "ce-ext", "content-type", "content-encoding"])
    def test_header_that_was_sent_twice(self, name: str) -> None:
        with pytest.raises(DecodeError, match=f"{name} is repeated"):
            decode({**HEADERS, "Kiln-Repeated": f"accept,{name}"}, b"")

    def test_headers_that_may_be_sent_twice(self) -> None:
        assert decode({**HEADERS, "Kiln-Repeated": "accept,via,x-forwarded-for"}, b"") == decode(HEADERS, b"")

    def test_two_spellings_of_one_header(self) -> None:
        with pytest.raises(DecodeError):
            decode({**HEADERS, "CE-ID": "2"}, b"")


class TestAttributes:
    @pytest.mark.parametrize("name", ORDINARY)
    def test_nothing_required_is_made_up(self, name: str) -> None:
        with pytest.raises(DecodeError, match=name):
            binary(**{name: None})
        with pytest.raises(DecodeError, match=name):
            structured(**{name: None})
        with pytest.raises(DecodeError, match=name):
            binary(**{name: ""})
        with pytest.raises(DecodeError, match=name):
            structured(**{name: 1})

    @pytest.mark.parametrize("version", ["0.3", "1", "1.0 ", "1.1", "2.0", "1.0.2"])
    def test_one_version(self, version: str) -> None:
        with pytest.raises(DecodeError, match="specversion"):
            binary(specversion=version)
        with pytest.raises(DecodeError, match="specversion"):
            structured(specversion=version)

    def test_null_is_absent(self) -> None:
        nothing = dict.fromkeys(["subject", "time", "datacontenttype", "dataschema", "ext", "data", "data_base64"])
        assert structured(**nothing) == structured()
        assert structured(**nothing).extensions == {}

    @pytest.mark.parametrize(
        ("text", "time"),
        [
            ("2026-09-14T10:01:31Z", datetime(2026, 9, 14, 10, 1, 31, tzinfo=UTC)),
            ("2026-09-14t10:01:31z", datetime(2026, 9, 14, 10, 1, 31, tzinfo=UTC)),
            ("2026-09-14T10:01:31.5+02:00", datetime(2026, 9, 14, 8, 1, 31, 500000, tzinfo=UTC)),
            ("2026-09-14T10:01:31.123456789Z", datetime(2026, 9, 14, 10, 1, 31, 123457, tzinfo=UTC)),
            ("2026-09-14T10:01:31." + "9" * 1000 + "Z", datetime(2026, 9, 14, 10, 1, 32, tzinfo=UTC)),
            ("2026-09-14T10:01:31-00:00", datetime(2026, 9, 14, 10, 1, 31, tzinfo=UTC)),
            ("1990-12-31T23:59:60Z", datetime(1990, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
            ("1990-12-31T15:59:60.5-08:00", datetime(1990, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
            ("0000-02-29T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
            ("0000-12-31T23:30:00-01:00", datetime(1, 1, 1, 0, 30, tzinfo=UTC)),
            ("0001-01-01T00:00:00+14:00", datetime(1, 1, 1, tzinfo=UTC)),
            ("9999-12-31T23:59:59.9999999Z", datetime.max.replace(tzinfo=UTC)),
            ("9999-12-31T23:59:59-23:59", datetime.max.replace(tzinfo=UTC)),
        ],
    )
    def test_time(self, text: str, time: datetime) -> None:
        assert binary(time=text).time == time
        assert structured(time=text).time == time
        assert structured(time=text).attribute("time") == time.isoformat().replace("+00:00", "Z")

    @pytest.mark.parametrize(
        "text",
        ["", "yesterday", "2026", "2026-09-14", "2026-09-14T10:01:31", "2026-09-14T10:01:31.Z", "2026-09-14T10:01:61Z",
         "2026-09-14T10:01:60Z", "2026-09-14T24:00:00Z", "2026-02-29T00:00:00Z", "0001-02-29T00:00:00Z",
         "2026-00-01T00:00:00Z", "2026-09-14T10:01:31+24:00", "2026-09-14T10:01:31+00:60",
         "12026-09-14T10:01:31Z", "-001-09-14T10:01:31Z", "2026-09-14T10:01:31,5Z", "\uff12026-09-14T10:01:31Z"],
    )  # fmt: skip
    def test_bad_time(self, text: str) -> None:
        with pytest.raises(DecodeError, match="time"):
            binary(time=text)

    @pytest.mark.parametrize("value", [5, True, 1.5, [], {}])
    def test_context_attributes_are_strings(self, value: object) -> None:
        for name in ("id", "source", "type", "subject", "time", "dataschema", "datacontenttype"):
            with pytest.raises(DecodeError, match=name):
                structured(**{name: value})

    @pytest.mark.parametrize(
        "source",
        ["/", "here", "../x?y=z#w", "https://h.example:8443/a%20b", "urn:uuid:6e8bc430", "mailto:a@b.example",
         "//github.com/x", "http://[::1]:80/", "?q", "#f", "./1:a", "a/b:c"],
    )  # fmt: skip
    def test_source(self, source: str) -> None:
        assert structured(source=source).source == source

    @pytest.mark.parametrize(
        "source",
        ["a b", "é", "<x>", "%", "%4", "a%zz", "1:a", ":a", "http://[::1", "http://h\\x", "a#b#c", "{x}", "http://[x]/",
         "//a[" + "b" * 99_999 + "é"],
    )  # fmt: skip
    def test_source_that_is_no_uri_reference(self, source: str) -> None:
        with pytest.raises(DecodeError, match="source"):
            structured(source=source)

    @pytest.mark.parametrize(
        ("sent", "source"),
        [
            ("https://h.example/a%20b", "https://h.example/a%20b"),  # decoded, it would not be a URI
            ("https://h.example/caf%E9", "https://h.example/caf%E9"),  # not UTF-8
            ("https://h.example/%7Eada", "https://h.example/~ada"),
            ("https://h.example/100%25", "https://h.example/100%25"),
        ],
    )
    def test_uri_that_its_sender_has_not_encoded_for_the_header(self, sent: str, source: str) -> None:
        assert binary(source=sent).source == source
        assert binary(dataschema=sent).dataschema == source

    def test_invalid_traceparent_is_dropped(self) -> None:
        trace, span = "a" * 32, "b" * 16
        good = f"00-{trace}-{span}-01"
        assert structured(traceparent=good, tracestate="a=b").extensions == {"traceparent": good, "tracestate": "a=b"}
        for bad in ("", "x", good.upper(), f"{good}-", f"ff-{trace}-{span}-01", f"00-{'0' * 32}-{span}-01",
                    f"00-{trace}-{'0' * 16}-01", f"{good}\n", 5, [good], None):  # fmt: skip
            assert structured(traceparent=bad, tracestate="a=b", ext="x").extensions == {"ext": "x"}
        assert binary(traceparent="x", ext="x").extensions == {"ext": "x"}

    @pytest.mark.parametrize("schema", ["relative/x", "//h/x", "has space:x", "1x:y"])
    def test_dataschema_is_a_uri(self, schema: str) -> None:
        assert structured(dataschema="https://h.example/s.json").dataschema == "https://h.example/s.json"
        with pytest.raises(DecodeError, match="dataschema"):
            structured(dataschema=schema)

    @pytest.mark.parametrize(
        "char", ["\x00", "\n", "\r", "\x1f", "\x7f", "\x85", "\x9f", "\ufdd0", "\uffff", "\U0010fffe"]
    )
    def test_characters_that_strings_may_not_hold(self, char: str) -> None:
        for name in ("id", "source", "type", "subject", "ext"):
            with pytest.raises(DecodeError, match=name):
                structured(**{name: f"a{char}b"})
        for name in ("id", "type", "subject", "ext"):
            with pytest.raises(DecodeError, match=name):
                binary(**{name: "a" + "".join(f"%{byte:02X}" for byte in char.encode()) + "b"})

    def test_half_a_surrogate_pair(self) -> None:
        with pytest.raises(DecodeError):
            structured(subject="\ud800")
        with pytest.raises(DecodeError):
            structured(data={"a": ["\udfff"]})
        with pytest.raises(DecodeError):
            structured(data={"\udfff": 1})

    def test_extensions(self) -> None:
        event = structured(text="a", number=-(2**31), truth=True, empty="")
        assert event.extensions == {"text": "a", "number": -(2**31), "truth": True, "empty": ""}
        assert binary(number="5", truth="true").extensions == {"number": "5", "truth": "true"}
        assert structured(comexampleextension1="v", **{"x" * 40: "y"}).attribute("comexampleextension1") == "v"

    @pytest.mark.parametrize("name", ["", "Ext", "a_b", "a-b", "é", "abc\n", "a b", "x" * 41, "ce-x"])
    def test_extension_names(self, name: str) -> None:
        with pytest.raises(DecodeError):
            structured(**{name: "x"})

    @pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 10**4000, 1.5, [], {}, ["a"]])
    def test_extension_values(self, value: object) -> None:
        with pytest.raises(DecodeError, match="ext"):
            structured(ext=value)

    @pytest.mark.parametrize("name", ["data", "datacontenttype", "data_base64"])
    def test_headers_that_binary_mode_has_not(self, name: str) -> None:
        with pytest.raises(DecodeError):
            binary(**{name: "x/y"})

    @pytest.mark.parametrize(
        "media_type", ["json", "/", "a/", "a b/c", "text/plain; charset=ü", "text/plain\n", "a/b\r\nx: y"]
    )
    def test_datacontenttype(self, media_type: str) -> None:
        with pytest.raises(DecodeError, match="datacontenttype"):
            binary(b"", media_type)
        with pytest.raises(DecodeError, match="datacontenttype"):
            structured(datacontenttype=media_type)


class TestHeaderValues:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("a%20b", "a b"),
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
            ("%e2%82%ac", "€"),
            ("%2541", "%41"),  # decoded only once
            ("100%", "100%"),
            ("a+b", "a+b"),
            ('"a b"', "a b"),
            (r'"a\"b\\c"', r'a"b\c'),
            ('"a%20b"', "a b"),
            ('"%22"', '"'),
            ("%22a%22", '"a"'),
            ('a"b', 'a"b'),
            ("café".encode().decode("latin-1"), "café"),  # raw UTF-8 as WSGI passes it
        ],
    )
    def test_decoded(self, value: str, text: str) -> None:
        assert binary(subject=value).subject == text

    @pytest.mark.parametrize(
        "value", ["%C0%A0", "%FF", "%ED%A0%80", "caf\xe9", "日本", '"', '"a', '"a"b', '"a\\"', "\ud800"]
    )
    def test_refused(self, value: str) -> None:
        with pytest.raises(DecodeError):
            binary(subject=value)


class TestData:
    @pytest.mark.parametrize(
        "media_type",
        [
            "application/json",
            "Application/JSON",
            "application/json ; charset=utf-8",
            "text/json",
            "a/vnd.b_c+json",
            None,
        ],
    )
    def test_json(self, media_type: str | None) -> None:
        assert binary(b'{"a": [1, true, null, "\xc3\xa9"]}', media_type).data == {"a": [1, True, None, "é"]}
        assert structured(datacontenttype=media_type, data=["a"]).data == ["a"]
        assert structured(datacontenttype=media_type, data="a").data == "a"
        assert structured(datacontenttype=media_type, data=0).data == 0

    @pytest.mark.parametrize(
        "body",
        [b"{", b"hello", b"{'a':1}", b"\xff", b'"\xed\xa0\x80"', b'\xef\xbb\xbf{}', b"NaN", b"[Infinity]", b"-Infinity",
         b"1e999", b'{"a":1,"a":2}', b'"\\ud800"', b"1" * 5000, b"[" * 101 + b"]" * 101, b'{"a":' * 100_000, b"{} {}",
         '"a"'.encode("utf-16")],
    )  # fmt: skip
    def test_not_json(self, body: bytes) -> None:
        with pytest.raises(DecodeError) as refused:
            binary(body)
        assert refused.value.status == 400
        with pytest.raises(DecodeError):
            decode(STRUCTURED, json.dumps(ORDINARY).encode()[:-1] + b',"data":' + body + b"}")
        with pytest.raises(DecodeError):
            structured(datacontenttype="application/json", data_base64=base64.b64encode(body).decode())

    def test_as_deep_as_may_be(self) -> None:
        assert binary(b"[" * 100 + b"]" * 100).data

    def test_other_types_are_bytes(self) -> None:
        assert binary(b"\xff\x00", "image/png").data == b"\xff\x00"
        assert structured(datacontenttype="text/plain", data="é").data == "é".encode()
        assert structured(datacontenttype="image/png", data_base64="/wA=").data == b"\xff\x00"

    def test_base64_is_bytes_unless_its_type_is_json(self) -> None:
        encoded = base64.b64encode(b'{"a":1}').decode()
        assert structured(data_base64=encoded).data == b'{"a":1}'
        assert structured(data_base64=encoded).datacontenttype is None
        assert structured(datacontenttype="application/json", data_base64=encoded).data == {"a": 1}

    @pytest.mark.parametrize("nothing", [{}, {"data": None}, {"data_base64": None}, {"data_base64": ""}])
    def test_none(self, nothing: dict[str, object]) -> None:
        assert structured(**nothing).data is None
        assert binary(b"").data is None
        assert binary(b"null").data is None

    def test_one_of_the_two(self) -> None:
        assert structured(data=None, data_base64="MQ==").data == b"1"
        with pytest.raises(DecodeError, match="data_base64"):
            structured(data=1, data_base64="MQ==")

    @pytest.mark.parametrize("encoded", ["a", "MQ=", "M Q==", "MQ==\n", "_-8=", "é", 5, ["MQ=="]])
    def test_strict_base64(self, encoded: object) -> None:
        with pytest.raises(DecodeError, match="data_base64"):
            structured(datacontenttype="image/png", data_base64=encoded)

    @pytest.mark.parametrize("data", [1, {"a": 1}, ["a"], True])
    def test_values_under_a_type_that_is_not_json(self, data: object) -> None:
        with pytest.raises(DecodeError):
            structured(datacontenttype="text/plain", data=data)

    @pytest.mark.parametrize("body", [b"[]", b'"a"', b"1", b"null", b"", b"{", b'{"id":"1","id":"1"}'])
    def test_envelope_that_is_no_object(self, body: bytes) -> None:
        with pytest.raises(DecodeError) as refused:
            decode(STRUCTURED, body)
        assert refused.value.status == 400

    def test_size_does_not_matter(self) -> None:
        large = "x" * (4 << 20)
        assert binary(json.dumps(large).encode()).data == large
        assert structured(data=large).data == large


class TestBatch:
    def test_in_order(self) -> None:
        batch = [{**ORDINARY, "id": str(n)} for n in range(5)]
        assert [event.id for event in decode(BATCH, json.dumps(batch).encode())] == list("01234")

    def test_empty(self) -> None:
        assert decode({"Content-Type": "application/CloudEvents-Batch+json; charset=utf-8"}, b"[]") == []

    @pytest.mark.parametrize("bad", [{}, [], None, "a", {**ORDINARY, "id": None}, {**ORDINARY, "specversion": "0.3"}])
    def test_errors_name_the_event(self, bad: object) -> None:
        with pytest.raises(DecodeError, match=r"^event 2: ") as refused:
            decode(BATCH, json.dumps([ORDINARY, ORDINARY, bad, {}]).encode())
        assert refused.value.status == 400

    @pytest.mark.parametrize("body", [b"{}", b"", b"null", json.dumps(ORDINARY).encode()])
    def test_is_an_array(self, body: bytes) -> None:
        with pytest.raises(DecodeError, match="array"):
            decode(BATCH, body or b"{}")


headers = st.dictionaries(
    st.sampled_from([*HEADERS, "ce-time", "ce-subject", "CE-ext", "Content-Type", "content-type"])
    | st.text(max_size=8),
    st.sampled_from([*ORDINARY.values(), *STRUCTURED.values(), *BATCH.values(), "application/json", '"', "%ff"])
    | st.text(max_size=8),
)
members = st.dictionaries(
    st.sampled_from([*ORDINARY, "time", "subject", "data", "data_base64", "datacontenttype", "dataschema", "ext"])
    | st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["1.0", "/"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
)


class TestAnything:
    """Any request gives either events or a DecodeError with a bounded text."""

    @staticmethod
    def survives(headers: dict[str, str], body: bytes) -> None:
        try:
            events = decode(headers, body)
        except DecodeError as error:
            assert error.status in (400, 415)  # noqa: PT017
            assert 0 < len(str(error)) < 500  # noqa: PT017
        else:
            assert all(isinstance(event, Event) for event in events)

    @given(headers, st.binary())
    @example({"content-type": "application/cloudevents+json"}, b'{"time":' + b"9" * 5000 + b"}")
    def test_bytes(self, headers: dict[str, str], body: bytes) -> None:
        self.survives(headers, body)
        self.survives({**HEADERS, **headers}, body)

    @given(members)
    def test_json(self, members: dict[str, object]) -> None:
        for envelope in (members, {**ORDINARY, **members}):
            self.survives(STRUCTURED, json.dumps(envelope).encode())
            self.survives(BATCH, json.dumps([ORDINARY, envelope]).encode())
