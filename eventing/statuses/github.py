"""Commit statuses and comments of GitHub and GitHub Enterprise Server.

https://docs.github.com/en/rest/commits/statuses, https://docs.github.com/en/rest/issues/comments
"""

from __future__ import annotations

from urllib.parse import urlsplit

from eventing.statuses.comments import PER_PAGE, Thread, numbered
from eventing.statuses.exchange import Conversation, HostRequest, Login, outcome_of
from eventing.statuses.words import Said

STATES = {"succeeded": "success", "failed": "failure", "cancelled": "error"}
"""GitHub has no state for cancelled builds; `failure` blames the repository, `error` does not."""


def body_of(said: Said) -> dict[str, str]:
    """Return the body, which Gitea shares."""
    ours = said.word == "failed" and said.reason != "repository"
    return {
        "state": "error" if ours else STATES.get(said.word, "pending"),
        "target_url": said.url,
        "description": said.description,
        "context": said.context,
    }


class GitHubStatusApi:
    word = "github"
    longest = 140

    def headers(self, login: Login) -> dict[str, str]:
        return {
            "Authorization": login.bearer,
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }

    def base(self, repository: str) -> str:
        """Return the API's URL of a repository."""
        return f"{_api(repository)}/repos{urlsplit(repository).path}"

    def thread(self, repository: str, number: str) -> Thread:
        base = self.base(repository)
        return Thread(
            account=f"{_api(repository)}/user",
            account_name=("login",),
            request=f"{base}/pulls/{number}",
            head=("head", "sha"),
            listed=f"{base}/issues/{number}/comments",
            query={"per_page": PER_PAGE},
            author=("user", "login"),
            text=("body",),
            more=numbered,
            made=f"{base}/issues/{number}/comments",
            edited=f"{base}/issues/comments/{{id}}",
            method="PATCH",
        )

    def status(self, repository: str, host: str, said: Said) -> Conversation:
        url = f"{self.base(repository)}/statuses/{said.commit}"
        answer = yield HostRequest(method="POST", url=url, body=body_of(said))
        return outcome_of(answer, host)


def _api(repository: str) -> str:
    parts = urlsplit(repository)
    return "https://api.github.com" if parts.netloc == "github.com" else f"{parts.scheme}://{parts.netloc}/api/v3"
