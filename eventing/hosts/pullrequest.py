"""Pull requests in GitHub's shape, which Gitea has taken over: the parts that matter here."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from eventing.hosts.dialect import RequestFacts
from eventing.hosts.payload import Hash, Number, RefName, moment


class Repository(msgspec.Struct):
    clone_url: str


class Side(msgspec.Struct):
    """Where it comes from, or what it is for. The repository that it comes from may have been deleted."""

    ref: RefName
    sha: Hash
    repo: Repository | None = None


class Label(msgspec.Struct):
    name: str


class PullRequest(msgspec.Struct):
    head: Side
    base: Side
    labels: list[Label] | None = None
    updated_at: str | None = None


class Told(msgspec.Struct):
    """The payload of an event about one."""

    action: str
    number: Number
    pull_request: PullRequest
    repository: Repository
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
        """`moving` are the actions of a request whose commits are news."""
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
        """Whether it was edited, and that is what has changed."""
        return self.action == "edited" and name in (self.changes or ())
