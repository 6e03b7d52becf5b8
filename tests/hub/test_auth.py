"""Authentication by a real JupyterHub: Kiln as a service of it, with tokens and in a browser."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests

from builds.clients.jupyterhub import TIMEOUT
from tests.parts.hub import Hub
from tests.parts.kiln import ROOT, Kiln, until
from tests.parts.proxy import Proxy
from tests.parts.registry import free_port

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WANTED = {"repository": "https://github.com/octo/stats", "commit": COMMIT}
HTML = {"Accept": "text/html"}
BUILD = f"build/gh/octo/stats/{COMMIT}"

CONFIG = """
c.JupyterHub.services += [
    {{"name": "binder", "url": {url!r}, "api_token": {token!r}, "oauth_no_confirm": True}},
    {{
        "name": "managed",
        "url": {managed!r},
        "command": {command!r},
        "cwd": {cwd!r},
        "environment": {environment!r},
        "oauth_no_confirm": True,
    }},
    {{"name": "robot", "api_token": {robot!r}}},
]
access = ["access:services!service=binder", "access:services!service=managed"]
c.JupyterHub.load_roles += [
    {{"name": "builders", "users": ["ada", "grace", "root"], "services": ["robot"], "scopes": access}},
]
c.JupyterHub.load_groups = {{"staff": {{"users": ["ada"]}}}}
c.Authenticator.admin_users = {{"root"}}
"""


class World:
    """A Hub, Kiln as its service `binder` that it does not run itself, and what can fail between the two."""

    def __init__(self, hub: Hub, kiln: Kiln, between: Proxy, robot: str) -> None:
        self.hub, self.kiln, self.between, self.robot = hub, kiln, between, robot
        self.url = f"{hub.url}services/binder/"
        self.direct = str(kiln.processes[-1].url)

    def token(self, user: str, **more: object) -> str:
        answer = self.hub.api("POST", f"users/{user}/tokens", more)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def get(self, path: str = "api/v1/builds", token: str | None = None, **more: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", headers=bearer(token), timeout=30, **more)

    def ask(self, token: str, **more: object) -> requests.Response:
        return requests.post(f"{self.url}api/v1/builds", json={**WANTED, **more}, headers=bearer(token), timeout=30)


def bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, packages: Any) -> Iterator[World]:
    port, managed, robot, token = free_port(), free_port(), secrets.token_hex(16), secrets.token_hex(16)
    folder = tmp_path_factory.mktemp("auth")
    config = CONFIG.format(
        url=f"http://127.0.0.1:{port}",
        token=token,
        robot=robot,
        managed=f"http://127.0.0.1:{managed}",
        command=[sys.executable, "-m", "kiln", "web"],
        cwd=str(ROOT),
        environment={
            "KILN_AUTH": "hub",
            "KILN_IMAGE_PREFIX": "registry.invalid/",
            "KILN_STATE_DIR": str(folder / "managed"),
            "KILN_OPS_PORT": str(free_port()),
        },
    )
    hub = Hub(folder / "hub", config=config)
    internal = urlsplit(hub.internal)
    with Proxy((str(internal.hostname), int(internal.port or 0))) as between:
        told = {
            "JUPYTERHUB_SERVICE_NAME": "binder",
            "JUPYTERHUB_SERVICE_PREFIX": "/services/binder/",
            "JUPYTERHUB_API_URL": f"http://{between.address}/hub/api",
            "JUPYTERHUB_API_TOKEN": token,
        }
        with Kiln(folder, KILN_AUTH="hub", **told) as kiln:
            kiln.start("web", PORT=str(port))
            with hub:
                for user in ("ada", "grace", "kim", "root"):
                    if hub.api("GET", f"users/{user}").status_code != 200:
                        hub.add_user(user)
                yield World(hub, kiln, between, robot)


# Tokens --------------------------------------------------------------------------------------------------------------


def test_a_users_token_asks_and_says_who_asked(world: World) -> None:
    answer = world.ask(world.token("ada"), subdir="asked")
    assert answer.status_code == 202, answer.text
    (cause,) = answer.json()["causes"]
    assert cause["by"] == "user:ada"
    assert world.get(f"builds/{answer.json()['name']}", world.token("grace"), params={}).status_code == 200
    scheme = requests.get(
        f"{world.url}api/v1/builds", headers={"Authorization": f"token {world.token('ada')}"}, timeout=30
    )
    assert scheme.status_code == 200


def test_events_are_taken_from_who_has_access(world: World) -> None:
    headers = {"Content-Type": "application/cloudevents+json"}
    data = {**WANTED, "subdir": "event"}
    event = {"specversion": "1.0", "id": "1", "source": "/tests", "type": "dev.kiln.build.requested.v1", "data": data}

    def send(token: str | None) -> requests.Response:
        return requests.post(f"{world.url}events", json=event, headers={**bearer(token), **headers}, timeout=30)

    statuses = [send(token).status_code for token in (None, "wrong", world.token("kim"), world.robot)]
    assert statuses == [401, 401, 403, 202]


def test_a_services_token_is_a_services(world: World) -> None:
    assert world.ask(world.robot, subdir="robot").json()["causes"][0]["by"] == "service:robot"


def test_only_the_asker_or_an_admin_cancels(world: World) -> None:
    def cancel(name: str, token: str) -> int:
        return requests.delete(f"{world.url}api/v1/builds/{name}", headers=bearer(token), timeout=30).status_code

    ada, grace, root = (world.token(user) for user in ("ada", "grace", "root"))
    own, others = (world.ask(ada, subdir=folder).json()["name"] for folder in ("own", "others"))
    assert cancel(own, grace) == 403
    assert cancel(own, ada) == 202
    assert cancel(others, root) == 202


def test_who_has_no_access_is_known_and_refused(world: World) -> None:
    foreign = world.token("kim")
    scopeless = world.token("ada", scopes=["read:users:name!user=ada"])
    for token in (foreign, scopeless):
        assert world.get(token=token).status_code == 403
        assert "access:services!service=binder" in world.get(token=token).json()["detail"]
        assert refusal(world.get(BUILD, token)) == 403


def test_what_is_no_token_or_no_longer_one(world: World) -> None:
    expired = world.token("ada", expires_in=1)
    until(lambda: world.hub.api("GET", "user", token=expired).status_code == 403)
    for token in ("wrong", expired, "", None):
        assert world.get(token=token).status_code == 401
        assert refusal(world.get(BUILD, token)) == 401


def test_a_token_in_an_address_is_refused(world: World) -> None:
    token = world.token("ada")
    assert world.get("api/v1/builds", params={"token": token}).status_code == 401
    assert refusal(world.get(BUILD, params={"token": token, "build_only": "true"})) == 401
    assert refusal(world.get(BUILD, token, params={"token": token})) == 400


def test_a_revoked_token_is_refused_within_a_minute(world: World) -> None:
    made = world.hub.api("POST", "users/grace/tokens", {}).json()
    assert world.get(token=made["token"]).status_code == 200
    assert world.hub.api("DELETE", f"users/grace/tokens/{made['id']}").status_code == 204
    until(lambda: world.get(token=made["token"]).status_code == 401, 50)


def refusal(answer: requests.Response) -> int:
    """The status in the one event of a refusal."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream")
    (data,) = re.findall(r"^data: (.*)$", answer.text, re.MULTILINE)
    message = json.loads(data)
    assert message["phase"] == "failed"
    assert message["message"].strip()
    return int(message["status_code"])


# A browser -----------------------------------------------------------------------------------------------------------


def sign_in(hub: Hub, user: str, path: str) -> tuple[requests.Session, requests.Response]:
    """Opens a page as a browser does, signs in at the Hub, and returns the page at the end of the redirects."""
    browser = requests.Session()
    browser.headers.update(HTML)
    page = browser.get(f"{hub.url}{path}", timeout=30)
    assert urlsplit(page.url).path == "/hub/login", page.url
    form = re.search(r'name="_xsrf" value="([^"]+)"', page.text)
    assert form, page.text
    data = {"username": user, "password": "", "_xsrf": form[1]}
    action = re.search(r'<form action="([^"]+)"', page.text)
    assert action
    target = f"{hub.url.rstrip('/')}{action[1].replace('&amp;', '&')}"
    return browser, browser.post(target, data=data, timeout=30)


def form(page: requests.Response, does: str) -> dict[str, str]:
    """The field of the page's form whose address ends in `does`."""
    found = re.search(rf'action="[^"]*/{does}">\s*<input type="hidden" name="form" value="([\w-]+)"', page.text)
    assert found, page.text
    return {"form": found[1]}


@pytest.mark.parametrize("service", ["binder", "managed"])
def test_signing_in_leads_to_the_page_that_was_asked_for(world: World, service: str) -> None:
    browser, page = sign_in(world.hub, "ada", f"services/{service}/?state=failed")
    assert page.status_code == 200, page.text
    assert urlsplit(page.url).path == f"/services/{service}/"
    assert urlsplit(page.url).query == "state=failed"
    assert "<h1>Builds</h1>" in page.text
    assert "user:ada" in page.text
    ours = [cookie for cookie in browser.cookies if cookie.path == f"/services/{service}/"]
    (session,) = [cookie for cookie in ours if cookie.name == "kiln-hub-session"]
    assert "HttpOnly" in session._rest  # type: ignore[attr-defined]
    assert browser.get(f"{world.hub.url}services/{service}/api/v1/builds", timeout=30).status_code == 200


def test_a_session_does_things_only_with_what_its_own_pages_hold(world: World) -> None:
    browser, _ = sign_in(world.hub, "ada", "services/binder/")
    url = f"{world.url}api/v1/builds"
    wanted = {**WANTED, "subdir": "session"}
    assert browser.post(url, json=wanted, timeout=30).status_code == 403
    assert refusal(browser.get(f"{world.url}{BUILD}", timeout=30)) == 403
    (xsrf,) = [
        cookie.value for cookie in browser.cookies if (cookie.name, cookie.path) == ("_xsrf", "/services/binder/")
    ]
    shown = {"X-Xsrftoken": str(xsrf)}
    assert browser.post(url, json=wanted, headers={"X-Xsrftoken": "x" * 64}, timeout=30).status_code == 403
    made = browser.post(url, json=wanted, headers=shown, timeout=30)
    assert made.status_code == 202, made.text
    assert made.json()["causes"][0]["by"] == "user:ada"
    stranger = {**shown, "Sec-Fetch-Site": "same-site"}
    assert browser.post(url, json=wanted, headers=stranger, timeout=30).status_code == 403
    name = made.json()["name"]
    page = browser.get(f"{world.url}builds/{name}", timeout=30)
    cancelled = browser.post(f"{world.url}builds/{name}/cancel", data=form(page, "cancel"), timeout=30)
    assert cancelled.status_code == 200
    with browser.get(f"{world.url}{BUILD}", headers=shown, timeout=30, stream=True) as followed:
        first = next(line for line in followed.iter_lines() if line.startswith(b"data: "))
        assert json.loads(first.removeprefix(b"data: "))["phase"] == "waiting"


def test_signing_out(world: World) -> None:
    browser, page = sign_in(world.hub, "ada", "services/binder/")
    out = browser.post(f"{world.url}logout", data=form(page, "logout"), timeout=30)
    leads = re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', out.text)
    assert leads
    at_the_hub = browser.get(urljoin(out.url, leads[1]), timeout=30)
    assert urlsplit(at_the_hub.url).path == "/hub/login", "it has ended at the Hub, too"
    assert browser.get(f"{world.url}api/v1/builds", headers={"Accept": "*/*"}, timeout=30).status_code == 401


def test_who_has_no_access_does_not_get_in_by_signing_in(world: World) -> None:
    _, page = sign_in(world.hub, "kim", "services/binder/")
    assert page.status_code == 403


def test_a_sign_in_that_was_begun_elsewhere_ends_nowhere(world: World) -> None:
    browser = requests.Session()
    begun = requests.get(world.url, headers=HTML, timeout=30, allow_redirects=False)
    state = re.search(r"state=([^&]+)", begun.headers["Location"])
    assert state
    back = browser.get(f"{world.url}oauth_callback?code=x&state={state[1]}", headers=HTML, timeout=30)
    assert (back.status_code, "began in another browser" in back.text) == (403, True)
    own = requests.Session()
    begun = own.get(world.url, headers=HTML, timeout=30, allow_redirects=False)
    state = re.search(r"state=([^&]+)", begun.headers["Location"])
    assert state
    back = own.get(f"{world.url}oauth_callback?code=x&state={state[1]}", headers=HTML, timeout=30)
    assert (back.status_code, "does not know this sign-in" in back.text) == (403, True)


# A Hub that is away --------------------------------------------------------------------------------------------------


def timed(ask: Callable[[], requests.Response]) -> tuple[requests.Response, float]:
    began = time.monotonic()
    answer = ask()
    return answer, time.monotonic() - began


def direct(world: World, path: str, token: str) -> requests.Response:
    """Requests a path past the Hub's proxy, which goes away with the Hub."""
    return requests.get(f"{world.direct}{path}", headers=bearer(token), timeout=30)


def check_closed(world: World) -> None:
    for path in ("api/v1/builds", BUILD):
        answer, took = timed(lambda path=path: direct(world, path, secrets.token_hex(16)))  # type: ignore[misc]
        assert took < TIMEOUT, "only a Hub that says nothing is waited for"
        if path == BUILD:
            assert refusal(answer) == 503
        else:
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_a_hub_that_is_down_lets_nobody_in_and_keeps_nobody_waiting(world: World) -> None:
    token = world.token("ada")
    world.between.refuse()
    try:
        check_closed(world)
        assert direct(world, "api/v1/builds", token).status_code == 503
        page = requests.get(f"{world.direct}oauth_callback?state=x", headers=HTML, timeout=30)
        assert page.status_code == 403
    finally:
        world.between.accept()
    until(lambda: direct(world, "api/v1/builds", token).status_code == 200)


def test_a_hub_that_says_nothing_is_waited_for_a_few_seconds_by_few(world: World) -> None:
    """All requests together take at most one wait longer than requests that need no answer of the Hub."""

    def crowd(ask: Callable[[], requests.Response]) -> tuple[list[requests.Response], float, float]:
        """A hundred answers, the seconds that the last of them took, and those of a page that is open to all."""
        with ThreadPoolExecutor(100) as many:
            asked = [many.submit(timed, ask) for _ in range(100)]
            page, took = timed(lambda: requests.get(f"{world.direct}login", timeout=30))
            answers = [each.result() for each in asked]
        assert page.status_code == 200
        return [answer for answer, _ in answers], max(seconds for _, seconds in answers), took

    _, usual, _ = crowd(lambda: requests.get(f"{world.direct}login", timeout=30))
    world.between.drop = True
    try:
        answers, longest, page = crowd(lambda: direct(world, "api/v1/builds", secrets.token_hex(16)))
        assert {answer.status_code for answer in answers} == {503}
        assert page < usual + 3
        assert longest < usual + 8
    finally:
        world.between.drop = False
        world.between.cut()
    token = world.token("ada")
    until(lambda: direct(world, "api/v1/builds", token).status_code == 200)


def test_a_hub_that_is_slow_is_waited_for(world: World) -> None:
    token = world.token("grace")
    world.between.delay = 1.0
    try:
        answer, took = timed(lambda: direct(world, "api/v1/builds", token))
        assert answer.status_code == 200
        assert took >= 1.0
        assert timed(lambda: direct(world, "api/v1/builds", token))[1] < 1.0, "what it said holds for a while"
    finally:
        world.between.delay = 0.0


def test_a_hub_that_restarts_is_as_good_as_before(world: World) -> None:
    browser, _ = sign_in(world.hub, "ada", "services/binder/")
    token = world.token("grace")
    world.hub.stop()
    check_closed(world)
    world.hub.start()
    until(lambda: world.get(token=token).status_code == 200)
    assert browser.get(f"{world.url}api/v1/builds", timeout=30).status_code == 200
