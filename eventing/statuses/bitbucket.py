"""Build statuses of Bitbucket Cloud, and comments of its pull requests.

https://developer.atlassian.com/cloud/bitbucket/rest/api-group-commit-statuses/
"""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from eventing.statuses.comments import PER_PAGE, Comment, Query, Thread
from eventing.statuses.exchange import Conversation, HostRequest, Login, outcome_of
from eventing.statuses.words import Said

STATES = {"succeeded": "SUCCESSFUL", "failed": "FAILED", "cancelled": "STOPPED"}
LONGEST_KEY = 40


def key_of(context: str, longest: int = LONGEST_KEY) -> str:
    """Return the context as a key; a long one becomes its beginning and a digest of the whole."""
    if len(context) <= longest:
        return context
    return f"{context[: longest - 9]}-{hashlib.sha256(context.encode()).hexdigest()[:8]}"


class BitbucketStatusApi:
    word = "bitbucket"
    longest = 255

    def headers(self, login: Login) -> dict[str, str]:
        return {"Authorization": login.basic, "Accept": "application/json"}

    def base(self, repository: str) -> str:
        """Return the API's URL of a repository."""
        return f"{_api(repository)}/repositories{urlsplit(repository).path}"

    def thread(self, repository: str, number: str) -> Thread:
        """Return the comments of a request. An access token has no account."""
        base = f"{self.base(repository)}/pullrequests/{number}"
        return Thread(
            account=f"{_api(repository)}/user",
            account_name=("uuid",),
            request=base,
            head=("source", "commit", "hash"),
            listed=f"{base}/comments",
            query={"pagelen": PER_PAGE},
            items=("values",),
            author=("user", "uuid"),
            text=("content", "raw"),
            more=_more,
            made=f"{base}/comments",
            edited=f"{base}/comments/{{id}}",
            method="PUT",
            form=_form,
        )

    def status(self, repository: str, host: str, said: Said) -> Conversation:
        body = {
            "key": key_of(said.context),
            "name": said.context,
            "state": STATES.get(said.word, "INPROGRESS"),
            "description": said.description,
            "url": said.url,
        }
        url = f"{self.base(repository)}/commit/{said.commit}/statuses/build"
        answer = yield HostRequest(method="POST", url=url, body=body)
        return outcome_of(answer, host)


def _api(repository: str) -> str:
    parts = urlsplit(repository)
    own = f"{parts.scheme}://{parts.netloc}"
    return f"{'https://api.bitbucket.org' if parts.netloc == 'bitbucket.org' else own}/2.0"


def _more(value: object, _: int, page: int) -> Query | None:
    return {"page": page + 1} if isinstance(value, dict) and value.get("next") else None


def _form(text: str, _: Comment | None) -> object:
    return {"content": {"raw": text}}
