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
from handlers.builds import shown
from handlers.lists import builds_in, row
from handlers.services import services

NO_DAEMON = "No daemon of this Kiln is there."
GIB = 2**30
LOW = 10
"""Per cent of free space below which the page warns: builds may soon fail."""


def nodes() -> Response:
    identity = html.for_admins()
    running: dict[str | None, list[Build]] = defaultdict(list)
    for build in builds_in(State.RUNNING):
        running[build.live.node if build.live else None].append(build)
    found = services().records.nodes()
    return html.page(
        "nodes.html",
        identity,
        nodes=[_node(node, running.get(node.name, ()), identity) for node in (*found, *_lost(found, running))],
        unplaced=[row(build) for build in running.get(None, ()) if shown(build, identity)],
        disks=any(node.disk for node in found),
        waiting=sum(shown(build, identity) for build in builds_in(State.QUEUED)),
        slots=services().builds_per_node,
    )


def _lost(found: Sequence[Node], running: Mapping[str | None, Sequence[Build]]) -> list[Node]:
    """Return the nodes where a build runs but no daemon is known any more."""
    known = {node.name for node in found}
    names = sorted(name for name in running if name is not None and name not in known)
    return [Node(name=name, ready=False, why=NO_DAEMON) for name in names]


def _node(node: Node, builds: Sequence[Build], identity: Identity) -> dict[str, Any]:
    seen = [build for build in builds if shown(build, identity)]
    return {
        "name": node.name,
        "ready": node.ready,
        "why": node.why,
        "taken": sum(_slots(build) for build in builds),
        "disk": node.disk and _disk(node.disk),
        "builds": [row(build) for build in seen],
        "others": len(builds) - len(seen),
    }


def _slots(build: Build) -> int:
    """Return how many slots a build takes: all of the node if its attempt runs alone."""
    return services().builds_per_node if build.live and build.live.alone else 1


def _disk(disk: Disk) -> dict[str, Any]:
    share = 100 * disk.free / disk.size if disk.size else 0
    return {"said": f"{disk.free / GIB:.1f} GiB of {disk.size / GIB:.1f} GiB free", "low": share < LOW}
