"""The nodes page, for admins: daemons, slots, disk, and the builds that run on each node.

A build that the admin may not see still takes a slot, so the page counts it without its name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response

from builds.build import Build, Disk, Node, State
from handlers import html
from handlers.auth import Identity
from handlers.builds import may_see
from handlers.lists import builds_in, row
from handlers.services import services

NO_DAEMON = "Kiln has no daemon on this node."
GIB = 2**30
LOW_DISK = 10
"""Per cent of free space. Below it builds may soon fail, and the page warns."""


def nodes() -> Response:
    identity = html.admit_admin()
    running: dict[str | None, list[Build]] = defaultdict(list)
    for build in builds_in(State.RUNNING):
        running[build.live.node if build.live else None].append(build)
    found = services().records.nodes()
    every = (*found, *_without_daemon(found, running))
    return html.page(
        "nodes.html",
        identity,
        nodes=[_node(node, running.get(node.name, ()), identity) for node in every],
        unplaced=[row(build) for build in running.get(None, ()) if may_see(build, identity)],
        disks=any(node.disk for node in found),
        waiting=sum(may_see(build, identity) for build in builds_in(State.QUEUED)),
        slots=services().builds_per_node,
    )


def _without_daemon(found: Sequence[Node], running: Mapping[str | None, Sequence[Build]]) -> list[Node]:
    """Return the nodes on which a build runs, but whose daemon no longer exists."""
    known = {node.name for node in found}
    names = sorted(name for name in running if name is not None and name not in known)
    return [Node(name=name, ready=False, why=NO_DAEMON) for name in names]


def _node(node: Node, builds: Sequence[Build], identity: Identity) -> dict[str, Any]:
    visible = [build for build in builds if may_see(build, identity)]
    return {
        "name": node.name,
        "ready": node.ready,
        "why": node.why,
        "taken": sum(_slots(build) for build in builds),
        "disk": node.disk and _disk(node.disk),
        "builds": [row(build) for build in visible],
        "hidden": len(builds) - len(visible),
    }


def _slots(build: Build) -> int:
    """Return how many slots a build takes: all of the node if its attempt runs alone."""
    return services().builds_per_node if build.live and build.live.alone else 1


def _disk(disk: Disk) -> dict[str, Any]:
    share = 100 * disk.free / disk.size if disk.size else 0
    return {"text": f"{disk.free / GIB:.1f} GiB of {disk.size / GIB:.1f} GiB free", "low": share < LOW_DISK}
