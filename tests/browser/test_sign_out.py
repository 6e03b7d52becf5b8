"""Signing out where the Hub is on another host, and the service that knows its users on a third, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from playwright.sync_api import Page, expect

from tests.parts.hubapi import HubApi
from tests.parts.kiln import Kiln

COOKIE = "kiln-hub-session"


@pytest.fixture
def hub() -> Iterator[HubApi]:
    with HubApi() as hub:
        hub.codes["code"] = hub.add("ada's")
        yield hub


@pytest.fixture
def url(tmp_path: Path, hub: HubApi) -> Iterator[str]:
    """The URL of web. To the browser it is at 127.0.0.1, and the Hub at `localhost`: two hosts."""
    told = {
        "JUPYTERHUB_API_URL": hub.url,
        "JUPYTERHUB_API_TOKEN": "of-the-service",
        "JUPYTERHUB_SERVICE_NAME": "binder",
        "JUPYTERHUB_HOST": f"http://localhost:{urlsplit(hub.url).port}",
    }
    with Kiln(tmp_path, KILN_AUTH="hub", **told) as kiln:
        web = kiln.start("web")
        assert web.url
        yield web.url


def sign_in(page: Page, url: str) -> None:
    """Signs in without the Hub's own pages."""
    with requests.Session() as browser:
        begun = browser.get(f"{url}login/hub", allow_redirects=False, timeout=20)
        state = parse_qs(urlsplit(begun.headers["Location"]).query)["state"][0]
        browser.get(f"{url}oauth_callback", params={"code": "code", "state": state}, timeout=20)
        cookie = {"name": COOKIE, "value": browser.cookies[COOKIE], "url": url}
    page.context.add_cookies([cookie])  # type: ignore[list-item]


def test_it_ends_at_both_and_wherever_the_hub_leads_then(page: Page, url: str, hub: HubApi) -> None:
    hub.moved["/hub/logout"] = f"http://other.localhost:{urlsplit(hub.url).port}/ended"
    sign_in(page, url)
    page.goto(url)
    expect(page.get_by_text("user:ada")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("http://other.localhost:*/ended")
    expect(page.get_by_role("heading", name="/ended")).to_be_visible()
    assert COOKIE not in [one["name"] for one in page.context.cookies(url)]
