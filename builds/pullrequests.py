"""The pull and merge requests that match a trigger, and the changes that request a build.

A pull request is built when it is opened or reopened, and when its head moves. It is also built when a new label or a
new base branch makes it match a rule. Other changes do not affect a build, so a comment does not cause the retry of a
failed build. A draft is a request like any other.

All readers of a repository can open a request from a fork, so a rule includes those only if it explicitly permits them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Literal

import msgspec

from builds.globs import chosen
from eventing.hosts import RequestFacts

ANYONE = "anyone"


class PullRequestRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Globs over the short names of base branches, and over changed paths; labels, one of which suffices; and the
    permitted origin of requests.

    `paths` also matches if the changed paths are unknown.
    """

    branches: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    from_: Literal["same-repository", "anyone"] = "same-repository"

    @property
    def forks(self) -> bool:
        return self.from_ == ANYONE


def asks_for(
    rule: PullRequestRule, request: RequestFacts, paths: Callable[[], Collection[str] | None] = lambda: None
) -> bool:
    """Whether a rule requests a build for a change of a pull request. `paths` returns the changed paths, and is called
    only if all other conditions hold."""
    return objection(rule, request, paths) is None


def objection(
    rule: PullRequestRule, request: RequestFacts, paths: Callable[[], Collection[str] | None] = lambda: None
) -> str | None:
    """Return why the rule requests no build, as a phrase; `None` if it requests one. `paths` is as in `asks_for`."""
    return next(_objections(rule, request, paths), None)


def _objections(
    rule: PullRequestRule, request: RequestFacts, paths: Callable[[], Collection[str] | None]
) -> Iterator[str]:
    if request.fork and not rule.forks:
        yield "the pull request comes from a fork, and the trigger does not have `from: anyone`"
    if request.fork and not request.served:
        yield "the pull request comes from a fork, and its host serves the commits only there"
    if rule.branches is not None and not chosen(rule.branches, request.base):
        yield f"no pattern of pull_requests.branches matches the base branch {request.base}"
    if rule.labels is not None and not {*rule.labels} & {*request.labels}:
        yield f"the pull request has none of the labels {', '.join(rule.labels)}"
    if not _is_news(rule, request):
        yield "the pull request has no new commits, label or base branch"
    changed = None if rule.paths is None else paths()
    if rule.paths is not None and changed is not None and not any(chosen(rule.paths, path) for path in changed):
        yield "no pattern of pull_requests.paths matches a changed file"


def _is_news(rule: PullRequestRule, request: RequestFacts) -> bool:
    labelled = rule.labels is not None and bool({*rule.labels} & {*request.added})
    return request.moved or labelled or (rule.branches is not None and request.retargeted)


def unasked(request: RequestFacts) -> str:
    """The reason, as a sentence, why no trigger requests a build, if it is the same for all triggers."""
    if request.fork and not request.served:
        return "The host serves a fork's commits only in the fork itself, so this pull request is not built."
    if request.fork:
        return "No trigger requests a build of this pull request from a fork (`from: anyone` allows forks)."
    return "No trigger requests a build of this pull request, or the change does not affect a build."
