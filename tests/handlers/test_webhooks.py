"""Webhooks: only a valid signature admits a delivery.

A verified delivery that starts no build gets a 200 with the reason.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from builds.build import Kind
from builds.repository import HostKind
from builds.triggers import BuildTemplate, PushRule, TriggerRule
from handlers import bodies
from tests.handlers.harness import COMMIT, REPOSITORY, SECRET, Harness, push, signed
from tests.parts.githost import GitHost, git


def test_a_signed_push_is_a_build(harness: Harness) -> None:
    answer = harness.client.post("/webhooks/github", **signed(push()))
    (build,) = harness.builds()
    assert answer.status_code == 202
    assert answer.json == {"builds": [{"name": build.name, "location": f"/api/v1/builds/{build.name}"}]}
    (cause,) = build.causes
    assert (cause.id, cause.by, cause.kind, cause.type) == ("d-1", "webhook:github", Kind.PUSH, "com.github.push")
    assert build.request.commit == COMMIT


def test_many_copies_at_once_are_one_build(harness: Harness) -> None:
    def deliver(number: int) -> int:
        return (
            harness.app.test_client()
            .post("/webhooks/github", **signed(push(), delivery=f"d-{number % 20}"))
            .status_code
        )

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(deliver, range(60))) == {202}
    (build,) = harness.builds()
    assert len(build.causes) == 20


def test_every_secret_of_the_folder_is_valid(harness: Harness) -> None:
    assert harness.client.post("/webhooks/github", **signed(push(), secret=b"an old one")).status_code == 202


@pytest.mark.parametrize("signature", [None, "", "sha256=", "sha256=" + "0" * 64, "sha1=" + "0" * 40, "sha256=é"])
def test_a_wrong_or_missing_signature_is_401(harness: Harness, signature: str | None) -> None:
    delivery = signed(push())
    del delivery["headers"]["X-Hub-Signature-256"]
    if signature is not None:
        delivery["headers"]["X-Hub-Signature-256"] = signature
    answer = harness.client.post("/webhooks/github", **delivery)
    assert answer.status_code in (400, 401) if signature == "sha256=é" else answer.status_code == 401
    assert answer.mimetype == "application/problem+json"
    assert SECRET.decode() not in answer.text
    assert not harness.builds()


@pytest.mark.parametrize("word", ["gitlab", "nonsense", "forgejo"])
def test_a_host_without_a_secret_is_403(harness: Harness, word: str) -> None:
    answer = harness.client.post(f"/webhooks/{word}", **signed(push()))
    assert answer.status_code == 403
    assert "secret" in answer.json["detail"]


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        ({"zen": "x", "hook_id": 1}, "ping"),
        (push(deleted=True, after="0" * 40, head_commit=None), "push"),
        (push(ref="refs/heads/side"), "push"),
    ],
)
def test_nothing_to_do_is_200_and_says_why(harness: Harness, payload: dict[str, object], event: str) -> None:
    answer = harness.client.post("/webhooks/github", **signed(payload, event=event))
    assert answer.status_code == 200
    assert answer.json["builds"] == []
    assert answer.json["reason"]
    assert not harness.builds()


@pytest.mark.parametrize(
    ("message", "ref", "status"),
    [
        ("Correct a typo [skip ci]", "refs/heads/main", 200),
        ("[CI Skip] bump", "refs/heads/main", 200),
        ("bump\n\n[no ci]", "refs/heads/main", 200),
        ("skip ci", "refs/heads/main", 202),
        ("[skip actions]", "refs/heads/main", 202),
        ("1.2.3 [skip ci]", "refs/tags/v1.2.3", 202),
    ],
)
def test_a_commit_that_asks_for_no_build(
    harnesses: Callable[..., Harness], message: str, ref: str, status: int
) -> None:
    harness = harnesses(triggers=[TriggerRule(name="all")])
    pushed = push(ref=ref, head_commit={"id": COMMIT, "message": message})
    answer = harness.client.post("/webhooks/github", **signed(pushed))
    assert answer.status_code == status
    assert ("[skip ci]" in answer.json.get("reason", "")) is (status == 200)
    assert len(harness.builds()) == (status == 202)


def test_what_policy_refuses_is_200_so_that_the_host_keeps_the_hook(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(allowed=["https://github.com/other/*"])
    answer = harness.client.post("/webhooks/github", **signed(push()))
    assert answer.status_code == 200
    assert REPOSITORY in answer.json["reason"]
    assert not harness.builds()


def test_what_one_trigger_may_not_have_is_no_reason_to_leave_out_the_others(harnesses: Callable[..., Harness]) -> None:
    elsewhere = TriggerRule(name="elsewhere", build=BuildTemplate(image="elsewhere.example/x"))
    harness = harnesses(triggers=[elsewhere, TriggerRule(name="all")])
    answer = harness.client.post("/webhooks/github", **signed(push()))
    assert answer.status_code == 202
    (build,) = harness.builds()
    assert [cause.trigger for cause in build.causes] == ["all"]
    assert [named["name"] for named in answer.json["builds"]] == [build.name]


@pytest.mark.parametrize("where", ["https://gitlab.com/octo/stats", "https://git.example.edu/octo/stats"])
def test_one_host_s_secret_names_no_other_host_s_repository(harnesses: Callable[..., Harness], where: str) -> None:
    pushed = push()
    for key in ("html_url", "url", "clone_url"):
        pushed["repository"] = {**pushed["repository"], key: where}  # type: ignore[dict-item]
    harness = harnesses(hosts={"git.example.edu": HostKind.GITLAB})
    answer = harness.client.post("/webhooks/github", **signed(pushed))
    assert answer.status_code == 403
    assert not harness.builds()
    if "example" in where:
        harness = harnesses(hosts={"git.example.edu": HostKind.GITHUB})
        assert harness.client.post("/webhooks/github", **signed(pushed)).status_code == 202


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"[" * 50_000, b"\xff", b'{"ref": 5}'])
def test_a_signed_body_that_is_no_push_is_400(harness: Harness, data: bytes) -> None:
    answer = harness.client.post("/webhooks/github", **signed(data))
    assert answer.status_code == 400, answer.text
    assert answer.mimetype == "application/problem+json"


@pytest.mark.parametrize(("size", "status"), [(1_300_000, 202), (25 << 20, 202), ((25 << 20) + 1, 413)])
def test_as_much_as_github_sends_is_taken(harness: Harness, size: int, status: int) -> None:
    body = json.dumps(push()).encode()
    answer = harness.client.post("/webhooks/github", **signed(body.ljust(size)))
    assert answer.status_code == status, answer.text


def test_few_large_bodies_are_worked_on_at_once(
    harnesses: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "PLACE_TIMEOUT", 0.05)
    harness = harnesses(large=threading.Semaphore(0))
    body = json.dumps(push()).encode()
    answer = harness.client.post("/webhooks/github", **signed(body.ljust(1_300_000)))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert harness.client.post("/webhooks/github", **signed(body)).status_code == 202
    harness.services.large.release()
    for _ in range(2):
        assert harness.client.post("/webhooks/github", **signed(body.ljust(1_300_000))).status_code == 202


PATHS = TriggerRule(name="paths", push=PushRule(branches=("main",), paths=("binder/**",)))


@pytest.mark.parametrize("changed", ["binder/environment.yml", "elsewhere/environment.yml"])
@pytest.mark.parametrize(
    ("commits", "files", "decided"),
    [
        (1, 1, True), (19, 1, True), (20, 1, True), (200, 3, True), (2047, 1, True), (2048, 1, False),
        (1, 2999, True), (1, 3000, False), (2, 3001, False), (1, 0, False), (20, 0, False),
    ],
)  # fmt: skip
def test_paths_decide_where_github_lists_all_of_them(
    harnesses: Callable[..., Harness], commits: int, files: int, decided: bool, changed: str
) -> None:
    harness = harnesses(triggers=[PATHS])
    listed = [f"data/{number}.csv" for number in range(files - 1)]
    others = {"id": COMMIT, "added": [], "modified": listed or ["README.md"] if files else [], "removed": []}
    last = {"id": COMMIT, "added": listed[:1], "modified": [changed] if files else [], "removed": listed[1:]}
    payload = push(commits=[*([others] * (commits - 1)), last], head_commit=last)
    answer = harness.client.post("/webhooks/github", **signed(payload))
    assert answer.status_code == (202 if changed.startswith("binder/") or not decided else 200)
    assert len(harness.builds()) == (answer.status_code == 202)


@pytest.mark.parametrize("event", ["github_app_authorization", "installation", "security_advisory", "marketplace"])
def test_an_event_that_is_about_no_repository_is_200_and_says_so(harnesses: Callable[..., Harness], event: str) -> None:
    harness = harnesses(triggers=[TriggerRule(name="all")])
    sender = {"url": "https://api.github.com/users/ada"}
    for payload in ({"action": "published"}, {"action": "created", "repository": None}, {"sender": sender}):
        answer = harness.client.post("/webhooks/github", **signed(payload, event=event))
        assert (answer.status_code, answer.json["builds"]) == (200, [])
        assert "repository" in answer.json["reason"]


@pytest.mark.parametrize("annotated", [False, True])
def test_a_tag_without_its_commit_is_looked_up(
    harnesses: Callable[..., Harness], tmp_path: Path, annotated: bool
) -> None:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/page").touch()
    with GitHost(tmp_path / "host") as host:
        head, bare = host.create("octo/stats", tmp_path / "content"), host.bare("octo/stats")
        git("tag", *(("-m", "Annotated") if annotated else ()), "v1", head, cwd=bare)
        tag = git("rev-parse", "refs/tags/v1", cwd=bare)
        harness = harnesses(
            triggers=[TriggerRule(name="all")],
            allowed=[f"{host.base}/**"],
            hosts={f"127.0.0.1:{host.port}": HostKind.GITHUB},
        )
        there = {**push()["repository"], "clone_url": host.url("octo/stats")}  # type: ignore[dict-item]
        pushed = push(ref="refs/tags/v1", after=tag, head_commit=None, commits=[], repository=there)
        assert harness.client.post("/webhooks/github", **signed(pushed)).status_code == 202
        (build,) = harness.builds()
        assert (build.request.commit, build.causes[0].ref) == (head, "refs/tags/v1")
        gone = harness.client.post("/webhooks/github", **signed({**pushed, "ref": "refs/tags/gone"}, delivery="d-2"))
        assert (gone.status_code, gone.json["builds"]) == (200, [])
        assert "refs/tags/gone" in gone.json["reason"]


def test_neither_token_nor_address_matters(harnesses: Callable[..., Harness]) -> None:
    delivery = signed(push())
    delivery["headers"] |= {"X-Forwarded-For": "192.0.2.1", "Host": "kiln.example"}
    assert harnesses(auth=["token"]).client.post("/webhooks/github", **delivery).status_code == 202


def test_a_full_queue_is_503(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(max_queued=1)
    assert harness.client.post("/webhooks/github", **signed(push())).status_code == 202
    other = push(head_commit={**push()["head_commit"], "id": "2" * 40}, after="2" * 40)  # type: ignore[dict-item]
    answer = harness.client.post("/webhooks/github", **signed(other, delivery="d-2"))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]


@pytest.mark.parametrize("base", ["/", "/services/binder/"])
def test_an_address_with_a_slash_too_many_is_no_redirect(harnesses: Callable[..., Harness], base: str) -> None:
    """Hosts follow no redirect, so the route tolerates extra slashes."""
    client = harnesses(base_path=base).client
    for path in (f"/{base}webhooks/github", f"{base}/webhooks//github", f"{base}webhooks/github//"):
        answer = client.post("/", **signed(push()), environ_overrides={"PATH_INFO": path})
        assert answer.status_code == 202, path
    assert client.get("/", environ_overrides={"PATH_INFO": f"{base}/versions"}).status_code == 200
