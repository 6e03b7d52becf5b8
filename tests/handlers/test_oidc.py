"""Whom an issuer vouches for, as the application takes them: senders of events, people, admins; signing in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from builds.clients import oidc
from handlers.auth import Gate, gate
from handlers.oidc import OidcToken, People, Senders
from tests.handlers.house import REPOSITORY, TOKENS, House, body, event, push, structured
from tests.parts.issuer import AUDIENCE, Issuer, hs256, pem, segment

TRIGGER = "system:serviceaccount:shop:courses-oidc-eventing.knative.dev-trigger"
PUSH = {"type": "com.github.push", "source": REPOSITORY, "subject": "refs/heads/main", "data": push()}
Behind = Callable[..., House]


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        yield issuer


def way(issuer: Issuer, who: People | Senders, **more: Any) -> OidcToken:
    return OidcToken(issuer=oidc.Issuer(issuer.url), audiences=(AUDIENCE,), who=who, **more)


@pytest.fixture
def behind(houses: Behind, issuer: Issuer) -> Behind:
    """A house that lets in whom `issuer` vouches for."""

    def make(
        *words: str, subjects: tuple[str, ...] = (), people: People | None = None, others: bool = True, **more: Any
    ) -> House:
        people = people or People(admin_group="kiln-admins")
        chosen = words or ("oidc",)
        senders = Senders(subjects=subjects, people=people if others else None)
        house = houses(auth=["none"], **more)
        gates = {
            "auth": gate(chosen, tokens=lambda: TOKENS, oidc=[way(issuer, people)]),
            "events_auth": gate(chosen, tokens=lambda: TOKENS, oidc=[way(issuer, senders)]),
        }
        for name, one in gates.items():
            object.__setattr__(house.services, name, one)
        return house

    return make


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def send(house: House, token: str | None, **changes: object) -> Any:
    message = structured(event(**changes))
    if token is not None:
        message["headers"] |= bearer(token)
    return house.client.post("/events", **message)


# Senders of events ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subjects", [(TRIGGER,), ("x", "system:serviceaccount:shop:*"), ("*",)], ids=str)
def test_a_named_subject_sends_every_event(behind: Behind, issuer: Issuer, subjects: tuple[str, ...]) -> None:
    house = behind(subjects=subjects, others=False)
    assert send(house, issuer.token(sub=TRIGGER), **PUSH).status_code == 202
    answer = send(house, issuer.token(sub=TRIGGER), data=body(subdir="a", image="registry.example/kiln/x/y"))
    assert (answer.status_code, answer.data) == (202, b"")
    assert {cause.by for build in house.builds() for cause in build.causes} == {f"oidc:{TRIGGER}"}


@pytest.mark.parametrize(
    "sub", ["ada", "system:serviceaccount:shopping:x", "system:serviceaccount:shop", f"{TRIGGER}x"]
)
def test_another_subject_is_known_and_not_permitted(behind: Behind, issuer: Issuer, sub: str) -> None:
    house = behind(subjects=(TRIGGER, "system:serviceaccount:shop:y*"), others=False)
    for changes in (PUSH, {}):
        answer = send(house, issuer.token(sub=sub), **changes)
        assert answer.status_code == 403
        assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]
    assert not house.builds()


def test_a_person_may_only_ask_for_builds(behind: Behind, issuer: Issuer) -> None:
    house = behind(subjects=(TRIGGER,))
    for token in (issuer.token(), issuer.token(groups=["staff"])):
        assert send(house, token, **PUSH).status_code == 403
        assert send(house, token, data=body(image="registry.example/kiln/x/y")).status_code == 403
        assert send(house, token).status_code == 202
    assert send(house, issuer.token(sub="root", groups=["kiln-admins"]), **PUSH).status_code == 202


def test_what_a_sender_asks_for_takes_nobodys_share(behind: Behind, issuer: Issuer) -> None:
    house = behind(subjects=(TRIGGER,))
    for number in range(25):
        assert (
            send(house, issuer.token(sub=TRIGGER), id=f"e-{number}", data=body(subdir=f"s-{number}")).status_code == 202
        )
    asked = ({"id": f"e-{number}", "data": body(subdir=f"p-{number}")} for number in range(25))
    statuses = [send(house, issuer.token(), **one).status_code for one in asked]
    assert statuses == [202] * 20 + [429] * 5


def attacks(issuer: Issuer) -> dict[str, str]:
    now = int(time.time())
    kid = {"alg": "none", "kid": issuer.key}
    claims = issuer.claims(sub=TRIGGER)
    return {
        "issuer": issuer.token(sub=TRIGGER, iss="https://evil.example"),
        "audience": issuer.token(sub=TRIGGER, aud="another"),
        "none": f"{segment(kid)}.{segment(claims)}.",
        "HS256": hs256({**kid, "alg": "HS256"}, claims, pem(issuer.key)),
        "expired": issuer.token(sub=TRIGGER, exp=now - 120),
        "not yet": issuer.token(sub=TRIGGER, nbf=now + 120),
        "unknown key": issuer.token(sub=TRIGGER, key="mallory's"),
        "another's key": issuer.token(sub=TRIGGER, key="mallory's", header={"kid": issuer.key}),
        "odd subject": issuer.token(sub="a\nb"),
        "oversized": issuer.token(sub=TRIGGER, more="x" * 20_000),
        "no token": "ab.cd.ef",
        "not even that": "\xe4",
    }


def test_attacks(behind: Behind, issuer: Issuer) -> None:
    house = behind(subjects=("*",))
    for name, token in attacks(issuer).items():
        for answer in (
            send(house, token, **PUSH),
            house.client.get("/api/v1/builds", headers=bearer(token)),
            house.client.post("/api/v1/builds", json=body(), headers=bearer(token)),
        ):
            assert answer.status_code == 401, name
            assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
            assert token not in answer.text
    missing = send(house, None, **PUSH)
    assert (missing.status_code, missing.headers["WWW-Authenticate"]) == (401, 'Bearer realm="kiln"')
    assert issuer.url in missing.json["detail"]
    assert not house.builds()


def test_keys_away_is_a_503_and_known_keys_go_on(behind: Behind, issuer: Issuer) -> None:
    house = behind(subjects=(TRIGGER,))
    issuer.says = (500, b"")
    answer = send(house, issuer.token(sub=TRIGGER), **PUSH)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    house = behind(subjects=(TRIGGER,))
    issuer.says = None
    assert send(house, issuer.token(sub=TRIGGER), **PUSH).status_code == 202
    issuer.says = (500, b"")
    assert send(house, issuer.token(sub=TRIGGER, key="unknown"), **PUSH).status_code == 503
    assert send(house, issuer.token(sub=TRIGGER), **PUSH).status_code == 202


# People --------------------------------------------------------------------------------------------------------------


def test_a_person_asks_and_cancels_their_own(behind: Behind, issuer: Issuer) -> None:
    house = behind()
    ada, kim, root = (
        bearer(issuer.token(sub=sub, groups=groups))
        for sub, groups in (("ada", "staff"), ("kim", ["staff", 7]), ("root", ["x", "kiln-admins"]))
    )
    answer = house.client.post("/api/v1/builds", json=body(), headers=ada)
    assert (answer.status_code, answer.json["causes"][0]["by"]) == (202, "oidc:ada")
    place = f"/api/v1/builds/{answer.json['name']}"
    assert house.client.post("/api/v1/builds", json=body(tags=["x"]), headers=ada).status_code == 403
    assert [house.client.delete(place, headers=who).status_code for who in (kim, root)] == [403, 202]


@pytest.mark.parametrize("admin_group", [None, "", "kiln-admins"])
def test_nobody_is_an_admin_by_what_a_token_says_alone(behind: Behind, issuer: Issuer, admin_group: str | None) -> None:
    house = behind(people=People(admin_group=admin_group or None))
    claims: tuple[dict[str, object], ...] = (
        {},
        {"groups": ["admin"]},
        {"groups": [None]},
        {"groups": None},
        {"admin": True},
    )
    for said in (*claims, {"groups": {"kiln-admins": 1}}):
        given = bearer(issuer.token(**said))
        answer = house.client.post("/api/v1/builds", json=body(image="registry.example/kiln/x/y"), headers=given)
        assert answer.status_code == 403


def test_groups_come_by_the_claim_that_was_named(behind: Behind, issuer: Issuer) -> None:
    people = People(groups_claim="https://ours.example/roles", admin_group="lead")
    house = behind(people=people)
    for claims, status in (({"groups": ["lead"]}, 403), ({"https://ours.example/roles": "lead"}, 202)):
        given = bearer(issuer.token(**claims))
        assert house.client.post("/api/v1/builds", json=body(tags=["x"]), headers=given).status_code == status


def test_api_tokens_beside_it_are_shown_to_nobody(behind: Behind, issuer: Issuer) -> None:
    house = behind("token", "oidc")
    assert house.client.get("/api/v1/builds", headers=bearer(TOKENS["ci"].decode())).status_code == 200
    assert issuer.asked == []
    assert house.client.get("/api/v1/builds", headers=bearer(issuer.token())).status_code == 200
    wrong = house.client.get("/api/v1/builds", headers=bearer("nobody's"))
    assert re.search("API tokens> or <a token of http", wrong.json["detail"])


def test_a_token_in_an_address_where_that_is_allowed(houses: Behind, issuer: Issuer) -> None:
    for allowed, status in ((False, 401), (True, 200)):
        given = Gate((way(issuer, People(), in_url=allowed),), allowed)
        assert houses(auth_gate=given).client.get(f"/api/v1/builds?token={issuer.token()}").status_code == status
