"""Pull requests in GitHub's format, which Gitea adopted: the used parts."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from eventing.hosts.dialect import RequestFacts
from eventing.hosts.payload import Hash, Number, RefName, moment


class PayloadRepository(msgspec.Struct):
    clone_url: str


class Side(msgspec.Struct):
    """The source or the target. The source repository may have been deleted."""

    ref: RefName
    sha: Hash
    repo: PayloadRepository | None = None


class Label(msgspec.Struct):
    name: str


class PullRequest(msgspec.Struct):
    head: Side
    base: Side
    labels: list[Label] | None = None
    updated_at: str | None = None


class PullRequestEvent(msgspec.Struct):
    """The payload of an event about a pull request."""

    action: str
    number: Number
    pull_request: PullRequest
    repository: PayloadRepository
    before: Hash | None = None
    label: Label | None = None
    changes: dict[str, object] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.pull_request.labels or ())

    @property
    def fork(self) -> bool:
        head = self.pull_request.head.repo
        return head is None or head.clone_url != self.repository.clone_url

    def facts(self, *, fork: bool, moving: Collection[str], added: tuple[str, ...], retargeted: bool) -> RequestFacts:
        """Return the facts; `moving` are the actions of requests with new commits."""
        request = self.pull_request
        return RequestFacts(
            repository=self.repository.clone_url,
            number=self.number,
            ref=f"refs/pull/{self.number}/head",
            commit=request.head.sha,
            before=self.before,
            at=moment(request.updated_at),
            base=request.base.ref,
            head=request.head.ref,
            fork=fork,
            moved=self.action in moving,
            labels=self.labels,
            added=added,
            retargeted=retargeted,
            closed=self.action == "closed",
        )

    def has_changed(self, name: str) -> bool:
        """Return whether the request was edited and this field changed."""
        return self.action == "edited" and name in (self.changes or ())
