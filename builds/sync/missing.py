"""Listed repositories: derive the builds that their refs should have, and find those without a request.

Git hosts do not repeat a lost webhook, and some can never reach Kiln. So each ref is treated as the push that made it:
an event as its host would have sent it. The event passes the same triggers and the same intake, and becomes a request
with the same name. The records then show whether that push was received.

A cause that is made here replaces a lost webhook and nothing else: failed and cancelled builds stay as they are. The
exception is a build that failed because its host did not serve the commit, as the host lists the commit now.

Superseding follows the hosts' reports. A cause that begins a record is a push like any other, so later pushes supersede
it. It supersedes the commit that the ref had at the previous round, if known. Nothing is guessed; the cost is at most
one build too many. A cause that joins a record is not a push: it is made for a ref that returned to an old commit.
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
    """One entry of `repositories:`. `poll`: seconds between two rounds; `None`: only `kiln sync` checks it."""

    url: str
    poll: float | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The commit of a ref at the time of a round."""

    commit: str
    at: datetime


class Ref(msgspec.Struct, frozen=True, kw_only=True):
    """A ref, and the push event that would have made it."""

    name: str
    commit: str
    push: Event


def pushes(url: str, repository: Repository, refs: Refs) -> Iterator[Ref]:
    """The default branch first, then branches, then tags. Leaves out names that git rejects, and refs that are neither
    branches nor tags. `url` is the repository as listed: filters compare `source` in the host's spelling."""
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
    """The earlier observation of the ref, if it had another commit then."""
    return before if before is not None and before.commit != ref.commit else None


def due(submission: Submission, build: Build | None, elsewhere: Seen | None) -> Submission | None:
    """The submission to make, or `None` if nothing is missing. `build` is the existing build of that name, if any.

    The cause's id is a function of the ref, the commit and the record, so concurrent rounds submit the same cause. In a
    cause that joins a record, the id includes the key of the record's last cause. Otherwise a ref that returns a second
    time would look like the first.
    """
    cause = submission.cause
    if build is None:
        push = cause.push if elsewhere is None else cause.push and change(cause.push, before=elsewhere.commit)
        return change(submission, cause=change(cause, push=push))
    if not _is_missing(cause, build, elsewhere):
        return None
    return change(submission, cause=change(cause, id=f"{cause.id}:{build.causes[-1].key}", push=None))


def _is_missing(cause: Cause, build: Build, elsewhere: Seen | None) -> bool:
    """Whether the build lacks this cause.

    If the ref had another commit before, it has been pushed since. If no cause came from that push, its webhook was
    lost: tags have to be set again, and a failed build is worth another attempt, as with the webhook.
    """
    same = [other for other in build.causes if other.ref == cause.ref]
    if elsewhere is not None and not any(other.at > elsewhere.at for other in same):
        return True
    if build.state is State.CANCELLED:
        closed = all(other.withdrawn for other in build.causes)  # only closed pull requests requested it
        return closed or build.status.reason is Reason.SUPERSEDED  # although the ref points to the commit
    if build.state is State.FAILED:
        return any(attempt.unserved for attempt in build.status.attempts[-1:])
    return not {*cause.tags} <= {tag for other in same for tag in other.tags}


def _is_valid(name: str) -> bool:
    try:
        checked_ref(name)
    except Malformed:
        return False
    return True
