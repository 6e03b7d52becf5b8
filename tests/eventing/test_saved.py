"""Saved requests: every form of file gives the same request, and a malformed file never causes a traceback."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from eventing.errors import SavedError
from eventing.hosts import DIALECTS, Ignored, push_of, word_of
from eventing.http import decode
from eventing.saved import Saved, parse
from tests.parts.published_data import published_data

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PUSH: dict[str, Any] = {
    "ref": "refs/heads/main",
    "before": "f" * 40,
    "after": COMMIT,
    "head_commit": {"id": COMMIT, "message": "größer, 漢字:\n\n> not a mark\n* nor this\nPayload: {}"},
    "repository": {
        "url": "https://github.com/our-org/course",
        "clone_url": "https://github.com/our-org/course.git",
        "default_branch": "main",
    },
}
COMPACT = json.dumps(PUSH, ensure_ascii=False, separators=(",", ":"))
PRETTY = json.dumps(PUSH, ensure_ascii=False, indent=2)
HEADERS = {
    "Accept": "*/*",
    "Content-Type": "application/json",
    "User-Agent": "GitHub-Hookshot/044aadd",
    "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
    "X-GitHub-Event": "push",
    "X-GitHub-Hook-ID": "292430182",
    "X-Hub-Signature-256": "sha256=6dcb09b5b57875f334f61aebed695e2e4193db5e",
}
LOWER = {name.lower(): value for name, value in HEADERS.items()}
LINES = "\n".join(f"{name}: {value}" for name, value in HEADERS.items())
ANSWER = '{"builds": [], "reason": "No trigger asks for a build of this."}'

MESSAGE = f"POST /webhooks/github HTTP/1.1\nHost: kiln.example\n{LINES}\n\n{COMPACT}"
PAGE = f"""Headers

Request URL: https://kiln.example/webhooks/github
Request method: POST
{LINES}
Payload

{PRETTY}
"""
GITLAB_PAGE = f"""Request URL:
POST https://kiln.example/webhooks/github
202
Trigger:
Push Hook
Elapsed time:
0.21 ms
Request headers:
{LINES}

Request body:
{PRETTY}

Response headers:
Server: gunicorn
Content-Type: application/json

Response body:
{ANSWER}
"""
GITLAB_PAGE_ANSWER_FIRST = f"""Response
Response headers:
Server: gunicorn
Content-Type: application/json
Response body:
{ANSWER}

Request
{LINES}
Request payload:
{PRETTY}
"""
CURL = "\n".join(
    [
        "* Host 127.0.0.1:8000 was resolved.",
        "*   Trying 127.0.0.1:8000...",
        "  % Total    % Received % Xferd  Average Speed   Time    Time     Time  Current",
        "  0     0    0     0    0     0      0      0 --:--:-- --:--:-- --:--:--     0",
        "> POST /webhooks/github HTTP/1.1\r",
        "> Host: 127.0.0.1:8000\r",
        *(f"> {name}: {value}\r" for name, value in HEADERS.items()),
        "> Content-Length: 4711\r",
        "> \r",
        "} [4711 bytes data]",
        COMPACT,
        "* upload completely sent off: 4711 bytes",
        "< HTTP/1.1 202 ACCEPTED\r",
        "< Content-Type: application/json\r",
        "< \r",
        "{ [64 bytes data]",
        ANSWER,
        "* Connection #0 to host 127.0.0.1 left intact",
    ]
)
INSOMNIA = "\n".join(
    [
        "* Preparing request to https://kiln.example/webhooks/github",
        "> POST /webhooks/github HTTP/1.1",
        "> Host: kiln.example",
        *(f"> {name}: {value}" for name, value in HEADERS.items()),
        "",
        *(f"| {line}" for line in PRETTY.splitlines()),
        "",
        "< HTTP/1.1 202 ACCEPTED",
        "< Server: gunicorn",
        "",
    ]
)
HTTPIE = (
    f"{MESSAGE.replace(COMPACT, PRETTY)}\n\n\nHTTP/1.1 202 ACCEPTED\nContent-Type: application/json\n\n{ANSWER}\n\n"
)
REST_CLIENT = (
    f"### redeliver\n# @name push\nPOST {{{{kiln}}}}/webhooks/github\n{LINES}\n\n{PRETTY}\n\n### next\nGET https://x/\n"
)
GITHUB_RECORD = {
    "id": 12345678,
    "guid": HEADERS["X-GitHub-Delivery"],
    "delivered_at": "2026-11-29T10:00:00Z",
    "redelivery": False,
    "duration": 0.27,
    "status": "OK",
    "status_code": 200,
    "event": "push",
    "action": None,
    "installation_id": None,
    "repository_id": 123,
    "url": "https://kiln.example/webhooks/github",
    "throttled_at": None,
    "request": {"headers": HEADERS, "payload": PUSH},
    "response": {"headers": {"Content-Type": "application/json"}, "payload": ANSWER},
}
GITLAB_RECORD = {
    "id": 1,
    "url": "https://kiln.example/webhooks/github",
    "trigger": "push_hooks",
    "request_headers": HEADERS,
    "request_data": PUSH,
    "response_headers": {"Server": "gunicorn"},
    "response_body": ANSWER,
    "execution_duration": 1.09,
    "response_status": "202",
}
SMEE = {
    **LOWER,
    "host": "smee.io",
    "x-forwarded-for": "140.82.115.1",
    "body": PUSH,
    "query": {},
    "timestamp": 1732874400000,
}
NGROK = {
    "uri": "/api/requests/http/airt_1",
    "request": {
        "method": "POST",
        "headers": {name: [value] for name, value in HEADERS.items()},
        "raw": base64.b64encode(MESSAGE.replace("\n", "\r\n", 9).encode()).decode(),
    },
    "response": {"status": "202 ACCEPTED", "raw": ""},
}
FORWARDED = {
    "Header": {name: [value] for name, value in HEADERS.items()},
    "Body": base64.b64encode(COMPACT.encode()).decode(),
}
GATEWAY = {
    "httpMethod": "POST",
    "headers": HEADERS,
    "body": base64.b64encode(COMPACT.encode()).decode(),
    "isBase64Encoded": True,
}
STREAM = f"id: 0\nevent: ready\ndata: {{}}\n\nid: 1\nevent: ping\ndata: {{}}\n\nid: 2\ndata: {json.dumps(SMEE)}\n\n"
RECORDS = {
    "GitHub's API": GITHUB_RECORD,
    "GitLab's API": GITLAB_RECORD,
    "a list of one": [GITLAB_RECORD],
    "smee": SMEE,
    "ngrok": NGROK,
    "gh's forwarder": FORWARDED,
    "an API gateway": GATEWAY,
    "webhook.site": {"uuid": "1", "headers": {name: [value] for name, value in LOWER.items()}, "content": COMPACT},
    "headers and body": {"headers": HEADERS, "body": COMPACT},
}
API = json.dumps(GITHUB_RECORD)
TEXTS = {
    "a message": MESSAGE,
    "headers and body": f"{LINES}\n\n{PRETTY}\n",
    "a delivery page": PAGE,
    "the same, without what is no header": f"{LINES}\n\nPayload\n{PRETTY}\n",
    "a page with a table": PAGE.replace(LINES, LINES.replace(": ", "\t")),
    "GitLab's page": GITLAB_PAGE,
    "GitLab's page, the answer first": GITLAB_PAGE_ANSWER_FIRST,
    "curl -v": CURL,
    "Insomnia's timeline": INSOMNIA,
    "HTTPie": HTTPIE,
    "a REST client's file": REST_CLIENT,
    "wget -d": f"---request begin---\n{MESSAGE.partition(COMPACT)[0]}---request end---\n{COMPACT}\n",
    "smee's stream": STREAM,
    "gh api --include": f"HTTP/2.0 200 OK\nContent-Type: application/json; charset=utf-8\n\n{API}",
    "curl -v of GitHub's API": f"> GET /deliveries/1 HTTP/2\n> Accept: */*\n>\n< HTTP/2 200\n<\n{API}",
    "wget -S of GitHub's API": f"HTTP request sent, awaiting response...\n  HTTP/1.1 200 OK\n  Server: x\n\n{API}",
    "an issue's block": f"```\n{LINES}\n\n```\n```json\n{PRETTY}\n```\n",
    **{name: json.dumps(record, ensure_ascii=False, indent=1) for name, record in RECORDS.items()},
}
ALONE = {
    "compact": COMPACT,
    "pretty": PRETTY,
    "gh webhook forward": f"Forwarding events...\n10:00:00 [LOG] received the event: push \n{COMPACT}\n",
    "under its heading": f"Payload\n\n{PRETTY}\n",
    "a form": urlencode({"payload": COMPACT}),
}

Encode = Callable[[str], bytes]
ENCODINGS: Mapping[str, Encode] = {
    "UTF-8": str.encode,
    "with BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "CRLF": lambda text: text.replace("\r\n", "\n").replace("\n", "\r\n").encode(),
    "PowerShell": lambda text: text.replace("\r\n", "\n").replace("\n", "\r\n").encode("utf-16"),
    "UTF-16": lambda text: f"\ufeff{text}".encode("utf-16-be"),
    "blank lines first": lambda text: b"\n \n" + text.encode(),
    "blank lines last": lambda text: text.encode() + b"\n\n",
}


def is_the_push(found: Saved, word: str = "github") -> None:
    assert found.word == word
    (event,) = DIALECTS[word].parse(found.sent, found.body)  # type: ignore[misc]
    assert event.type == "com.github.push"
    assert event.data == PUSH


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_whatever_shows_a_delivery_is_the_delivery(text: str, encode: Encode) -> None:
    found = parse(encode(text))
    is_the_push(found)
    assert found.headers["x-github-delivery"] == HEADERS["X-GitHub-Delivery"]
    assert not {"host", "content-length", "x-forwarded-for", "cookie"} & found.sent.keys()


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("text", ALONE.values(), ids=ALONE)
def test_a_payload_alone_is_a_delivery_of_the_host_that_is_named(text: str, encode: Encode) -> None:
    found = parse(encode(text), "github")
    is_the_push(found)
    assert found.headers == parse(encode(text), "github").headers, "sent twice it asks once"


@pytest.mark.parametrize("word", DIALECTS)
@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/tags/v1"])
def test_every_hosts_payload_alone_is_its_push_and_can_be_signed(word: str, ref: str) -> None:
    dialect = DIALECTS[word]
    clone = "https://git.example/our-org/course.git"
    pushed = dialect.pushed(id="1", repository=clone, ref=ref, commit=COMMIT, default_branch="main")
    found = parse(json.dumps(pushed.data, indent=2).encode(), word)
    assert (found.word, word_of(found.headers)) == (word, word)
    made = dialect.parse(found.sent, found.body)
    assert isinstance(made, list)
    (push,) = filter(None, map(push_of, made))
    assert (push.repository, push.ref, push.commit) == (clone, ref, COMMIT)
    now = datetime.now(UTC)
    dialect.verify(dialect.signed(found.sent, found.body, b"a canary", now), found.body, [b"a canary"], now)


@pytest.mark.parametrize("text", [COMPACT, PRETTY, "{}", '{"a": 1}', f"Payload\n{PRETTY}", "payload=%7B%7D"])
def test_a_payload_of_nobody_knows_whom_is_refused_with_what_to_say(text: str) -> None:
    with pytest.raises(SavedError, match=r"--host .*github"):
        parse(text.encode())


@pytest.mark.parametrize("host", ["GitHub", "github.com", "", "x"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(SavedError, match="--host: must be one of"):
        parse(COMPACT.encode(), host)


@pytest.mark.parametrize(
    "body", [b'{"a":\r\n\r\n"b"}\r\n', COMPACT.encode(), b"payload=%7B%7D", b"\x00\xff\x1b[m", b""]
)
@pytest.mark.parametrize("line", ["\r\n", "\n"])
def test_a_message_keeps_its_body_byte_for_byte(body: bytes, line: str) -> None:
    for length in (f"Content-Length: {len(body)}{line}", ""):
        head = f"POST /x HTTP/1.1{line}Content-Type: application/x{line}{length}ce-id: 1{line}{line}"
        assert parse(head.encode() + body).body == body


def test_what_an_editor_added_after_the_body_is_left_out() -> None:
    head = f"X-GitHub-Event: push\r\nContent-Length: {len(COMPACT.encode())}\r\n\r\n".encode()
    assert parse(head + COMPACT.encode() + b"\r\n\n").body == COMPACT.encode()


def test_a_chunked_body_is_put_together() -> None:
    head = b"POST / HTTP/1.1\r\nX-GitHub-Event: push\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert parse(head + b'5\r\n{"a":\r\n3;x=y\r\n 1}\r\n0\r\n\r\n').body == b'{"a": 1}'
    with pytest.raises(SavedError, match="chunked"):
        parse(head + b"5\r\n{")


def test_headers_of_one_name_are_joined_and_folded_lines_unfolded() -> None:
    found = parse(b"POST / HTTP/1.1\r\nce-id: 1\r\nAccept: a\r\nX-A: b\r\n  c\r\naccept: d\r\n\r\n")
    assert (found.headers["accept"], found.headers["x-a"]) == ("a, d", "b c")


def test_a_route_names_a_host_whose_header_is_missing() -> None:
    found = parse(f"POST https://kiln.example/kiln/webhooks/github?x=1 HTTP/1.1\nHost: x\n\n{COMPACT}".encode())
    is_the_push(found)


def test_what_a_page_shows_of_a_form_is_its_payload() -> None:
    form = PAGE.replace("application/json", "application/x-www-form-urlencoded")
    is_the_push(parse(form.encode()))
    record = {"headers": {**HEADERS, "Content-Type": "application/x-www-form-urlencoded"}, "body": {"payload": COMPACT}}
    is_the_push(parse(json.dumps(record).encode()))


def test_colours_are_no_part_of_it() -> None:
    coloured = MESSAGE.replace("POST", "\x1b[32mPOST\x1b[39;49;00m").replace('"ref"', '\x1b[94m"ref"\x1b[0m')
    is_the_push(parse(coloured.encode()))


@pytest.mark.parametrize(
    "deliveries",
    [
        [GITLAB_RECORD, GITLAB_RECORD],
        [{"id": 7, "guid": "x", "delivered_at": "2026-11-29T10:00:00Z", "event": "push"}],
        {"id": 7, "guid": "x", "delivered_at": "x", "event": "push", "request": {"headers": None, "payload": None}},
    ],
)
def test_what_does_not_hold_one_request_says_what_to_keep(deliveries: object) -> None:
    with pytest.raises(SavedError, match=r"keep one of them|deliveries/7"):
        parse(json.dumps(deliveries).encode())


# CloudEvents ---------------------------------------------------------------------------------------------------------

EVENT = {"specversion": "1.0", "id": "e-1", "source": "/test", "type": "test", "data": {"a": "é"}}
BINARY = {"ce-specversion": "1.0", "ce-id": "e-1", "ce-source": "/test", "ce-type": "test"}
DISPLAY = """☁️  cloudevents.Event
Validation: valid
Context Attributes,
  specversion: 1.0
  type: test
  source: /test
  id: e-1
  datacontenttype: application/json
Data,
  {
    "a": "é"
  }
"""
EVENTS = {
    "structured": json.dumps(EVENT),
    "structured in a message": f"POST / HTTP/1.1\nContent-Type: application/cloudevents+json\n\n{json.dumps(EVENT)}",
    "binary": "\n".join(
        [*(f"{k}: {v}" for k, v in BINARY.items()), "content-type: application/json", "", '{"a": "é"}']
    ),
    "Knative's display": DISPLAY,
    "curl -v": f"> POST / HTTP/2\n> Content-Type: application/cloudevents+json\n>\n{json.dumps(EVENT)}\n< HTTP/2 202\n",
    "a record": json.dumps({"headers": {**BINARY, "content-type": "application/json"}, "body": {"a": "é"}}),
    "in a log": f"12:00:01 sent\n{json.dumps(EVENT, indent=2)}\n12:00:02 done\n",
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("text", EVENTS.values(), ids=EVENTS)
def test_whatever_shows_a_cloudevent_is_the_event(text: str, encode: Encode) -> None:
    found = parse(encode(text))
    (event,) = decode(found.sent, found.body)
    assert (found.word, event.id, event.source, event.type, event.data) == (None, "e-1", "/test", "test", {"a": "é"})


@pytest.mark.parametrize("events", [[], [EVENT], [EVENT, {**EVENT, "id": "e-2"}]])
def test_an_array_of_events_is_a_batch(events: list[object]) -> None:
    found = parse(json.dumps(events).encode())
    assert [event.id for event in decode(found.sent, found.body)] == ["e-1", "e-2"][: len(events)]


# Errors are sentences ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"a b\n\n",
        b": x\n\n",
        b"POST / HTTP/1.1\nx\n\n{}",
        b"\xff",
        b"\xff\xfe\x00",
        CURL.replace(COMPACT, "").encode(),
        b"\x00",
        b"{",
        b"[1]",
        b"[1, 2]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"Payload\n" + b"[" * 100_000,
        b'{"specversion": "1.0"' + b"}" * 2,
        f"{LINES}\nPayload\n{PRETTY[:-9]}".encode(),
        b'{"request": {"headers": {"x-github-event": "push"}, "payload": null}}',
        b'{"headers": {"x-github-event": "push\\r\\nx: y"}, "body": {}}',
        b'{"headers": {"x github event": "push", "x-github-event": "push"}, "body": {}}',
        b'{"Header": {"X-GitHub-Event": ["push"]}, "Body": "%"}',
        b'{"Header": {"X-GitHub-Event": ["push"]}, "Body": "\\u00e9"}',
        b'{"a": "\\ud800"}',
        b"X-A: " + b"b" * 70_000 + b"\n\n",
        b"".join(b"X-%d: b\n" % number for number in range(200)) + b"\n",
    ],
)
def test_what_holds_no_request_is_refused_in_a_sentence(content: bytes) -> None:
    with pytest.raises(SavedError, match=r"\w"):
        parse(content)


SHAPES = [text.encode() for text in (*TEXTS.values(), *ALONE.values(), *EVENTS.values())]


@given(
    content=st.binary(max_size=200) | st.sampled_from(SHAPES),
    cuts=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 40), st.binary(max_size=8)), max_size=4),
    host=st.sampled_from([None, *DIALECTS]),
)
def test_nothing_but_a_sentence_comes_of_any_file(
    content: bytes, cuts: list[tuple[int, int, bytes]], host: str | None
) -> None:
    for place, length, new in cuts:
        content = content[:place] + new + content[place + length :]
    try:
        found = parse(content, host)
    except SavedError:
        return
    requests.Request("POST", "http://127.0.0.1/", headers=found.sent, data=found.body).prepare()
    assert all(f"{name}: {value}".encode("latin-1") for name, value in found.sent.items())


KEPT = ["headers", "Header", "request_headers", "body", "Body", "payload", "request_data", "content", "raw", "request"]
SAID = ["x-github-event", "content-type", "ce-id", "specversion", "id", "guid", "event", "delivered_at", "ref", "after"]
NAMES = st.sampled_from([*KEPT, *SAID, "before", "zen", "isBase64Encoded"])
MEMBERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(["push", COMPACT, "Zm9v", "1.0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner),
    max_leaves=9,
)


@given(record=MEMBERS, host=st.sampled_from([None, *DIALECTS]))
def test_nothing_but_a_sentence_comes_of_any_record(record: object, host: str | None) -> None:
    try:
        found = parse(json.dumps(record).encode(), host)
    except SavedError:
        return
    requests.Request("POST", "http://127.0.0.1/", headers=found.sent, data=found.body).prepare()


# Deliveries from Gitea -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["push", "push-tag", "push-branch-new", "test-delivery", "push-form", "release-published"]
)
def test_what_gitea_sent_goes_to_its_route(name: str) -> None:
    kept = json.loads(published_data(f"gitea/{name}.json").read_bytes())
    head = "".join(f"{header}: {value}\r\n" for header, value in kept["headers"].items())
    page = head.replace("\r\n", "\n") + f"Payload\n{kept['body']}"
    for content in (json.dumps(kept), f"POST / HTTP/1.1\r\n{head}\r\n{kept['body']}", page):
        found = parse(content.encode())
        assert found.word == "gitea"
        DIALECTS["gitea"].verify(found.sent, found.body, [b"recorded-not-secret"], datetime.now(UTC))
        assert isinstance(DIALECTS["gitea"].parse(found.sent, found.body), list | Ignored)
    if name != "push-form":
        alone = parse(kept["body"].encode(), "gitea")
        assert type(DIALECTS["gitea"].parse(alone.sent, alone.body)) is type(
            DIALECTS["gitea"].parse(found.sent, found.body)
        )
