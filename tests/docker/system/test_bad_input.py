"""Bad requests to every route: a status on which the sender can act, no build started, no unexpected error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import requests

from tests.parts.installation import http
from tests.parts.system import System
from tools.demo import github

LIMIT = 2**20
LIMIT_OF_WEBHOOKS = 25 * 2**20
JSON = "application/json"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/x", "ce-type": "dev.kiln.build.requested.v1"}
URL = "https://github.com/octo/stats"
COMMIT = "1" * 40
GOOD = {"repository": URL, "commit": COMMIT}
EVENT = {"specversion": "1.0", "id": "1", "source": "/x", "type": "dev.kiln.build.requested.v1", "data": GOOD}
PUSH = {
    "ref": "refs/heads/main",
    "before": "0" * 40,
    "after": COMMIT,
    "head_commit": {"id": COMMIT},
    "repository": {"url": URL, "clone_url": f"{URL}.git", "default_branch": "main"},
}
DEEP = b"[" * 100_000 + b"]" * 100_000
DEEP_OBJECT = b'{"a":' * 50_000 + b"1" + b"}" * 50_000


@dataclass(frozen=True)
class Case:
    """A request and the expected answer."""

    route: str
    says: str
    body: bytes
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    signed: bool = False

    def __str__(self) -> str:
        return f"{self.route} {self.says}"


def bodies(good: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
    """Bodies that are not such a JSON object, of every kind."""
    text = json.dumps(good).encode()
    yield "empty", b""
    yield "cut off", text[:-1]
    yield "two values", text + b"{}"
    yield "an array", b"[" + text + b"]"
    yield "a number", b"1"
    yield "null", b"null"
    yield "not a number", b'{"repository": NaN}'
    yield "deep arrays", DEEP
    yield "deep objects", DEEP_OBJECT
    yield "invalid UTF-8", text.replace(b"github", b"git\xff\xfehub")
    yield "a lone surrogate", text.replace(b"github", b"\\ud800")
    yield "a control character", text.replace(b"github", b"git\x01hub")
    yield "an escaped control character", text.replace(b"octo", b"oc\\u0000to")
    yield "UTF-16", text.decode().encode("utf-16")
    for value in (None, 1, True, [URL], {"url": URL}, ""):
        yield f"{next(iter(good))} = {value!r}", json.dumps({**good, next(iter(good)): value}).encode()


def cases() -> Iterator[Case]:
    for says, body in bodies(GOOD):
        yield Case("api/v1/builds", says, body, 400, {"Content-Type": JSON})
    for says, body in bodies({**EVENT, "type": EVENT["type"]}):
        yield Case("events", f"structured, {says}", body, 400, {"Content-Type": STRUCTURED})
    for says, body in bodies(GOOD):
        yield Case("", f"binary, {says}", body, 400, {**BINARY, "Content-Type": JSON})
    for says, body in bodies(PUSH):
        yield Case("webhooks/github", says, body, 400, {"Content-Type": JSON}, signed=True)
    batch = json.dumps([EVENT, {**EVENT, "id": ""}]).encode()
    yield Case("events", "a batch with one that is none", batch, 400, {"Content-Type": BATCH})
    yield Case("events", "a batch that is none", b"{}", 400, {"Content-Type": BATCH})
    yield Case("events", "no CloudEvent", json.dumps(GOOD).encode(), 415, {"Content-Type": JSON})
    yield Case("events", "a form", b"a=b", 415, {"Content-Type": "application/x-www-form-urlencoded"})
    yield Case("events", "of another version", json.dumps({**EVENT, "specversion": "0.3"}).encode(), 400,
               {"Content-Type": STRUCTURED})  # fmt: skip
    yield Case("api/v1/builds", "no JSON by its own account", json.dumps(GOOD).encode(), 415, {})
    yield Case("api/v1/builds", "an unknown field", json.dumps({**GOOD, "x": 1}).encode(), 400, {"Content-Type": JSON})
    push = json.dumps(PUSH).encode()
    signature = "X-Hub-Signature-256"
    sent = {"Content-Type": JSON, "X-GitHub-Event": "push", "X-GitHub-Delivery": "d"}
    for says, value in (("none", None), ("of another", f"sha256={'0' * 64}"), ("empty", ""), ("junk", "sha1=é\x80")):
        headers = sent if value is None else {**sent, signature: value}
        yield Case("webhooks/github", f"signature: {says}", push, 401, headers)
    yield Case("webhooks/gitlab", "a host without a secret", push, 403, sent)
    for route in ("events", "", "api/v1/builds", "webhooks/github"):
        kind = {"events": STRUCTURED, "": STRUCTURED}.get(route, JSON)
        most = LIMIT_OF_WEBHOOKS if route == "webhooks/github" else LIMIT
        yield Case(route, "too large", b" " * (most + 1), 413, {"Content-Type": kind}, signed=True)
    for route in ("login", "logout", "builds/build-x-0/cancel"):
        yield Case(route, "a form without our cookie", b"form=x&token=y", 403,
                   {"Content-Type": "application/x-www-form-urlencoded"})  # fmt: skip


@pytest.fixture(scope="module")
def before(queue: System) -> list[str]:
    return [build["name"] for build in queue.listed()]


def post(system: System, case: Case, body: object) -> requests.Response:
    headers = dict(case.headers)
    if case.signed:
        headers = github.delivery(system.webhook_secret.encode(), "push", case.body) | headers
    headers = system.authorization | headers
    encoded = {name: value.encode("utf-8") for name, value in headers.items()}
    return http("POST", f"{system.url}{case.route}", data=body, headers=encoded)


def check(system: System, answer: requests.Response, case: Case, before: list[str]) -> None:
    assert answer.status_code == case.status, answer.text
    kind = answer.headers["Content-Type"].split(";")[0]
    assert kind == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == case.status
    assert re.search(r"[a-z].*[.)]$", problem["detail"]), problem
    assert "Traceback" not in answer.text
    assert system.webhook_secret not in answer.text
    assert [build["name"] for build in system.listed()] == before


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_refused(queue: System, before: list[str], case: Case) -> None:
    check(queue, post(queue, case, case.body), case, before)


@pytest.mark.parametrize("case", [case for case in cases() if case.says == "too large"], ids=str)
def test_a_chunked_body_is_not_cut_but_refused(queue: System, before: list[str], case: Case) -> None:
    pieces = (case.body[at : at + 65536] for at in range(0, len(case.body), 65536))
    check(queue, post(queue, case, pieces), case, before)


def test_the_log_tells_no_surprise(queue: System) -> None:
    """After all of the above. One line of JSON for each request, no traceback, no secret."""
    (web,) = queue.web
    text = web.log.read_text()
    assert "Traceback" not in text
    assert "exception" not in text
    assert queue.webhook_secret not in text
    lines = [json.loads(line) for line in text.splitlines() if not line.startswith("Kiln's pages: ")]
    assert not [line for line in lines if line["level"] in ("error", "critical")]
