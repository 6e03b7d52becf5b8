"""The API of a Git host on loopback, as its documentation has it: statuses of commits and comments of requests.

    with StatusHost("github") as host:
        host.say(Say(403, {"Retry-After": "1"}))      # to the next request; the rest is answered as documented
        ...
        assert host.state(commit, "kiln/courses") == "success"

It keeps statuses and comments, refuses other tokens, and can be slow, down, or moved.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "canary-of-the-statuses"
PATH = "lab/sample"


@dataclass(frozen=True)
class Say:
    """An answer in place of the documented one, and after how long."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: object = None
    after: float = 0.0


@dataclass(frozen=True)
class Asked:
    """One request, as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    at: float
    status: int


class StatusHost:
    """`kind` is a webhook route's word. `users` are the accounts by the value of `Authorization`."""

    def __init__(self, kind: str, *, old: bool = False) -> None:
        self.kind, self.old = kind, old
        """`old`: a Bitbucket Data Center before 7.4."""
        self.users = {f"Bearer {TOKEN}": "kiln"}
        self.asked: list[Asked] = []
        self.statuses: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        """The statuses set so far, oldest first, by commit and context."""
        self.head = "c" * 40
        """Of the pull request."""
        self.comments: list[dict[str, Any]] = []
        """`id`, `text`, `author`, `version`, oldest first."""
        self.tells_account = True
        self._says: list[Say] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Answers (again), at the same port."""
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def _answer(self) -> None:
                host._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def repository(self) -> str:
        """Its URL, as Kiln has it."""
        return f"http://{self.name}/{'scm/' if self.kind == 'bitbucket-server' else ''}{PATH}"

    def say(self, *says: Say) -> None:
        """To the next requests, one each."""
        with self._lock:
            self._says += says

    def states(self, commit: str, context: str) -> list[str]:
        """The states set so far, oldest first."""
        return [str(one["state"]) for one in list(self.statuses[commit, context])]

    def comment(self, text: str, author: str) -> None:
        """Adds a comment of `author` to the pull request."""
        self.comments.append({"id": len(self.comments) + 1, "text": text, "author": author, "version": 0})

    # How it works ----------------------------------------------------------------------------------------------------

    def _answer(self, came: BaseHTTPRequestHandler) -> None:
        raw = came.rfile.read(int(came.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else None
        with self._lock:
            said = self._says.pop(0) if self._says else self._documented(came, body)
            headers = {name.lower(): value for name, value in came.headers.items()}
            self.asked.append(Asked(came.command, came.path, headers, body, time.monotonic(), said.status))
        time.sleep(said.after)
        content = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
        try:
            came.send_response(said.status)
            for name, value in said.headers.items():
                came.send_header(name, value)
            came.send_header("Content-Length", str(len(content)))
            came.end_headers()
            came.wfile.write(content)
        except OSError:
            came.close_connection = True

    def _documented(self, came: BaseHTTPRequestHandler, body: Any) -> Say:
        user = self.users.get(came.headers.get("Authorization", ""))
        if user is None:
            return Say(401, body={"message": "Bad credentials"})
        parts = urlsplit(came.path)
        for method, pattern, answer in [*self._routes(), *self._comment_routes()]:
            found = re.fullmatch(pattern, parts.path)
            if found and method == came.command:
                return answer(*found.groups(), body=body, query=parse_qs(parts.query), user=user)
        return Say(404, body={"message": "Not Found"})

    def _routes(self) -> list[tuple[str, str, Callable[..., Say]]]:
        sha, project = "([0-9a-f]{40,64})", unquote(PATH).replace("/", "%2F")
        owner, name = PATH.split("/")
        match self.kind:
            case "github":
                return [("POST", f"/api/v3/repos/{PATH}/statuses/{sha}", self._github)]
            case "gitea" | "forgejo":
                return [("POST", f"/api/v1/repos/{PATH}/statuses/{sha}", self._github)]
            case "gitlab":
                return [
                    ("POST", f"/api/v4/projects/{project}/statuses/{sha}", self._gitlab),
                    ("GET", f"/api/v4/projects/{project}/repository/commits/{sha}/statuses", self._gitlab_list),
                ]
            case "bitbucket":
                return [("POST", f"/2.0/repositories/{PATH}/commit/{sha}/statuses/build", self._bitbucket)]
            case "bitbucket-server" if self.old:
                return [("POST", f"/rest/build-status/1.0/commits/{sha}", self._bitbucket_server)]
            case "bitbucket-server":
                base = f"/rest/api/latest/projects/{owner}/repos/{name}"
                return [("POST", f"{base}/commits/{sha}/builds", self._bitbucket_server)]
        raise ValueError(self.kind)

    def _set(self, sha: str, context: str, body: Mapping[str, Any]) -> None:
        self.statuses[sha, context].append({**body})

    def _github(self, sha: str, *, body: Mapping[str, Any], **_: object) -> Say:
        wrong = body["state"] not in ("error", "failure", "pending", "success")
        if wrong or (self.kind == "github" and len(body["description"]) > 140):
            return Say(422, body={"message": "Validation Failed"})
        self._set(sha, body["context"], body)
        return Say(201, body=body)

    def _gitlab(self, sha: str, *, body: Mapping[str, Any], **_: object) -> Say:
        if body["state"] not in ("pending", "running", "success", "failed", "canceled", "skipped"):
            return Say(400, body={"message": "state does not have a valid value"})
        if len(body["description"]) > 255:
            return Say(400, body={"message": {"description": ["is too long"]}})
        before = [one["state"] for one in self.statuses[sha, body["name"]]][-1:]
        way = {"pending": "enqueue", "running": "run"}.get(body["state"])
        if way and (before == [body["state"]] or (before == ["running"] and way == "enqueue")):
            reason = f"Cannot transition status via :{way} from :{before[0]}"
            return Say(400, body={"message": f'{reason} (Reason(s): Status cannot transition via "{way}")'})
        self._set(sha, body["name"], body)
        return Say(201, body={"status": body["state"], "name": body["name"]})

    def _gitlab_list(self, sha: str, *, query: Mapping[str, list[str]], **_: object) -> Say:
        (name,) = query["name"]
        latest = self.statuses[sha, name][-1:]
        return Say(200, body=[{"name": name, "status": one["state"], "id": 1} for one in latest])

    def _bitbucket(self, sha: str, *, body: Mapping[str, Any], **_: object) -> Say:
        if body["state"] not in ("INPROGRESS", "SUCCESSFUL", "FAILED", "STOPPED") or len(body["key"]) > 40:
            return Say(400, body={"type": "error", "error": {"message": "Bad request"}})
        self._set(sha, body["name"], body)
        return Say(201, body=body)

    def _bitbucket_server(self, sha: str, *, body: Mapping[str, Any], **_: object) -> Say:
        states = ("INPROGRESS", "SUCCESSFUL", "FAILED", *(() if self.old else ("CANCELLED", "UNKNOWN")))
        too_long = max(len(body[name]) for name in ("key", "name", "description")) > 255 or len(body["url"]) > 450
        if body["state"] not in states or too_long:
            return Say(400, body={"errors": [{"message": "state"}]})
        self._set(sha, body["key"], body)
        return Say(204, body=b"")

    # Comments --------------------------------------------------------------------------------------------------------

    def _comment_routes(self) -> list[tuple[str, str, Callable[..., Say]]]:
        owner, name = PATH.split("/")
        api = {"github": "/api/v3", "gitlab": "/api/v4", "bitbucket": "/2.0"}.get(self.kind, "/api/v1")
        edit = "PATCH"
        match self.kind:
            case "gitlab":
                request = f"{api}/projects/{owner}%2F{name}/merge_requests/7"
                place = one = f"{request}/notes"
                edit = "PUT"
            case "bitbucket":
                request = f"{api}/repositories/{PATH}/pullrequests/7"
                place = one = f"{request}/comments"
                edit = "PUT"
            case "bitbucket-server":
                request = f"/rest/api/latest/projects/{owner}/repos/{name}/pull-requests/7"
                place = one = f"{request}/comments"
                edit = "PUT"
            case _:
                base = f"{api}/repos/{PATH}"
                request, place, one = f"{base}/pulls/7", f"{base}/issues/7/comments", f"{base}/issues/comments"
        listed = f"{request}/activities" if self.kind == "bitbucket-server" else place
        return [
            ("GET", f"{api}/user", self._account),
            ("GET", request, self._request),
            ("GET", listed, self._listed),
            ("POST", place, self._made),
            (edit, f"{one}/([0-9]+)", self._edited),
        ]

    def _account(self, *, user: str, **_: object) -> Say:
        if not self.tells_account or self.kind == "bitbucket-server":
            return Say(403, body={"message": "no such scope"})
        return Say(200, body={"login": user, "username": user, "uuid": user})

    def _request(self, *, user: str, **_: object) -> Say:
        head = {"sha": self.head, "latestCommit": self.head, "commit": {"hash": self.head[:12]}}
        said = {"X-AUSERNAME": user} if self.kind == "bitbucket-server" else {}
        return Say(200, said, {"head": head, "sha": self.head, "source": head, "fromRef": head})

    def _shown(self, one: Mapping[str, Any]) -> dict[str, Any]:
        author, text = one["author"], one["text"]
        match self.kind:
            case "gitlab":
                return {"id": one["id"], "body": text, "author": {"username": author}, "system": False}
            case "bitbucket":
                return {"id": one["id"], "content": {"raw": text}, "user": {"uuid": author}}
            case "bitbucket-server":
                comment = {"id": one["id"], "text": text, "version": one["version"], "author": {"name": author}}
                return {"action": "COMMENTED", "comment": comment}
        return {"id": one["id"], "body": text.replace("\n", "\r\n"), "user": {"login": author}}

    def _listed(self, *, query: Mapping[str, list[str]], **_: object) -> Say:
        shown = [self._shown(one) for one in self.comments]
        if self.kind in ("gitea", "forgejo"):
            return Say(200, body=shown)
        if self.kind == "bitbucket-server":
            shown, start, size = [{"action": "OPENED"}, *reversed(shown)], int(query.get("start", ["0"])[0]), 100
            page, rest = shown[start : start + size], shown[start + size :]
            return Say(200, body={"values": page, "isLastPage": not rest, "nextPageStart": start + size})
        size = int(query.get("per_page", query.get("pagelen", ["10"]))[0])
        start = size * (int(query.get("page", ["1"])[0]) - 1)
        page, rest = shown[start : start + size], shown[start + size :]
        return Say(200, body={"values": page, **({"next": "…"} if rest else {})} if self.kind == "bitbucket" else page)

    def _text(self, body: Mapping[str, Any]) -> str:
        found = body["content"]["raw"] if self.kind == "bitbucket" else body.get("body", body.get("text"))
        assert isinstance(found, str)
        return found

    def _made(self, *, body: Mapping[str, Any], user: str, **_: object) -> Say:
        self.comment(self._text(body), user)
        return Say(201, body=self._shown(self.comments[-1]))

    def _edited(self, number: str, *, body: Mapping[str, Any], user: str, **_: object) -> Say:
        one = self.comments[int(number) - 1]
        if one["author"] != user:
            return Say(403, body={"message": "not yours"})
        if self.kind == "bitbucket-server" and body["version"] != one["version"]:
            return Say(409, body={"errors": [{"message": "stale"}]})
        one["text"], one["version"] = self._text(body), one["version"] + 1
        return Say(200, body=self._shown(one))
