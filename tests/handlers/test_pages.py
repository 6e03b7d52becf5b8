"""The pages: their content and actions for each user. Hostile input stays text."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from eventing.terminal import plain
from handlers.auth import SESSION, session
from handlers.html import CSRF
from tests.handlers.harness import COMMIT, REPOSITORY, Harness, bearer, body

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
TOKEN = "a canary of the tokens"


def form(page: TestResponse) -> str:
    found = re.search(r'name="form" value="([\w-]+)"', page.text)
    assert found, page.text
    return found[1]


def shown(page: TestResponse) -> str:
    """Return the XSRF token that the page's scripts send."""
    found = re.search(r'<meta name="xsrf" content="(\w+)">', page.text)
    assert found, page.text
    return found[1]


def sign_in(client: FlaskClient, token: str = TOKEN, **more: str) -> TestResponse:
    page = client.get("/", headers=HTML)
    return client.post("/login", data={"form": form(page), "token": token, **more}, headers=HTML)


def test_an_empty_house_says_how_to_begin(harness: Harness) -> None:
    page = harness.client.get("/", headers=HTML)
    assert (page.status_code, page.mimetype) == (200, "text/html")
    assert "Kiln has no builds yet" in page.text


def test_builds_are_listed_filtered_and_paged(harness: Harness) -> None:
    names = [harness.ask(subdir=str(number)).name for number in range(3)]
    harness.run(names[0])
    page = harness.client.get("/", headers=HTML).text
    assert all(f'href="/builds/{name}"' in page for name in names)
    assert REPOSITORY in page
    assert COMMIT[:7] in page
    running = harness.client.get("/?state=running&repository=https://github.com/OCTO/stats", headers=HTML).text
    assert names[0] in running
    assert names[1] not in running
    first = harness.client.get("/?limit=2", headers=HTML).text
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older
    assert names[0] not in first
    assert names[0] in harness.client.get(older[1].replace("&amp;", "&") + "&limit=2", headers=HTML).text


def test_a_build_is_told_whole_without_javascript(harness: Harness) -> None:
    build = harness.run(harness.ask(tags=["course"]).name)
    harness.say(build.name, "Step 1", "Step 2")
    live = harness.client.get(f"/builds/{build.name}", headers=HTML).text
    assert 'http-equiv="refresh"' in live
    assert f'data-stream="/builds/{build.name}/log"' in live
    assert "Step 2" in live
    harness.end(build.name)
    ended = harness.client.get(f"/builds/{build.name}", headers=HTML).text
    assert 'http-equiv="refresh"' not in ended
    assert f"{build.request.image}:{COMMIT}@sha256:{'a' * 64}" in ended
    assert "Cancel this build" not in ended


def test_what_is_hostile_is_text(harness: Harness) -> None:
    build = harness.run(harness.ask(subdir="<script>alert(1)</script>").name)
    harness.say(build.name, "<img src=x onerror=alert(1)>\x1b]0;title\x07\x1b[31mred\x1b[0m", "\u202eturned")
    for path in ("/", f"/builds/{build.name}", "/?repository=https://github.com/%22%3E%3Cscript%3E/x"):
        page = harness.client.get(path, headers=HTML)
        assert "<script>" not in page.text
        assert "<img src=x" not in page.text
        assert "\x1b" not in page.text
        assert "\u202e" not in page.text
        assert " style=" not in page.text
        assert " onclick" not in page.text
    page = harness.client.get(f"/builds/{build.name}", headers=HTML)
    assert '&lt;img src=x onerror=alert(1)&gt;<span class="fg-1">red</span>' in page.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\rb", "b"), ("a\r", "a"), ("\x1b[1;31mx\x1b[m", "x"), ("\x00\x07\x9b2Jx", "x"), ("tab\there", "tab\there")],
)
def test_a_line_is_as_a_terminal_leaves_it(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_what_is_missing_is_a_page_for_browsers_only(harness: Harness) -> None:
    page = harness.client.get("/builds/none", headers=HTML)
    assert (page.status_code, page.mimetype) == (404, "text/html")
    assert harness.client.get("/nowhere", headers=HTML).mimetype == "text/html"
    assert harness.client.get("/builds/none").mimetype == "application/problem+json"
    assert harness.client.get("/api/v1/builds/none", headers=HTML).mimetype == "application/problem+json"


def test_cancelling_from_the_page_takes_its_form(harness: Harness) -> None:
    client = harness.client
    build = harness.ask()
    page = client.get(f"/builds/{build.name}", headers=HTML)
    path = f"/builds/{build.name}/cancel"
    assert client.post(path, data={"form": "x" * 43}, headers=HTML).status_code == 403
    for foreign in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "same-site"}):
        assert client.post(path, data={"form": form(page)}, headers={**HTML, **foreign}).status_code == 403
    assert harness.client.post(path, data={"form": ""}, headers=HTML).status_code == 403
    assert harness.engine.get(build.name).cancel is None
    answer = client.post(path, data={"form": form(page)}, headers=HTML)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/builds/{build.name}")
    assert harness.engine.get(build.name).cancel is not None
    harness.run(build.name)
    harness.end(build.name)
    assert client.post(path, data={"form": form(page)}, headers=HTML).status_code == 303


def test_a_token_is_exchanged_for_a_cookie_that_is_not_the_token(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"])
    client = harness.client
    assert client.get("/", headers=HTML).status_code == 401
    assert client.get("/").mimetype == "application/problem+json"
    wrong = sign_in(client, "wrong")
    assert wrong.status_code == 401
    assert "Unknown token" in wrong.text
    answer = sign_in(client)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Path=/" in cookie
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    assert client.get("/", headers=HTML).status_code == 200
    assert client.get("/api/v1/builds").status_code == 200
    assert client.post("/events", json={}).status_code == 401
    harness.tokens["ci"] = b"rotated"
    assert client.get("/", headers=HTML).status_code == 401


def test_the_cookie_does_for_other_replicas_and_for_nobody_else(harnesses: Callable[..., Harness]) -> None:
    first, second = harnesses(auth=["token"]), harnesses(auth=["token"])
    client = first.client
    sign_in(client)
    value = client.get_cookie(SESSION)
    assert value is not None
    for given, status in (
        (value.value, 200),
        (value.value[:-1] + ("0" if value.value[-1] != "0" else "1"), 401),
        (session("ci", b"a canary of the tokens", int(time.time()) - 1), 401),
        (value.value.replace("ci.", "second."), 401),
        ("ci..", 401),
        ("ci.99999999999." + "0" * 16 + "." + "é" * 64, 401),
        ("", 401),
    ):
        other = second.client
        other.set_cookie(SESSION, given)
        assert other.get("/api/v1/builds").status_code == status, given


def test_a_cookie_with_a_number_that_nobody_reads(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"])
    headers = {"Cookie": f"{SESSION}=ci.{'9' * 5000}.0"}
    assert harness.app.test_client(use_cookies=False).get("/", headers=headers).status_code == 401


def test_a_cookie_from_another_site_changes_nothing(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"])
    client = harness.client
    sign_in(client)
    assert client.post("/api/v1/builds", json=body(), headers={"Origin": "https://evil.example"}).status_code == 403
    assert not harness.builds()
    assert client.post("/api/v1/builds", json=body(), headers={"Origin": "http://localhost"}).status_code == 403
    headers = {"Origin": "http://localhost", "X-Xsrftoken": shown(client.get("/", headers=HTML))}
    assert client.post("/api/v1/builds", json=body(), headers=headers).status_code == 202


def test_signing_in_leads_back_to_the_build_and_out_again(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"], public_url="https://kiln.example/base/", base_path="/base/")
    client = harness.client
    page = client.get("/base/builds/some-build", headers=HTML)
    assert page.status_code == 401
    assert 'name="build" value="some-build"' in page.text
    data = {"form": form(page), "token": TOKEN, "build": "some-build"}
    client.set_cookie(CSRF, form(page), path="/base/")
    answer = client.post("/base/login", data=data, headers=HTML)
    assert answer.headers["Location"] == "/base/builds/some-build"
    cookie = answer.headers["Set-Cookie"]
    assert "Secure" in cookie
    assert "Path=/base/" in cookie
    evil = client.post("/base/login", data={**data, "build": "//evil.example"}, headers=HTML)
    assert not evil.headers["Location"].startswith(("//", "http"))
    assert client.post("/base/logout", data=data, headers=HTML).status_code == 403, "that is not of this session"
    kept = client.get_cookie(SESSION, path="/base/")
    assert kept
    out = client.post("/base/logout", data={"form": form(client.get("/base/", headers=HTML))}, headers=HTML)
    assert out.status_code == 303
    assert f"{SESSION}=;" in out.headers["Set-Cookie"]
    client.set_cookie(SESSION, kept.value, path="/base/")
    assert client.get("/base/api/v1/builds").status_code == 401


def test_what_a_form_holds_is_good_for_that_form_alone(harnesses: Callable[..., Harness]) -> None:
    """A service worker of another page on this host can read what a form sends, so its token must fit no other form."""
    client = harnesses(auth=["token"]).client
    sign_in(client)
    own = {"X-Xsrftoken": shown(client.get("/", headers=HTML))}
    path = f"/builds/{client.post('/api/v1/builds', json=body(), headers=own).json['name']}"  # type: ignore[index]
    page = client.get(path, headers=HTML)
    out, cancel = re.findall(r'name="form" value="(\w+)"', page.text)
    assert len({out, cancel, shown(page)}) == 3
    for wrong in (out, shown(page)):
        assert client.post(f"{path}/cancel", data={"form": wrong}, headers=HTML).status_code == 403
    for value in (out, cancel):
        assert client.post("/api/v1/builds", json=body(), headers={"X-Xsrftoken": value}).status_code == 403
    assert client.post(f"{path}/cancel", data={"form": cancel}, headers=HTML).status_code == 303


def test_scripts_and_styles_are_those_that_the_page_names(harness: Harness) -> None:
    page = harness.client.get("/", headers=HTML).text
    named = re.findall(r'(?:src|href)="(/static/kiln\.(?:js|css))" integrity="sha384-([^"]+)"', page)
    assert len(named) == 2
    for path, digest in named:
        with harness.client.get(path) as answer:
            assert base64.b64encode(hashlib.sha384(answer.data).digest()).decode() == digest


def test_a_login_that_no_page_of_ours_sent_is_refused(harnesses: Callable[..., Harness]) -> None:
    answer = harnesses(auth=["token"]).client.post("/login", data={"token": TOKEN}, headers=HTML)
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


NAVIGATES = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize("path", ["/", "/builds/{}", "/api/v1/builds", "/api/v1/builds/{}", "/api/v1/builds/{}/log"])
@pytest.mark.parametrize("auth", ["token", "local"])
def test_another_page_of_the_same_origin_reads_nothing(harnesses: Callable[..., Harness], path: str, auth: str) -> None:
    harness = harnesses(auth=[auth], loopback_only=auth == "local")
    client = harness.client
    sign_in(client)
    page = client.get("/", headers=HTML)
    asked = client.post("/api/v1/builds", json=body(), headers={"X-Xsrftoken": shown(page)})
    path = path.format(asked.json["name"])
    for changed in (
        {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Mode": "same-origin", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
        {"Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Dest": "empty"},
        {"Service-Worker-Navigation-Preload": "true"},
    ):
        headers = {**HTML, **NAVIGATES, **changed}
        assert client.get(path, headers=headers).status_code == 403, changed
        assert client.get(path, headers={**headers, "X-Xsrftoken": "0" * 64}).status_code == 403
        assert client.get(path, headers={**headers, "X-Xsrftoken": shown(page)}).status_code == 200
    opened = client.get(path, headers={**HTML, **NAVIGATES})
    assert opened.status_code == 200
    assert opened.headers["Cross-Origin-Opener-Policy"] == "noopener-allow-popups"
    assert opened.headers["X-Frame-Options"] == "DENY"


def test_a_browser_that_does_not_say_what_it_loads_is_believed_where_the_origin_is_ours(
    harnesses: Callable[..., Harness],
) -> None:
    for base, status in (("/", 200), ("/services/binder/", 403)):
        client = harnesses(auth=["token"], base_path=base).client
        page = client.get(base, headers=HTML)
        client.post(f"{base}login", data={"form": form(page), "token": TOKEN}, headers=HTML)
        assert client.get(base, headers={**HTML, "User-Agent": "Mozilla/5.0"}).status_code == status


def test_a_token_needs_no_xsrf(harnesses: Callable[..., Harness]) -> None:
    client = harnesses(auth=["token"]).client
    sign_in(client)
    headers = {**bearer(), "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    assert client.post("/api/v1/builds", json=body(), headers=headers).status_code == 202
    assert client.get("/api/v1/builds", headers={"Authorization": f"token {TOKEN}"}).status_code == 200


def test_the_address_with_this_machines_token_becomes_a_cookie(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["local"], loopback_only=True)
    client = harness.client
    assert client.get("/", headers=HTML).status_code == 401
    assert client.get("/?token=wrong", headers=HTML).status_code == 401
    assert client.get(f"/api/v1/builds?token={TOKEN}").status_code == 401
    answer = client.get(f"/?token={TOKEN}&state=failed", headers=HTML)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/?state=failed")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert "Sign out" in client.get("/", headers=HTML).text
    asked = harness.client.post("/api/v1/builds", json=body(), headers=bearer())
    assert (asked.status_code, asked.json["causes"][0]["by"]) == (202, None)
    for sent in ({"Host": "evil.example"}, {"X-Forwarded-For": "1.2.3.4"}, {"Origin": "https://evil.example"}):
        assert client.get("/", headers={**HTML, **sent}).status_code == 403
        assert harness.client.get("/api/v1/builds", headers={**bearer(), **sent}).status_code == 403


@pytest.mark.parametrize("path", ["/", "/build/gh/octo/stats/main", "/api/v1/builds"])
def test_who_only_comes_from_this_machine_is_nobody(harnesses: Callable[..., Harness], path: str) -> None:
    harness = harnesses(auth=["local"], loopback_only=True)
    answer = harness.client.get(path)
    assert answer.status_code == 401 or '"status_code": 401' in answer.text
    assert not harness.builds()


@pytest.mark.parametrize("path", ["/versions", "/health", "/api/repoproviders"])
def test_what_binderhub_tells_everybody(harnesses: Callable[..., Harness], path: str) -> None:
    assert harnesses(auth=["token"]).client.get(path).status_code == 200
