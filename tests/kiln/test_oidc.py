"""A real OpenID Connect provider and a real web: a browser's sign-in, tokens for the API, and senders of events."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests

from tests.parts.kiln import Kiln
from tests.parts.provider import Provider
from tests.parts.registry import free_port

PAGE = {"Accept": "text/html"}
BODY = {"repository": "https://github.com/octo/stats", "commit": "1" * 40}
EVENT = {"specversion": "1.0", "id": "1", "source": "/t", "type": "com.example.course", "data": {}}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    users = ({"sub": "ada", "groups": ["staff"]}, {"sub": "root", "groups": ["staff", "kiln-admins"]})
    with Provider(tmp_path_factory.mktemp("provider"), *users) as provider:
        yield provider


@pytest.fixture(scope="module")
def url(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of web."""
    folder, port = tmp_path_factory.mktemp("kiln"), free_port()
    secret = folder / "secrets" / "oidc" / "client-secret"
    secret.parent.mkdir(parents=True)
    secret.write_text("a canary of the client\n")
    settings = {
        "PORT": str(port),
        "KILN_AUTH": "oidc",
        "KILN_BASE_PATH": "/kiln/",
        "KILN_PUBLIC_URL": f"http://127.0.0.1:{port}/kiln/",
        "KILN_SECRETS_DIR": str(folder / "secrets"),
        "KILN_OIDC_ISSUER": provider.url,
        "KILN_OIDC_AUDIENCE": "kiln-api",
        "KILN_OIDC_CLIENT_ID": "kiln-pages",
        "KILN_OIDC_ADMIN_GROUP": "kiln-admins",
        "KILN_OIDC_SUBJECTS": "bot-*",
    }
    with Kiln(folder, **settings) as kiln:
        web = kiln.start("web", PORT=str(port))
        assert web.url
        yield web.url
        assert "canary" not in web.log.read_text()


def test_a_browser_signs_in_and_out(provider: Provider, url: str) -> None:
    with requests.Session() as browser:
        begun = browser.get(f"{url}?state=failed", headers=PAGE, allow_redirects=False, timeout=20)
        back = provider.sign_in(browser, begun.headers["Location"], "ada")
        assert back.startswith(f"{url}oidc_callback?")
        page = browser.get(back, headers=PAGE, timeout=20)
        assert page.url == f"{url}?state=failed"
        assert "oidc:ada" in page.text
        again = browser.get(back, headers=PAGE, timeout=20)
        assert again.status_code == 403, "a code is good once"
        form = page.text.partition('name="form" value="')[2].partition('"')[0]
        out = browser.post(f"{url}logout", data={"form": form}, headers=PAGE, timeout=20)
        assert provider.url.rpartition(":")[0].partition("//")[2] in out.text
        assert browser.get(f"{url}api/v1/builds", timeout=20).status_code == 401


@pytest.mark.parametrize(("sub", "admin"), [("ada", False), ("root", True)])
def test_a_token_of_a_program(provider: Provider, url: str, sub: str, admin: bool) -> None:
    headers = {"Authorization": f"Bearer {provider.id_token('kiln-api', sub)}"}
    answer = requests.post(f"{url}api/v1/builds", json=BODY, headers=headers, timeout=20)
    assert answer.status_code == 202
    assert f"oidc:{sub}" in [cause["by"] for cause in answer.json()["causes"]]
    how = requests.post(f"{url}api/v1/builds", json={**BODY, "tags": ["x"]}, headers=headers, timeout=20)
    assert how.status_code == (202 if admin else 403)


def test_a_token_for_the_pages_is_none_for_the_api(provider: Provider, url: str) -> None:
    headers = {"Authorization": f"Bearer {provider.id_token('kiln-pages', 'root')}"}
    answer = requests.get(f"{url}api/v1/builds", headers=headers, timeout=20)
    assert (answer.status_code, "audience" in answer.headers["WWW-Authenticate"]) == (401, True)


@pytest.mark.parametrize(("sub", "status"), [("bot-1", 204), ("ada", 403), ("root", 204)])
def test_who_sends_any_event(provider: Provider, url: str, sub: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {provider.id_token('kiln-api', sub)}"}
    kind = {"Content-Type": "application/cloudevents+json"}
    assert requests.post(f"{url}events", json=EVENT, headers=headers | kind, timeout=20).status_code == status


def test_what_verifies_tokens_is_not_loaded_where_nobody_sends_any() -> None:
    program = "import sys, handlers.app, kiln.wiring; print({'jwt', 'cryptography'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"
