"""Identities from an OpenID Connect issuer, as the application applies them: senders, users, admins; and signing in."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from builds.clients import oidc
from builds.engines.local.sessions import LocalSessions
from builds.private import Private, PrivateRule
from handlers.auth import Gate, gate
from handlers.oidc import OIDC_SESSION, OidcSession, OidcSignIn, OidcToken, People, Senders, challenge
from handlers.seals import SIGN_IN
from handlers.xsrf import COOKIE as XSRF
from tests.handlers.harness import REPOSITORY, TOKENS, Harness, body, event, push, structured
from tests.parts.issuer import AUDIENCE, Issuer, hs256, pem, segment

TRIGGER = "system:serviceaccount:shop:courses-oidc-eventing.knative.dev-trigger"
PUSH = {"type": "com.github.push", "source": REPOSITORY, "subject": "refs/heads/main", "data": push()}
Behind = Callable[..., Harness]


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        yield issuer


def way(issuer: Issuer, who: People | Senders, **more: Any) -> OidcToken:
    return OidcToken(issuer=oidc.Issuer(issuer.url), audiences=(AUDIENCE,), who=who, **more)


@pytest.fixture
def behind(harnesses: Behind, issuer: Issuer) -> Behind:
    """A harness that authenticates requests by tokens of `issuer`."""

    def make(
        *words: str, subjects: tuple[str, ...] = (), people: People | None = None, others: bool = True, **more: Any
    ) -> Harness:
        people = people or People(admin_group="kiln-admins")
        chosen = words or ("oidc",)
        senders = Senders(subjects=subjects, people=people if others else None)
        harness = harnesses(auth=["none"], **more)
        gates = {
            "auth": gate(chosen, tokens=lambda: TOKENS, oidc=[way(issuer, people)]),
            "events_auth": gate(chosen, tokens=lambda: TOKENS, oidc=[way(issuer, senders)]),
        }
        for name, one in gates.items():
            object.__setattr__(harness.services, name, one)
        return harness

    return make


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def send(harness: Harness, token: str | None, **changes: object) -> Any:
    message = structured(event(**changes))
    if token is not None:
        message["headers"] |= bearer(token)
    return harness.client.post("/events", **message)


# Senders of events ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subjects", [(TRIGGER,), ("x", "system:serviceaccount:shop:*"), ("*",)], ids=str)
def test_a_named_subject_sends_every_event(behind: Behind, issuer: Issuer, subjects: tuple[str, ...]) -> None:
    harness = behind(subjects=subjects, others=False)
    assert send(harness, issuer.token(sub=TRIGGER), **PUSH).status_code == 202
    answer = send(harness, issuer.token(sub=TRIGGER), data=body(subdir="a", image="registry.example/kiln/x/y"))
    assert (answer.status_code, answer.data) == (202, b"")
    assert {cause.by for build in harness.builds() for cause in build.causes} == {f"oidc:{TRIGGER}"}


@pytest.mark.parametrize(
    "sub", ["ada", "system:serviceaccount:shopping:x", "system:serviceaccount:shop", f"{TRIGGER}x"]
)
def test_another_subject_is_known_and_not_permitted(behind: Behind, issuer: Issuer, sub: str) -> None:
    harness = behind(subjects=(TRIGGER, "system:serviceaccount:shop:y*"), others=False)
    for changes in (PUSH, {}):
        answer = send(harness, issuer.token(sub=sub), **changes)
        assert answer.status_code == 403
        assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]
    assert not harness.builds()


def test_a_person_may_only_ask_for_builds(behind: Behind, issuer: Issuer) -> None:
    harness = behind(subjects=(TRIGGER,))
    for token in (issuer.token(), issuer.token(groups=["staff"])):
        assert send(harness, token, **PUSH).status_code == 403
        assert send(harness, token, data=body(image="registry.example/kiln/x/y")).status_code == 403
        assert send(harness, token).status_code == 202
    assert send(harness, issuer.token(sub="root", groups=["kiln-admins"]), **PUSH).status_code == 202


def test_what_a_sender_asks_for_takes_nobodys_share(behind: Behind, issuer: Issuer) -> None:
    harness = behind(subjects=(TRIGGER,))
    for number in range(25):
        assert (
            send(harness, issuer.token(sub=TRIGGER), id=f"e-{number}", data=body(subdir=f"s-{number}")).status_code
            == 202
        )
    asked = ({"id": f"e-{number}", "data": body(subdir=f"p-{number}")} for number in range(25))
    statuses = [send(harness, issuer.token(), **one).status_code for one in asked]
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
        "oversized": issuer.token(sub=TRIGGER, more="x" * 80_000),
        "no token": "ab.cd.ef",
        "not even that": "\xe4",
    }


def test_attacks(behind: Behind, issuer: Issuer) -> None:
    harness = behind(subjects=("*",))
    for name, token in attacks(issuer).items():
        for answer in (
            send(harness, token, **PUSH),
            harness.client.get("/api/v1/builds", headers=bearer(token)),
            harness.client.post("/api/v1/builds", json=body(), headers=bearer(token)),
        ):
            assert answer.status_code == 401, name
            assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
            assert token not in answer.text
    missing = send(harness, None, **PUSH)
    assert (missing.status_code, missing.headers["WWW-Authenticate"]) == (401, 'Bearer realm="kiln"')
    assert issuer.url in missing.json["detail"]
    assert not harness.builds()


def test_keys_away_is_a_503_and_known_keys_go_on(behind: Behind, issuer: Issuer) -> None:
    harness = behind(subjects=(TRIGGER,))
    issuer.says = (500, b"")
    answer = send(harness, issuer.token(sub=TRIGGER), **PUSH)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    harness = behind(subjects=(TRIGGER,))
    issuer.says = None
    assert send(harness, issuer.token(sub=TRIGGER), **PUSH).status_code == 202
    issuer.says = (500, b"")
    assert send(harness, issuer.token(sub=TRIGGER, key="unknown"), **PUSH).status_code == 503
    assert send(harness, issuer.token(sub=TRIGGER), **PUSH).status_code == 202


# People --------------------------------------------------------------------------------------------------------------


def test_a_person_asks_and_cancels_their_own(behind: Behind, issuer: Issuer) -> None:
    harness = behind()
    ada, kim, root = (
        bearer(issuer.token(sub=sub, groups=groups))
        for sub, groups in (("ada", "staff"), ("kim", ["staff", 7]), ("root", ["x", "kiln-admins"]))
    )
    answer = harness.client.post("/api/v1/builds", json=body(), headers=ada)
    assert (answer.status_code, answer.json["causes"][0]["by"]) == (202, "oidc:ada")
    place = f"/api/v1/builds/{answer.json['name']}"
    assert harness.client.post("/api/v1/builds", json=body(tags=["x"]), headers=ada).status_code == 403
    assert [harness.client.delete(place, headers=who).status_code for who in (kim, root)] == [403, 202]


@pytest.mark.parametrize("admin_group", [None, "", "kiln-admins"])
def test_nobody_is_an_admin_by_what_a_token_says_alone(behind: Behind, issuer: Issuer, admin_group: str | None) -> None:
    harness = behind(people=People(admin_group=admin_group or None))
    claims: tuple[dict[str, object], ...] = (
        {},
        {"groups": ["admin"]},
        {"groups": [None]},
        {"groups": None},
        {"admin": True},
    )
    for said in (*claims, {"groups": {"kiln-admins": 1}}):
        given = bearer(issuer.token(**said))
        answer = harness.client.post("/api/v1/builds", json=body(image="registry.example/kiln/x/y"), headers=given)
        assert answer.status_code == 403


def test_groups_come_by_the_claim_that_was_named(behind: Behind, issuer: Issuer) -> None:
    people = People(groups_claim="https://ours.example/roles", admin_group="lead")
    harness = behind(people=people)
    for claims, status in (({"groups": ["lead"]}, 403), ({"https://ours.example/roles": "lead"}, 202)):
        given = bearer(issuer.token(**claims))
        assert harness.client.post("/api/v1/builds", json=body(tags=["x"]), headers=given).status_code == status


def test_api_tokens_beside_it_are_shown_to_nobody(behind: Behind, issuer: Issuer) -> None:
    harness = behind("token", "oidc")
    assert harness.client.get("/api/v1/builds", headers=bearer(TOKENS["ci"].decode())).status_code == 200
    assert issuer.asked == []
    assert harness.client.get("/api/v1/builds", headers=bearer(issuer.token())).status_code == 200
    wrong = harness.client.get("/api/v1/builds", headers=bearer("nobody's"))
    assert re.search("API token> or <a token of http", wrong.json["detail"])


def test_a_token_in_an_address_where_that_is_allowed(harnesses: Behind, issuer: Issuer) -> None:
    for allowed, status in ((False, 401), (True, 200)):
        given = Gate((way(issuer, People(), in_url=allowed),), allowed)
        assert harnesses(auth_gate=given).client.get(f"/api/v1/builds?token={issuer.token()}").status_code == status


# Signing in ----------------------------------------------------------------------------------------------------------

HTML = {"Accept": "text/html"}
URL = "https://kiln.example/oidc_callback"


@pytest.fixture
def pages(harnesses: Behind, issuer: Issuer, tmp_path: Path) -> Behind:
    """A harness whose users sign in at `issuer`."""

    def make(*words: str, secret: str | None = issuer.secret, seconds: int = 3600, **more: Any) -> Harness:
        site = OidcSignIn(
            issuer=oidc.Issuer(issuer.url),
            client_id="kiln pages",
            secret=lambda: secret,
            scopes=("openid", "groups"),
            callback_url=URL,
            people=People(admin_group="kiln-admins", heeded=["staff"]),
            session_seconds=seconds,
        )
        sessions = LocalSessions(tmp_path / "signed-out")
        given = gate(
            words or ("oidc",),
            tokens=lambda: TOKENS,
            oidc=[way(issuer, site.people), OidcSession(site, sessions.ended)],
            ended=sessions.ended,
        )
        return harnesses(auth_gate=given, events_auth=("none",), sessions=sessions, **more)

    return make


def sign_in(client: FlaskClient, issuer: Issuer, path: str = "/", **user: object) -> TestResponse:
    """Sign in as a browser does."""
    issuer.user = {"sub": "ada", **user}
    begun = client.get(path, headers=HTML)
    assert begun.status_code == 303, begun.text
    back = issuer.sign_in(begun.headers["Location"])
    return client.get(back.removeprefix("https://kiln.example"), headers=HTML)


def test_signing_in_leads_back(pages: Behind, issuer: Issuer) -> None:
    client = pages(public_url="https://kiln.example/").client
    back = sign_in(client, issuer, "/?state=failed", groups=["staff", *(f"g-{number}" for number in range(2000))])
    assert (back.status_code, back.headers["Location"]) == (303, "/?state=failed")
    cookies = {cookie.partition("=")[0]: cookie for cookie in back.headers.getlist("Set-Cookie")}
    assert all(word in cookies[OIDC_SESSION] for word in ("HttpOnly", "SameSite=Lax", "Secure", "Path=/"))
    assert len(cookies[OIDC_SESSION]) < 4000, "browsers drop larger ones"
    page = client.get("/", headers=HTML)
    assert (page.status_code, "oidc:ada" in page.text) == (200, True)


def test_a_session_says_what_they_may(pages: Behind, issuer: Issuer) -> None:
    for groups, status in (([], 403), (["kiln-admins"], 202)):
        client = pages().client
        sign_in(client, issuer, groups=groups)
        proof = {"X-Xsrftoken": str(client.get_cookie(XSRF).value)}  # type: ignore[union-attr]
        assert client.post("/api/v1/builds", json=body(tags=["x"])).status_code == 403
        assert client.post("/api/v1/builds", json=body(tags=["x"]), headers=proof).status_code == status
        assert client.get("/api/v1/builds", headers=bearer("nobody's")).status_code == 401, "a token comes first"


@pytest.mark.parametrize(
    "user",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"nonce": ["x"]},
        {"aud": "another"},
        {"aud": AUDIENCE},
        {"aud": ["kiln pages", "another"], "azp": "another"},
        {"exp": 1},
        {"iss": "https://evil.example"},
        {"sub": "a\nb"},
        {"sub": None},
    ],
    ids=str,
)
def test_an_id_token_that_is_not_for_this_sign_in(pages: Behind, issuer: Issuer, user: dict[str, object]) -> None:
    client = pages().client
    assert sign_in(client, issuer, **user).status_code == 403
    assert client.get_cookie(OIDC_SESSION) is None


def test_what_lies_in_the_way_of_a_sign_in(pages: Behind, issuer: Issuer) -> None:
    harness = pages()
    client = harness.client
    begun = client.get("/", headers=HTML).headers["Location"]
    back = issuer.sign_in(begun).removeprefix("https://kiln.example")
    assert harness.client.get(back, headers=HTML).status_code == 403, "another browser"
    query = dict(parse_qsl(urlsplit(back).query))
    for wrong in ({"state": query["state"][:-1]}, {"state": ""}, {"error": "access_denied"}, {"code": "x"}):
        assert client.get("/oidc_callback", query_string={**query, **wrong}, headers=HTML).status_code == 403
    assert client.get_cookie(OIDC_SESSION) is None
    assert client.get(back, headers=HTML).status_code == 303
    assert client.get(back, headers=HTML).status_code == 403, "a code is good once"


def test_each_sign_in_has_proofs_of_its_own(pages: Behind, issuer: Issuer) -> None:
    """No value in the browser's URLs is enough for another party to redeem the code."""
    harness = pages()
    asked = []
    for client in (harness.client, harness.client):
        query = dict(parse_qsl(urlsplit(client.get("/", headers=HTML).headers["Location"]).query))
        cookie = str(client.get_cookie(SIGN_IN).value)  # type: ignore[union-attr]
        assert cookie not in query.values()
        asked.append(query)
    for name in ("state", "nonce", "code_challenge"):
        assert asked[0][name] != asked[1][name]


def test_a_code_is_redeemed_with_the_secret_alone(pages: Behind, issuer: Issuer) -> None:
    assert sign_in(pages(secret="another").client, issuer).status_code == 403
    issuer.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert sign_in(pages().client, issuer).status_code == 303
    missing = pages(secret=None).client.get("/", headers=HTML)
    assert (missing.status_code, "client-secret" in missing.text) == (503, True)


def test_an_issuer_that_is_away_is_a_503(pages: Behind, issuer: Issuer) -> None:
    client = pages().client
    begun = client.get("/", headers=HTML).headers["Location"]
    back = issuer.sign_in(begun).removeprefix("https://kiln.example")
    issuer.says = (500, b"")
    for answer in (client.get(back, headers=HTML), pages().client.get("/", headers=HTML)):
        assert (answer.status_code, answer.mimetype) == (503, "text/html")


def test_a_session_does_for_other_replicas_and_no_longer_than_said(pages: Behind, issuer: Issuer) -> None:
    client = pages().client
    sign_in(client, issuer)
    value = client.get_cookie(OIDC_SESSION)
    assert value is not None
    spoiled = value.value[:-2] + ("AA" if not value.value.endswith("AA") else "BB")
    for harness, given, status in (
        (pages(), value.value, 200),
        (pages(secret="another"), value.value, 401),
        (pages(), spoiled, 401),
        (pages(seconds=-1), value.value, 401),
    ):
        other = harness.client
        other.set_cookie(OIDC_SESSION, given)
        assert other.get("/api/v1/builds").status_code == status


def test_signing_out_ends_the_session(pages: Behind, issuer: Issuer) -> None:
    client = pages().client
    sign_in(client, issuer)
    form = re.search(r'name="form" value="([\w-]+)"', client.get("/", headers=HTML).text)
    assert form
    kept = str(client.get_cookie(OIDC_SESSION).value)  # type: ignore[union-attr]
    assert client.post("/logout", data={"form": "0" * 64}, headers=HTML).status_code == 403
    assert client.post("/logout", data={"form": form[1]}, headers=HTML).headers["Location"] == "/login"
    assert client.get_cookie(OIDC_SESSION) is None
    assert "/login/oidc" in client.get("/login", headers=HTML).text
    assert pages().client.get("/api/v1/builds", headers={"Cookie": f"{OIDC_SESSION}={kept}"}).status_code == 401


def test_beside_api_tokens_both_doors_are_shown(pages: Behind, issuer: Issuer) -> None:
    client = pages("oidc", "token").client
    doors = client.get("/", headers=HTML)
    assert (doors.status_code, "/login/oidc" in doors.text, 'name="token"' in doors.text) == (401, True, True)
    assert client.get("/login/oidc").headers["Location"].startswith(f"{issuer.origin}/authorization_endpoint?")


def test_there_is_no_way_over_an_issuer_where_none_is_set(harnesses: Behind) -> None:
    client = harnesses(auth=["token"]).client
    for path in ("/login/oidc", "/oidc_callback"):
        assert client.get(path).status_code == 404


def test_the_challenge_of_the_specification() -> None:
    """Reproduce the example of RFC 7636, appendix B."""
    assert challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_private_repositories_are_for_groups(behind: Behind, issuer: Issuer) -> None:
    rules = [PrivateRule(match=f"{REPOSITORY}*", use_by=("group:staff", "oidc:kim"))]
    harness = behind(people=People(heeded=["staff"]), private=Private(rules))
    staff: dict[str, object] = {"groups": ["staff"]}
    asked = harness.client.post("/api/v1/builds", json=body(), headers=bearer(issuer.token(**staff))).headers[
        "Location"
    ]
    seen: tuple[dict[str, object], ...] = (staff, {"sub": "kim"}, {}, {"groups": ["other"]})
    statuses = [harness.client.get(asked, headers=bearer(issuer.token(**claims))).status_code for claims in seen]
    assert statuses == [200, 200, 404, 404]
