"""Pull requests in GitHub's shape, which Gitea has taken over: the parts that matter here."""

from __future__ import annotations

import msgspec

from eventing.hosts.payload import Hash, Number, RefName


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
    def ref(self) -> str:
        return f"refs/pull/{self.number}/head"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.pull_request.labels or ())

    @property
    def fork(self) -> bool:
        head = self.pull_request.head.repo
        return head is None or head.clone_url != self.repository.clone_url

    def has_changed(self, name: str) -> bool:
        """Whether it was edited, and that is what has changed."""
        return self.action == "edited" and name in (self.changes or ())
