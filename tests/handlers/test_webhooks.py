"""Webhooks: the signature lets in and nothing else does; what is verified and not done is a 200 that says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from builds.build import Kind
from builds.repository import HostKind
from builds.triggers import BuildTemplate, TriggerRule
from tests.handlers.house import COMMIT, REPOSITORY, SECRET, House, push, signed


def test_a_signed_push_is_a_build(house: House) -> None:
    answer = house.client.post("/webhooks/github", **signed(push()))
    (build,) = house.builds()
    assert answer.status_code == 202
    assert answer.json == {"builds": [{"name": build.name, "location": f"/api/v1/builds/{build.name}"}]}
    (cause,) = build.causes
    assert (cause.id, cause.by, cause.kind, cause.type) == ("d-1", "webhook:github", Kind.PUSH, "com.github.push")
    assert build.request.commit == COMMIT


def test_many_copies_at_once_are_one_build(house: House) -> None:
    def deliver(number: int) -> int:
        return (
            house.app.test_client().post("/webhooks/github", **signed(push(), delivery=f"d-{number % 20}")).status_code
        )

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(deliver, range(60))) == {202}
    (build,) = house.builds()
    assert len(build.causes) == 20


def test_every_secret_of_the_folder_is_valid(house: House) -> None:
    assert house.client.post("/webhooks/github", **signed(push(), secret=b"an old one")).status_code == 202


@pytest.mark.parametrize("signature", [None, "", "sha256=", "sha256=" + "0" * 64, "sha1=" + "0" * 40, "sha256=é"])
def test_a_wrong_or_missing_signature_is_401(house: House, signature: str | None) -> None:
    delivery = signed(push())
    del delivery["headers"]["X-Hub-Signature-256"]
    if signature is not None:
        delivery["headers"]["X-Hub-Signature-256"] = signature
    answer = house.client.post("/webhooks/github", **delivery)
    assert answer.status_code in (400, 401) if signature == "sha256=é" else answer.status_code == 401
    assert answer.mimetype == "application/problem+json"
    assert SECRET.decode() not in answer.text
    assert not house.builds()


@pytest.mark.parametrize("word", ["gitlab", "nonsense", "forgejo"])
def test_a_host_without_a_secret_is_403(house: House, word: str) -> None:
    answer = house.client.post(f"/webhooks/{word}", **signed(push()))
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
def test_nothing_to_do_is_200_and_says_why(house: House, payload: dict[str, object], event: str) -> None:
    answer = house.client.post("/webhooks/github", **signed(payload, event=event))
    assert answer.status_code == 200
    assert answer.json["builds"] == []
    assert answer.json["reason"]
    assert not house.builds()


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
def test_a_commit_that_asks_for_no_build(houses: Callable[..., House], message: str, ref: str, status: int) -> None:
    house = houses(triggers=[TriggerRule(name="all")])
    pushed = push(ref=ref, head_commit={"id": COMMIT, "message": message})
    answer = house.client.post("/webhooks/github", **signed(pushed))
    assert answer.status_code == status
    assert ("[skip ci]" in answer.json.get("reason", "")) is (status == 200)
    assert len(house.builds()) == (status == 202)


def test_what_policy_refuses_is_200_so_that_the_host_keeps_the_hook(houses: Callable[..., House]) -> None:
    house = houses(allowed=["https://github.com/other/*"])
    answer = house.client.post("/webhooks/github", **signed(push()))
    assert answer.status_code == 200
    assert REPOSITORY in answer.json["reason"]
    assert not house.builds()


def test_what_one_trigger_may_not_have_is_no_reason_to_leave_out_the_others(houses: Callable[..., House]) -> None:
    elsewhere = TriggerRule(name="elsewhere", build=BuildTemplate(image="elsewhere.example/x"))
    house = houses(triggers=[elsewhere, TriggerRule(name="all")])
    answer = house.client.post("/webhooks/github", **signed(push()))
    assert answer.status_code == 202
    (build,) = house.builds()
    assert [cause.trigger for cause in build.causes] == ["all"]
    assert [named["name"] for named in answer.json["builds"]] == [build.name]


@pytest.mark.parametrize("where", ["https://gitlab.com/octo/stats", "https://git.example.edu/octo/stats"])
def test_one_host_s_secret_names_no_other_host_s_repository(houses: Callable[..., House], where: str) -> None:
    pushed = push()
    for key in ("html_url", "url", "clone_url"):
        pushed["repository"] = {**pushed["repository"], key: where}  # type: ignore[dict-item]
    house = houses(hosts={"git.example.edu": HostKind.GITLAB})
    answer = house.client.post("/webhooks/github", **signed(pushed))
    assert answer.status_code == 403
    assert not house.builds()
    if "example" in where:
        house = houses(hosts={"git.example.edu": HostKind.GITHUB})
        assert house.client.post("/webhooks/github", **signed(pushed)).status_code == 202


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"[" * 50_000, b"\xff", b'{"ref": 5}'])
def test_a_signed_body_that_is_no_push_is_400(house: House, data: bytes) -> None:
    answer = house.client.post("/webhooks/github", **signed(data))
    assert answer.status_code == 400, answer.text
    assert answer.mimetype == "application/problem+json"


def test_a_body_over_the_limit_is_413(houses: Callable[..., House]) -> None:
    house = houses(max_body=1000)
    assert (
        house.client.post("/webhooks/github", **signed(json.dumps(push(padding="x" * 1000)).encode())).status_code
        == 413
    )


def test_neither_token_nor_address_matters(houses: Callable[..., House]) -> None:
    delivery = signed(push())
    delivery["headers"] |= {"X-Forwarded-For": "192.0.2.1", "Host": "kiln.example"}
    assert houses(auth=["token"]).client.post("/webhooks/github", **delivery).status_code == 202


def test_a_full_queue_is_503(houses: Callable[..., House]) -> None:
    house = houses(max_queued=1)
    assert house.client.post("/webhooks/github", **signed(push())).status_code == 202
    other = push(head_commit={**push()["head_commit"], "id": "2" * 40}, after="2" * 40)  # type: ignore[dict-item]
    answer = house.client.post("/webhooks/github", **signed(other, delivery="d-2"))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
