"""Listed repositories: what their refs say that ought to be built, and what of it nobody has asked for.

Git hosts do not repeat a webhook that was lost, and some can never reach this Kiln. So a ref that is seen is taken for
the push that made it: an event as its host would have sent it, which goes through the same triggers and the same
intake, and becomes a request with the same name. Then the records say whether the push has been heard of. A cause that
is made here stands for the webhook that did not come, no more: what failed, or what somebody cancelled, is left alone.
But what failed because its host did not serve the commit is asked for again: now the host says that it has it.

Superseding stays what hosts have told. A cause that begins a record is a push like any other: later ones supersede it,
and it supersedes the commit where the ref was seen before, if it was; nothing is guessed, at worst that is one build
too many. A cause that joins a record is none: it is made where the ref points to what had been given up.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from builds.build import SYNC, Build, Cause, Reason, State
from builds.engines import Submission
from builds.errors import Malformed
from builds.repository import Refs, Repository, checked_ref, is_cloned, short_name
from eventing.event import Event
from eventing.hosts import pushed
from eventing.http import attribute_text

change = msgspec.structs.replace


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `repositories:`. `poll`: seconds between two looks; `None`: looked at by `kiln sync` only."""

    url: str
    poll: float | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Where a ref pointed when it was looked at."""

    commit: str
    at: datetime


class Ref(msgspec.Struct, frozen=True, kw_only=True):
    """A ref, and the push that would have made it."""

    name: str
    commit: str
    push: Event


def pushes(url: str, repository: Repository, refs: Refs) -> Iterator[Ref]:
    """The default branch first, then branches, then tags; without names that git would not take, and what is no branch
    or tag. `url` is the repository as it was listed: filters compare `source` as the host spells it."""
    page = url.rstrip("/").removesuffix(".git")
    clone_url = f"{page}.git" if repository.kind else url
    default = None if refs.default is None else short_name(refs.default)
    for name in sorted(refs.commits, key=lambda name: (name != refs.default, name)):
        if is_cloned(name) and _is_valid(name):
            commit = refs.commits[name]
            push = pushed(
                repository.kind,
                id=attribute_text(f"{SYNC}:{name}:{commit}"),
                repository=clone_url,
                ref=name,
                commit=commit,
                default_branch=default,
            )
            yield Ref(name=name, commit=commit, push=push)


def moved(ref: Ref, before: Seen | None) -> Seen | None:
    """Where the ref was seen before, if that was elsewhere."""
    return before if before is not None and before.commit != ref.commit else None


def due(submission: Submission, build: Build | None, elsewhere: Seen | None) -> Submission | None:
    """What is to be asked for, or `None` where nothing is missing. `build` is the one of that name, if there is one.

    The cause's id is a function of the ref, the commit and the record, so two who look at once ask for the same. One
    that joins a record is told from all before it by the last of them, or a ref that comes back a second time would
    pass for the first.
    """
    cause = submission.cause
    if build is None:
        push = cause.push if elsewhere is None else cause.push and change(cause.push, before=elsewhere.commit)
        return change(submission, cause=change(cause, push=push))
    if not _is_missing(cause, build, elsewhere):
        return None
    return change(submission, cause=change(cause, id=f"{cause.id}:{build.causes[-1].key}", push=None))


def _is_missing(cause: Cause, build: Build, elsewhere: Seen | None) -> bool:
    """Whether what the cause wants of a build has not been asked of it yet.

    A ref that was elsewhere has been pushed since, and if no cause has come from that its webhook was lost: tags have
    to be brought back, and a failed build is worth another attempt, as with the webhook.
    """
    same = [other for other in build.causes if other.ref == cause.ref]
    if elsewhere is not None and not any(other.at > elsewhere.at for other in same):
        return True
    if build.state is State.CANCELLED:
        closed = all(other.withdrawn for other in build.causes)  # of pull requests that are closed, and of nobody else
        return closed or build.status.reason is Reason.SUPERSEDED  # and yet the ref points there
    if build.state is State.FAILED:
        return any(attempt.unserved for attempt in build.status.attempts[-1:])
    return not {*cause.tags} <= {tag for other in same for tag in other.tags}


def _is_valid(name: str) -> bool:
    try:
        checked_ref(name)
    except Malformed:
        return False
    return True
