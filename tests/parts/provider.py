"""A real OpenID Connect provider: oidc-provider-mock, on Authlib, as a process.

A browser may sign in as any user. Codes, tokens and keys are those of any other provider.

    with Provider(folder, {"sub": "ada", "groups": ["staff"]}) as provider:
        back = provider.sign_in(session, address, "ada")     # where it sends the browser
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import requests

from tests.parts.kiln import get, until
from tests.parts.registry import free_port


class Provider:
    def __init__(self, folder: Path, *users: dict[str, Any]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        known = [argument for user in users for argument in ("--user-claims", json.dumps(user))]
        with (folder / "provider.log").open("wb") as log:
            command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), *known]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def __enter__(self) -> Self:
        until(lambda: get(f"{self.url}/jwks")[0] == 200)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def sign_in(self, browser: requests.Session, address: str, sub: str) -> str:
        """The URL to which it sends a browser that opened this address and signed in as `sub`."""
        assert address.startswith(f"{self.url}/oauth2/authorize?")
        assert browser.get(address, timeout=20).status_code == 200
        done = browser.post(address, data={"sub": sub}, allow_redirects=False, timeout=20)
        assert done.status_code == 302, done.text
        return done.headers["Location"]

    def id_token(self, client: str, sub: str) -> str:
        """An ID token that another client obtains by a sign-in of its own."""
        asked = {"response_type": "code", "client_id": client, "redirect_uri": "http://127.0.0.1/x", "scope": "openid"}
        with requests.Session() as browser:
            back = self.sign_in(browser, f"{self.url}/oauth2/authorize?{urlencode({**asked, 'nonce': 'n'})}", sub)
            form = {"grant_type": "authorization_code", "code": back.partition("code=")[2].partition("&")[0]}
            form |= {"redirect_uri": asked["redirect_uri"]}
            answer = browser.post(f"{self.url}/oauth2/token", data=form, auth=(client, "any"), timeout=20)
        token: str = answer.json()["id_token"]
        return token
