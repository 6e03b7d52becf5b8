"""A real Gitea in a container, on loopback, and what people do with it: repositories, pushes, webhooks.

    with Gitea(folder, web="http://127.0.0.1:8000/") as gitea:
        gitea.create("sample")
        gitea.hook("sample", "gitea", secret)
        gitea.push("sample", {"README.md": "hello"})
        delivery = gitea.delivered(lambda one: one.event == "push")

Its webhooks come to Kiln through here, and what Kiln answered is kept.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

import requests

from tests.parts.githost import git
from tests.parts.kiln import until
from tests.parts.registry import free_port

IMAGE = "gitea/gitea:1.27"
OWNER = "ada"
KEEP = "--must-change-password=false"
START = "chmod -f u+w /etc/gitea/app.ini; exec /usr/bin/entrypoint"
"""An image that was built from read-only files copies its settings so that it cannot change them."""


@dataclass(frozen=True)
class Delivery:
    """A delivery of Gitea, with Kiln's answer."""

    id: str
    event: str
    payload: dict[str, Any]
    status: int
    answer: dict[str, Any]

    @property
    def ref(self) -> str:
        return str(self.payload["ref"])


def missing() -> str | None:
    """Why Gitea cannot run here; `None` where it can."""
    for command in (["docker", "image", "inspect", IMAGE], ["docker", "pull", "--quiet", IMAGE]):
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return None
    return f"the image {IMAGE} is not here and cannot be pulled"


def _docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True)


class Gitea:
    """`web` is Kiln's address, with a slash at its end. Clones are under `folder`."""

    def __init__(self, folder: Path, web: str) -> None:
        self.folder, self.web = folder, web
        self.host = f"127.0.0.1:{free_port()}"
        self.deliveries: list[Delivery] = []
        self._password = secrets.token_urlsafe(16)
        self._name = f"kiln-gitea-{secrets.token_hex(4)}"
        gitea = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                gitea._forward(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._between = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> Self:
        settings = {
            "GITEA__server__HTTP_ADDR": "127.0.0.1",
            "GITEA__server__HTTP_PORT": self.host.rpartition(":")[2],
            "GITEA__server__ROOT_URL": f"http://{self.host}/",
            "GITEA__security__INSTALL_LOCK": "true",
            "GITEA__webhook__ALLOWED_HOST_LIST": "*",
        }
        given = [f"--env={name}={value}" for name, value in settings.items()]
        options = [f"--name={self._name}", "--network=host", "--entrypoint=/bin/sh", *given]
        _docker("run", "--detach", *options, IMAGE, "-c", START)
        threading.Thread(target=self._between.serve_forever, daemon=True).start()
        try:
            until(self._answers, 60)
            person = [f"--username={OWNER}", f"--password={self._password}", f"--email={OWNER}@example.com"]
            _docker("exec", "--user=git", self._name, "gitea", "admin", "user", "create", "--admin", *person, KEEP)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", self._name], check=False, capture_output=True)
        self._between.shutdown()
        self._between.server_close()

    # Actions of people ------------------------------------------------------------------------------------------------

    def create(self, name: str, *, private: bool = False) -> str:
        """Creates a repository and returns its address."""
        self._api("POST", "user/repos", {"name": name, "private": private, "default_branch": "main"})
        git("init", "--quiet", "--initial-branch=main", str(self.folder / name))
        return f"http://{self.host}/{OWNER}/{name}"

    def hook(self, repository: str, kind: str, secret: str, *, word: str = "gitea", form: bool = False) -> int:
        """Creates a webhook for all events, which posts to Kiln's route of that word. Raises requests.HTTPError."""
        port = self._between.server_address[1]
        config = {"url": f"http://127.0.0.1:{port}/webhooks/{word}", "content_type": "form" if form else "json"}
        requests = ["pull_request", "pull_request_label", "pull_request_sync"]
        events = ["create", "delete", "push", "release", *requests]
        body = {"type": kind, "active": True, "events": events, "config": {**config, "secret": secret}}
        made = self._api("POST", f"repos/{OWNER}/{repository}/hooks", body)
        return int(made["id"])

    def guest(self, name: str) -> None:
        """Creates another account, which may read only public repositories."""
        person = {"username": name, "email": f"{name}@example.com", "must_change_password": False}
        self._api("POST", "admin/users", {**person, "password": self._password})

    def fork(self, repository: str, name: str) -> None:
        """Forks the owner's repository into the account `name`."""
        self._api("POST", f"repos/{OWNER}/{repository}/forks", {}, by=name)

    def request(self, repository: str, head: str, base: str = "main", *, by: str = OWNER) -> int:
        """Opens a pull request and returns its number. Gitea learns of a branch a moment after the push."""
        until(lambda: self._has(f"repos/{by}/{repository}/branches/{head}"), 30)
        until(lambda: self._has(f"repos/{OWNER}/{repository}/branches/{base}"), 30)
        body = {"title": head, "head": head if by == OWNER else f"{by}:{head}", "base": base}
        return int(self._api("POST", f"repos/{OWNER}/{repository}/pulls", body, by=by)["number"])

    def close(self, repository: str, number: int) -> None:
        self._api("PATCH", f"repos/{OWNER}/{repository}/pulls/{number}", {"state": "closed"})

    def remove_hook(self, repository: str, number: int) -> None:
        self._api("DELETE", f"repos/{OWNER}/{repository}/hooks/{number}")

    def test(self, repository: str, number: int) -> None:
        """Presses the test button of a webhook."""
        self._api("POST", f"repos/{OWNER}/{repository}/hooks/{number}/tests")

    def commit(self, repository: str, files: Mapping[str, str], *options: str) -> str:
        clone = self.folder / repository
        for name, content in files.items():
            (clone / name).write_text(content)
        git("add", ".", cwd=clone)
        git("commit", "--quiet", "--message", "A change", *options, cwd=clone)
        return git("rev-parse", "HEAD", cwd=clone).strip()

    def push(self, repository: str, *what: str, by: str = OWNER, to: str = OWNER) -> None:
        git("push", "--quiet", self.credential(repository, by, to), *what, cwd=self.folder / repository)

    def credential(self, repository: str, by: str = OWNER, to: str = OWNER) -> str:
        """The address of a repository of the account `to`, with the credential of `by` in it."""
        return f"http://{by}:{self._password}@{self.host}/{to}/{repository}.git"

    def token(self, *scopes: str) -> str:
        """A new access token of its one account."""
        body = {"name": secrets.token_hex(4), "scopes": scopes}
        return str(self._api("POST", f"users/{OWNER}/tokens", body)["sha1"])

    def status(self, repository: str, commit: str) -> dict[str, Any]:
        """All statuses of a commit, and their combined state."""
        return self._api("GET", f"repos/{OWNER}/{repository}/commits/{commit}/status")

    def comments(self, repository: str, number: int) -> list[dict[str, Any]]:
        """The comments of a pull request, oldest first."""
        found: Any = self._api("GET", f"repos/{OWNER}/{repository}/issues/{number}/comments")
        return list(found)

    def delivered(self, wanted: Callable[[Delivery], bool]) -> Delivery:
        """The delivery, as soon as Kiln has answered it."""
        until(lambda: any(map(wanted, list(self.deliveries))), 30)
        return next(filter(wanted, self.deliveries))

    # How it works -----------------------------------------------------------------------------------------------------

    def _answers(self) -> bool:
        try:
            return requests.get(f"http://{self.host}/api/healthz", timeout=5).ok
        except requests.RequestException:
            return False

    def _has(self, path: str) -> bool:
        try:
            return bool(self._api("GET", path))
        except requests.HTTPError:
            return False

    def _api(self, verb: str, path: str, body: object = None, *, by: str = OWNER) -> dict[str, Any]:
        """Raises requests.HTTPError."""
        url = f"http://{self.host}/api/v1/{path}"
        answer = requests.request(verb, url, json=body, auth=(by, self._password), timeout=30)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def _forward(self, came: BaseHTTPRequestHandler) -> None:
        body = came.rfile.read(int(came.headers["Content-Length"]))
        headers = {name: value for name, value in came.headers.items() if name not in ("Host", "Accept-Encoding")}
        url = f"{self.web}{came.path.lstrip('/')}"
        answer = requests.post(url, data=body, headers=headers, timeout=30, allow_redirects=False)
        text = parse_qs(body.decode())["payload"][0] if "form" in headers["Content-Type"] else body.decode()
        came.send_response(answer.status_code)
        came.send_header("Content-Length", str(len(answer.content)))
        came.end_headers()
        came.wfile.write(answer.content)
        id_, event = headers["X-Gitea-Delivery"], headers["X-Gitea-Event"]
        self.deliveries.append(Delivery(id_, event, json.loads(text), answer.status_code, answer.json()))
