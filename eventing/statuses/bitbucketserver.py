"""Build statuses of Bitbucket Data Center, and comments of its pull requests.

Versions before 7.4 have an older resource for statuses only, without repositories. Versions without the state for
cancelled builds receive a failure instead.

https://developer.atlassian.com/server/bitbucket/how-tos/updating-build-status-for-commits/
"""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import urlsplit

from eventing.statuses.comments import PER_PAGE, Comment, Query, Thread
from eventing.statuses.exchange import Conversation, HostRequest, HostResponse, Login, outcome_of
from eventing.statuses.words import Said

STATES = {"succeeded": "SUCCESSFUL", "failed": "FAILED", "cancelled": "CANCELLED"}


class BitbucketServerStatusApi:
    word = "bitbucket-server"
    longest = 255

    def headers(self, login: Login) -> dict[str, str]:
        return {"Authorization": login.basic, "Accept": "application/json"}

    def base(self, repository: str) -> str:
        """Return the API's URL of a repository; the server may have a path prefix."""
        parts, root, project, name = _parts(repository)
        return f"{parts}{root}/rest/api/latest/projects/{project}/repos/{name}"

    def thread(self, repository: str, number: str) -> Thread:
        """Return the comments of a request, which are among its activities, newest first."""
        base = f"{self.base(repository)}/pull-requests/{number}"
        return Thread(
            account=None,
            request=base,
            head=("fromRef", "latestCommit"),
            listed=f"{base}/activities",
            query={"limit": PER_PAGE},
            items=("values",),
            comment=("comment",),
            author=("author", "name"),
            text=("text",),
            more=_more,
            made=f"{base}/comments",
            edited=f"{base}/comments/{{id}}",
            method="PUT",
            form=_form,
        )

    def status(self, repository: str, host: str, said: Said) -> Conversation:
        server, root, _, _ = _parts(repository)
        body = {
            "key": said.context,
            "name": said.context,
            "state": STATES.get(said.word, "INPROGRESS"),
            "description": said.description,
            "url": said.url,
        }
        full = {**body, "ref": said.ref} if said.ref else body
        url = f"{self.base(repository)}/commits/{said.commit}/builds"
        answer = yield HostRequest(method="POST", url=url, body=full)
        if _older(answer):
            url = f"{server}{root}/rest/build-status/1.0/commits/{said.commit}"
            full = {**body, "state": "FAILED" if said.word == "cancelled" else body["state"]}
            answer = yield HostRequest(method="POST", url=url, body=full)
        elif answer.status == HTTPStatus.BAD_REQUEST and said.word == "cancelled":
            answer = yield HostRequest(method="POST", url=url, body={**full, "state": "FAILED"})
        return outcome_of(answer, host)


def _older(answer: HostResponse) -> bool:
    """Return whether the resource does not exist; `errors` is present if the repository or commit is missing."""
    return answer.status == HTTPStatus.NOT_FOUND and not answer.says(r'"errors"')


def _parts(repository: str) -> tuple[str, str, str, str]:
    """Return the server, its path prefix, project and name. Raises ValueError if the URL is not a clone URL."""
    parts = urlsplit(repository)
    found = re.fullmatch(r"(.*)/scm/([^/]+)/([^/]+)", parts.path)
    if found is None:
        raise ValueError("no /scm/ in it")
    return (f"{parts.scheme}://{parts.netloc}", found[1], found[2], found[3])


def _more(value: object, _items: int, _page: int) -> Query | None:
    if not isinstance(value, dict) or value.get("isLastPage") is not False:
        return None
    start = value.get("nextPageStart")
    return {"start": start} if isinstance(start, int) else None


def _form(text: str, comment: Comment | None) -> object:
    return {"text": text} if comment is None else {"text": text, "version": comment.version}
