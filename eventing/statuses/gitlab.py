"""Commit statuses of GitLab, and notes of its merge requests.

https://docs.gitlab.com/api/commits/#set-commit-pipeline-status, https://docs.gitlab.com/api/notes/
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import quote, unquote, urlencode, urlsplit

import msgspec

from eventing.sinks import Outcome
from eventing.statuses.comments import PER_PAGE, Thread, numbered
from eventing.statuses.exchange import DONE, Conversation, HostRequest, HostResponse, Login, outcome_of
from eventing.statuses.words import Said

STATES = {"queued": "pending", "succeeded": "success", "failed": "failed", "cancelled": "canceled"}
RUNNING = "running"
"""States that GitLab does not reset to `pending`."""
NO_CHANGE = r"cannot transition status"


class _CommitStatus(msgspec.Struct):
    name: str
    status: str


class GitLabStatusApi:
    word = "gitlab"
    longest = 255

    def headers(self, login: Login) -> dict[str, str]:
        return {"Authorization": login.bearer, "Accept": "application/json"}

    def base(self, repository: str) -> str:
        """Return the API's URL of a project."""
        project = quote(unquote(urlsplit(repository).path.strip("/")), safe="")
        return f"{_api(repository)}/projects/{project}"

    def thread(self, repository: str, number: str) -> Thread:
        base = f"{self.base(repository)}/merge_requests/{number}"
        return Thread(
            account=f"{_api(repository)}/user",
            account_name=("username",),
            request=base,
            head=("sha",),
            listed=f"{base}/notes",
            query={"per_page": PER_PAGE, "sort": "asc"},
            author=("author", "username"),
            text=("body",),
            more=numbered,
            made=f"{base}/notes",
            edited=f"{base}/notes/{{id}}",
            method="PUT",
        )

    def status(self, repository: str, host: str, said: Said) -> Conversation:
        """`ref` selects one of the commit's pipelines; without it GitLab takes any branch with the commit."""
        state = STATES.get(said.word, RUNNING)
        body = {
            "state": state,
            "name": said.context,
            "target_url": said.url,
            "description": said.description,
            **({"ref": _short(said.ref)} if said.ref else {}),
        }
        answer = yield HostRequest(method="POST", url=f"{self.base(repository)}/statuses/{said.commit}", body=body)
        if not _unchanged(answer):
            return outcome_of(answer, host)
        query = urlencode({"name": said.context, "per_page": 100})
        url = f"{self.base(repository)}/repository/commits/{said.commit}/statuses?{query}"
        there = yield HostRequest(method="GET", url=url)
        return _settled(answer, there, said, state, host)


def _unchanged(answer: HostResponse) -> bool:
    """Return whether GitLab rejects the transition because the status may already have this state."""
    return answer.status == HTTPStatus.CONFLICT or (answer.status == HTTPStatus.BAD_REQUEST and answer.says(NO_CHANGE))


def _settled(answer: HostResponse, there: HostResponse, said: Said, state: str, host: str) -> Outcome:
    """Accept the status if it has the desired state, or if its state is unknown.

    GitLab rejects `pending` (400) for a running status; the next status changes it.
    """
    found = there.json(list[_CommitStatus]) if there.fine else None
    now = {each.status for each in found or () if each.name == said.context}
    if not now or state in now or (answer.status == HTTPStatus.BAD_REQUEST and not said.ended):
        return DONE
    return outcome_of(answer, host)


def _short(ref: str) -> str:
    return ref.removeprefix("refs/heads/").removeprefix("refs/tags/")


def _api(repository: str) -> str:
    parts = urlsplit(repository)
    return f"{parts.scheme}://{parts.netloc}/api/v4"
