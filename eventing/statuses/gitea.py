"""Commit statuses and comments of Gitea and Forgejo, which share one API (`/api/swagger` of each server)."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from eventing.statuses.comments import Thread
from eventing.statuses.exchange import Conversation, HostRequest, Login, outcome_of, refused
from eventing.statuses.github import body_of
from eventing.statuses.words import Said


class GiteaStatusApi:
    longest = 255

    def __init__(self, word: str) -> None:
        self.word = word

    def headers(self, login: Login) -> dict[str, str]:
        return {"Authorization": login.bearer, "Accept": "application/json"}

    def base(self, repository: str) -> str:
        """Return the API's URL of a repository; the server may have a path prefix."""
        api, owner, name = _parts(repository)
        return f"{api}/repos/{owner}/{name}"

    def thread(self, repository: str, number: str) -> Thread:
        """Return the comments of a request; the server lists all of them in one page."""
        base = self.base(repository)
        return Thread(
            account=f"{_parts(repository)[0]}/user",
            account_name=("login",),
            request=f"{base}/pulls/{number}",
            head=("head", "sha"),
            listed=f"{base}/issues/{number}/comments",
            author=("user", "login"),
            text=("body",),
            made=f"{base}/issues/{number}/comments",
            edited=f"{base}/issues/comments/{{id}}",
            method="PATCH",
        )

    def status(self, repository: str, host: str, said: Said) -> Conversation:
        url = f"{self.base(repository)}/statuses/{said.commit}"
        answer = yield HostRequest(method="POST", url=url, body=body_of(said))
        if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR and answer.says("object does not exist"):
            return refused("the host does not have this commit")  # observed with Gitea 1.27
        return outcome_of(answer, host)


def _parts(repository: str) -> tuple[str, str, str]:
    """Return the API's URL, owner and name. Raises ValueError."""
    parts = urlsplit(repository)
    *below, owner, name = parts.path.strip("/").split("/")
    root = "".join(f"/{part}" for part in below)
    return f"{parts.scheme}://{parts.netloc}{root}/api/v1", owner, name
