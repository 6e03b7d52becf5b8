"""Authentication by a JupyterHub, as the application applies it. `tests/hub` uses a real Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from builds.clients.jupyterhub import HubClient
from builds.engines import Submission
from builds.engines.local.sessions import LocalSessions
from builds.transitions import change
from handlers.auth import gate
from handlers.hub import HUB_SESSION, HubService
from handlers.seals import SIGN_IN
from handlers.xsrf import COOKIE as XSRF
from kiln import settings
from tests.handlers.harness import PREFIX, TOKENS, Harness, body
from tests.handlers.markup import check_structure, soup, text
from tests.parts.hubapi import HubApi

HTML = {"Accept": "text/html"}
SECRET = "a canary of the service"
SERVICE = {
    "KILN_AUTH": "hub",
    "KILN_IMAGE_PREFIX": PREFIX,
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
    "JUPYTERHUB_API_TOKEN": SECRET.replace(" ", "-"),
    "JUPYTERHUB_SERVICE_NAME": "binder",
}


@pytest.fixture
def api() -> Iterator[HubApi]:
    with HubApi() as api:
        api.add("ada's", "ada", groups=["staff"])
        api.add("root's", "root", admin=True)
        api.add("kim's", "kim", scopes=["access:services!service=other"])
        yield api


Behind = Callable[..., Harness]


@pytest.fixture
def behind(harnesses: Callable[..., Harness], api: HubApi, tmp_path: Path) -> Behind:
    """A harness whose Hub is `api`."""

    def make(
        *words: str,
        in_url: bool = False,
        secret: str = SECRET,
        seconds: int = 3600,
        logout_url: str = "/hub/logout",
        **more: Any,
    ) -> Harness:
        service = HubService(
            hub=HubClient(api.url, kept=0.0),
            client_id="service-binder",
            secret=secret,
            access_scopes=("access:services!service=binder",),
            authorize_url="/hub/api/oauth2/authorize",
            callback_url="/oauth_callback",
            logout_url=logout_url,
            session_seconds=seconds,
        )
        sessions = LocalSessions(tmp_path / "signed-out")
        ways = service.ways(ended=sessions.ended, in_url=in_url)
        given = gate(words or ("hub",), tokens=lambda: TOKENS, hub=ways, ended=sessions.ended, token_in_url=in_url)
        return harnesses(auth_gate=given, events_auth=("none",), sessions=sessions, **more)

    return make


def bearer(token: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {token}"}


def sign_in(client: FlaskClient, api: HubApi, token: str = "ada's", path: str = "/") -> TestResponse:
    """Sign in as a browser does, without the Hub's own pages."""
    begun = client.get(path, headers=HTML)
    assert begun.status_code == 303, begun.text
    asked = {name: values[0] for name, values in parse_qs(urlsplit(begun.headers["Location"]).query).items()}
    assert asked["redirect_uri"] == "/oauth_callback"
    api.codes["code"] = token
    return client.get("/oauth_callback", query_string={"code": "code", "state": asked["state"]}, headers=HTML)


def test_who_has_no_token_sees_what_is_open(behind: Behind) -> None:
    client = behind().client
    for path in ("/versions", "/health", "/api/repoproviders"):
        for headers in ({}, bearer("nobody's"), bearer("kim's", "token")):
            assert client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "token", "Token", "TOKEN "])
def test_a_token_under_either_scheme(behind: Behind, scheme: str) -> None:
    answer = behind().client.post("/api/v1/builds", json=body(), headers=bearer("ada's", scheme))
    assert answer.status_code == 202
    assert answer.json["causes"][0]["by"] == "user:ada"


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), (bearer("nobody's"), 401), (bearer("kim's"), 403), (bearer("ada's", "Basic"), 401)],
)
def test_who_does_not_come_in(behind: Behind, headers: dict[str, str], status: int) -> None:
    answer = behind().client.get("/api/v1/builds", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert "a token of the JupyterHub" in answer.json["detail"]
        assert answer.headers["WWW-Authenticate"]


def test_a_session_holds_behind_a_proxy_that_asks_for_a_password(behind: Behind, api: HubApi) -> None:
    """The browser sends the proxy's `Authorization: Basic` along, which must not replace the session; a token must."""
    client = behind().client
    sign_in(client, api)
    page = {**HTML, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers={**page, **bearer("YWRhOng=", "Basic")}).status_code == 200
    assert client.get("/", headers={"Accept": "*/*", **bearer("nobody's", "token")}).status_code == 401


def test_access_to_every_service_is_access_to_this_one(behind: Behind, api: HubApi) -> None:
    api.add("all's", scopes=["access:services"])
    assert behind().client.get("/api/v1/builds", headers=bearer("all's")).status_code == 200


def test_our_own_tokens_are_not_shown_to_the_hub(behind: Behind, api: HubApi) -> None:
    harness = behind("hub", "token")
    assert harness.client.get("/api/v1/builds", headers=bearer(TOKENS["ci"].decode())).status_code == 200
    assert api.asked == []
    assert harness.client.get("/api/v1/builds", headers=bearer("ada's")).status_code == 200


def test_a_token_in_an_address_where_that_is_allowed(behind: Behind) -> None:
    refused = behind().client.get("/api/v1/builds?token=ada's")
    assert refused.status_code == 401
    assert "token in a URL is not accepted" in refused.json["detail"]
    harness = behind(in_url=True)
    assert harness.client.get("/api/v1/builds?token=ada's").status_code == 200
    assert harness.client.get("/api/v1/builds?token=nobody's").status_code == 401
    assert harness.client.get("/api/v1/builds?token=ada's", headers=bearer("nobody's")).status_code == 401


@pytest.mark.parametrize(
    ("pages", "shown"),
    [
        ({}, "/hub/"),
        ({"JUPYTERHUB_BASE_URL": "/jupyter/"}, "/jupyter/hub/"),
        (
            {"JUPYTERHUB_HOST": "https://hub.example", "JUPYTERHUB_BASE_URL": '/a"&lt;/'},
            'https://hub.example/a"&lt;/hub/',
        ),
    ],
)
def test_a_pushed_image_opens_in_the_hub(behind: Behind, api: HubApi, pages: dict[str, str], shown: str) -> None:
    hub = settings.read({**SERVICE, **pages}).hub
    assert hub
    harness = behind(logout_url=hub.logout_url)
    client = harness.client
    sign_in(client, api)
    asked = client.post("/api/v1/builds", json=body(), headers=bearer("ada's"))
    pushed = harness.run(asked.json["name"])  # type: ignore[index]
    local = change(pushed.request, image="localhost/stats")
    harness.engine.accept([Submission(name="kept", request=local, cause=pushed.causes[0])])
    harness.run("kept")

    def links(name: str) -> dict[str, str]:
        page = soup(client, f"/builds/{name}")
        check_structure(page)
        return {text(link): str(link["href"]) for link in page.select(".card a")}

    assert links(pushed.name) == {}, "the build has no image yet"
    harness.end(pushed.name)
    harness.end("kept")
    assert links(pushed.name) == {"Open in this Hub": f"{shown}spawn", "Hub's home page": f"{shown}home"}
    assert links("kept") == {}, "the Hub cannot pull an image that stays with the daemon"


def test_without_a_hub_no_page_leads_to_one(harness: Harness) -> None:
    build = harness.run(harness.ask().name)
    harness.end(build.name)
    page = soup(harness.client, f"/builds/{build.name}")
    assert page.select_one("#pull")
    assert "Open in this Hub" not in text(page)


def test_a_user_cancels_their_own_and_an_admin_all(behind: Behind) -> None:
    harness = behind()
    own, others, both = (
        harness.client.post("/api/v1/builds", json=body(subdir=folder), headers=bearer("ada's")).json["name"]
        for folder in ("a", "b", "c")
    )
    harness.client.post("/api/v1/builds", json=body(subdir="c"), headers=bearer("root's"))
    for name, who, status in ((own, "ada's", 202), (both, "ada's", 403), (others, "root's", 202)):
        assert harness.client.delete(f"/api/v1/builds/{name}", headers=bearer(who)).status_code == status


def test_a_hub_that_is_away_is_a_503_on_every_way(behind: Behind, api: HubApi) -> None:
    api.says = (503, b"")
    harness = behind()
    answer = harness.client.get("/api/v1/builds", headers=bearer("ada's"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    stream = harness.client.get(f"/build/gh/octo/stats/{'1' * 40}", headers=bearer("ada's"))
    assert stream.status_code == 200
    assert '"status_code": 503' in stream.text


# A browser -----------------------------------------------------------------------------------------------------------


def test_signing_in_leads_back_and_sets_cookies_for_us_alone(behind: Behind, api: HubApi) -> None:
    harness = behind(public_url="https://hub.example/services/binder/")
    client = harness.client
    back = sign_in(client, api, path="/?state=failed")
    assert (back.status_code, back.headers["Location"]) == (303, "/?state=failed")
    cookies = {cookie.partition("=")[0]: cookie for cookie in back.headers.getlist("Set-Cookie")}
    assert "HttpOnly" in cookies[HUB_SESSION]
    assert "SameSite=Lax" in cookies[HUB_SESSION]
    assert "HttpOnly" in cookies[XSRF], "a page of the same host could move its address below our path and read it"
    assert "SameSite=Strict" in cookies[XSRF]
    assert all("Secure" in cookie and "Path=/" in cookie for name, cookie in cookies.items() if name != SIGN_IN)
    assert api.forms[0]["client_secret"] == SECRET


@pytest.mark.parametrize("path", ["/new?repository=https://x.example/a", "/repository?repository=https://x.example/a"])
def test_signing_in_leads_back_to_every_page(behind: Behind, api: HubApi, path: str) -> None:
    back = sign_in(behind().client, api, path=path)
    assert (back.status_code, back.headers["Location"]) == (303, path)


def test_what_lies_in_the_way_of_a_sign_in(behind: Behind, api: HubApi) -> None:
    harness = behind()
    begun = harness.client.get("/", headers=HTML)
    state = parse_qs(urlsplit(begun.headers["Location"]).query)["state"][0]
    api.codes["code"] = "ada's"
    stranger = harness.client.get("/oauth_callback", query_string={"code": "code", "state": state}, headers=HTML)
    assert (stranger.status_code, stranger.mimetype) == (403, "text/html")
    client = harness.client
    begun = client.get("/", headers=HTML)
    state = parse_qs(urlsplit(begun.headers["Location"]).query)["state"][0]
    for query in ({"state": state[:-1], "code": "code"}, {"code": "code"}, {"state": state, "error": "access_denied"}):
        assert client.get("/oauth_callback", query_string=query, headers=HTML).status_code == 403
    assert client.get("/oauth_callback", query_string={"state": state, "code": "x"}, headers=HTML).status_code == 403
    api.says = (503, b"")
    away = client.get("/oauth_callback", query_string={"state": state, "code": "code"}, headers=HTML)
    assert (away.status_code, away.mimetype) == (503, "text/html")
    assert client.get_cookie(HUB_SESSION) is None


def test_a_session_does_for_other_replicas_and_dies_with_its_token(behind: Behind, api: HubApi) -> None:
    first, second, foreign = behind(), behind(), behind(secret="another service's")
    client = first.client
    sign_in(client, api)
    value = client.get_cookie(HUB_SESSION)
    assert value is not None
    spoiled = value.value[:-2] + ("AA" if not value.value.endswith("AA") else "BB")
    for harness, given, status in (
        (second, value.value, 200),
        (foreign, value.value, 401),
        (second, spoiled, 401),
        (second, "ada's", 401),
        (behind(seconds=-1), value.value, 401),
    ):
        other = harness.client
        other.set_cookie(HUB_SESSION, given)
        assert other.get("/api/v1/builds").status_code == status
    del api.tokens["ada's"]
    assert client.get("/api/v1/builds").status_code == 401


def test_a_session_needs_its_own_xsrf_token_to_have_things_done(behind: Behind, api: HubApi) -> None:
    harness = behind()
    client, other = harness.client, harness.client
    sign_in(client, api)
    sign_in(other, api, "root's")
    own, foreign = (str(each.get_cookie(XSRF).value) for each in (client, other))  # type: ignore[union-attr]
    assert re.fullmatch("[0-9a-f]{64}", own)
    for shown in (
        {},
        {"X-Xsrftoken": foreign},
        {"X-Xsrftoken": ""},
        {"X-Xsrftoken": own, "Origin": "https://evil.example"},
    ):
        assert client.post("/api/v1/builds", json=body(), headers=shown).status_code == 403
        assert '"status_code": 403' in client.get(f"/build/gh/octo/stats/{'1' * 40}", headers=shown).text
    assert not harness.builds()
    assert client.post("/api/v1/builds", json=body(), headers={"X-Xsrftoken": own}).status_code == 202
    assert client.post(f"/api/v1/builds?_xsrf={own}", json=body()).status_code == 202
    assert client.get("/api/v1/builds", headers=bearer("nobody's")).status_code == 401, "a token comes before a session"


def test_signing_out_ends_the_session_here(behind: Behind, api: HubApi) -> None:
    client = behind().client
    sign_in(client, api)
    page = client.get("/", headers=HTML)
    assert "user:ada" in page.text
    form = re.search(r'name="form" value="([\w-]+)"', page.text)
    assert form
    kept = str(client.get_cookie(HUB_SESSION).value)  # type: ignore[union-attr]
    assert client.post("/logout", data={"form": "0" * 64}, headers=HTML).status_code == 403
    out = client.post("/logout", data={"form": form[1]}, headers=HTML)
    assert '<meta http-equiv="refresh" content="0; url=/hub/logout">' in out.text
    assert "form-action 'self';" in out.headers["Content-Security-Policy"]
    assert "/login/hub" in client.get("/login", headers=HTML).text
    client.set_cookie(HUB_SESSION, kept)
    assert client.get("/api/v1/builds").status_code == 401
    assert behind().client.get("/api/v1/builds", headers={"Cookie": f"{HUB_SESSION}={kept}"}).status_code == 401


def test_where_there_are_two_doors_both_are_shown(behind: Behind, api: HubApi) -> None:
    client = behind("hub", "token").client
    page = client.get("/builds/build-x", headers=HTML)
    assert page.status_code == 401
    assert 'href="/login/hub?build=build-x"' in page.text
    assert 'id="token"' in page.text
    begun = client.get("/login/hub?build=build-x", headers=HTML)
    state = parse_qs(urlsplit(begun.headers["Location"]).query)["state"][0]
    api.codes["code"] = "ada's"
    back = client.get("/oauth_callback", query_string={"code": "code", "state": state}, headers=HTML)
    assert back.headers["Location"] == "/builds/build-x"


def test_a_script_of_a_page_is_not_sent_to_the_hub(behind: Behind) -> None:
    page = behind().client.get("/", headers={**HTML, "Sec-Fetch-Mode": "cors"})
    assert page.status_code == 401
    assert "/login/hub" in page.text
    assert 'id="token"' not in page.text


def test_without_a_hub_there_is_no_way_over_it(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"])
    for path in ("/login/hub", "/oauth_callback?code=x&state=y"):
        assert harness.client.get(path, headers=HTML).status_code == 404
