"""Which pull and merge requests a trigger is for, and what is news of one.

A request is built when it is opened or opened again and when its head moves; and when it becomes one that a rule is for
by a label, or by another branch that it is to go to. Whatever else happens to it changes nothing that a build would
see, so that a build which failed is not tried again for a comment. A draft is a request like any other.

Whoever can read a repository can open a request from a fork, so a rule takes those only where it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Literal

import msgspec

from builds.globs import chosen
from eventing.hosts import RequestFacts

ANYONE = "anyone"


class PullRequestRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Globs over the short names of the branches that requests are for, and over the paths that they change; labels,
    one of which is enough; and where requests may come from.

    `paths` holds too where nobody knows what has changed.
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
    """Whether a rule wants a build for what has happened to a request. `paths`, those that it changes, are asked for
    only if all else holds."""
    return objection(rule, request, paths) is None


def objection(
    rule: PullRequestRule, request: RequestFacts, paths: Callable[[], Collection[str] | None] = lambda: None
) -> str | None:
    """Return why the rule asks for no build, as a phrase; `None` if it asks for one. `paths` as in `asks_for`."""
    return next(_objections(rule, request, paths), None)


def _objections(
    rule: PullRequestRule, request: RequestFacts, paths: Callable[[], Collection[str] | None]
) -> Iterator[str]:
    if request.fork and not rule.forks:
        yield "the pull request comes from a fork, and the trigger does not have from: anyone"
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
    """Why no trigger asks for a build of it, as far as that is the same for all of them, in a sentence."""
    if request.fork and not request.served:
        return "The host serves the commits of a fork only in the fork itself: such a pull request is not built."
    if request.fork:
        return "No trigger asks for a build of this pull request, which comes from a fork (`from: anyone`)."
    return "No trigger asks for a build of this, or nothing that a build would see is new of this pull request."
