"""Cache locality: the nodes and images that have the layers of a repository, according to the records. Pure.

A node keeps the layers of its builds, and a registry those of pushed images. The memory is bounded and only a hint. A
build on a node without the layers, or with images that lack them, takes longer, and gives the same image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property

import msgspec

from builds.build import Build, State

MAX_REPOSITORIES = 1000
MAX_SUCCESSES = 10
"""The latest successes of one repository."""
MAX_IMAGES = 2
"""Images that a build may reuse: BuildKit first queries the registry for each of them."""
LAYERS_KEPT = timedelta(hours=1)
"""How long a node is assumed to have the layers of its builds; afterwards its cache may have been cleaned. A
superfluous image costs a few requests, a missing image costs the build time of its layers."""


class Success(msgspec.Struct, frozen=True, kw_only=True):
    """The remembered facts about a successful build."""

    image: str
    """Its image repository."""
    digest: str
    subdir: str
    refs: frozenset[str]
    """Refs that pointed at the commit."""
    default: bool
    """Whether one of them is the default branch."""
    apart: str | None
    """`Build.apart`: the layers of a fork's build are not reused by other builds."""
    node: str | None
    at: datetime


def success_of(build: Build) -> Success | None:
    """`None` for a build that did not succeed."""
    status = build.status
    if status.state is not State.SUCCEEDED or status.image is None or status.finished_at is None:
        return None
    node = next((one.node for one in reversed(status.attempts) if one.state is State.SUCCEEDED), None)
    return Success(
        image=status.image.repository,
        digest=status.image.digest,
        subdir=build.request.subdir,
        refs=_refs(build),
        default=any(cause.default for cause in build.causes),
        apart=build.apart(build.causes),
        node=node,
        at=status.finished_at,
    )


class RecentBuilds:
    """The latest successes of the most recently built repositories. For one thread at a time."""

    def __init__(self) -> None:
        self._successes: dict[str, tuple[Success, ...]] = {}

    def note(self, build: Build) -> None:
        """Remembers the build if it has succeeded. The call is idempotent, and the order does not matter."""
        repository, status = build.request.repository, build.status
        known = self._successes.get(repository, ())
        if status.state is not State.SUCCEEDED or any(one.at == status.finished_at for one in known):
            return  # it is observed again while its events wait for a sink
        if (success := success_of(build)) is None:
            return
        latest = sorted((*known, success), key=lambda one: (one.at, one.digest), reverse=True)
        self._successes.pop(repository, None)
        self._successes[repository] = tuple(latest[:MAX_SUCCESSES])
        if len(self._successes) > MAX_REPOSITORIES:
            del self._successes[next(iter(self._successes))]

    @property
    def successes(self) -> Mapping[str, Sequence[Success]]:
        """The successes by repository, newest first."""
        return self._successes


class Locality:
    """The locality of nodes, derived from the successes, at one moment."""

    def __init__(self, successes: Mapping[str, Sequence[Success]]) -> None:
        self._successes = successes

    def distance(self, build: Build) -> Callable[[str], int]:
        """The distance of each node; lower is better.

        - 0: the node of the ref's last build
        - 1: a node with another build of the repository
        - 2: a node with any build, and so with most base images
        - 3: other nodes
        """
        mine, refs = self._successes.get(build.request.repository, ()), _refs(build)
        nodes = {one.node for one in mine}
        last = next((one.node for one in mine if one.refs & refs), mine[0].node if mine else None)
        return lambda node: 0 if node == last else 1 if node in nodes else 2 if node in self._used else 3

    def images(self, build: Build, node: str | None, now: datetime) -> tuple[str, ...]:
        """Digests of images whose layers a build on that node may reuse.

        The order is the last image of the same ref, then of the default branch, then of any ref. None are needed if the
        node has the layers of the best of them.
        """
        found = list(self._candidates(build))
        if found and found[0].node == node is not None and timedelta() <= now - found[0].at < LAYERS_KEPT:
            return ()
        return tuple(dict.fromkeys(one.digest for one in found))[:MAX_IMAGES]

    @cached_property
    def _used(self) -> frozenset[str | None]:
        return frozenset(one.node for each in self._successes.values() for one in each)

    def _candidates(self, build: Build) -> Iterator[Success]:
        """The candidates, best first, some of them twice. Only builds of the same request may use a fork's image."""
        apart = build.apart(build.unanswered)
        request, refs = build.request, _refs(build)
        mine = [one for one in self._successes.get(request.repository, ()) if one.image == request.image]
        fit = [one for one in mine if one.apart is None or one.apart == apart]
        better = sorted(fit, key=lambda one: one.subdir != request.subdir)
        yield from [one for one in better if one.refs & refs][:1]
        yield from [one for one in better if one.default][:1]
        yield from better[:MAX_IMAGES]


def _refs(build: Build) -> frozenset[str]:
    return frozenset(cause.ref for cause in build.causes if cause.ref)
