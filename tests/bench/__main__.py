"""Run all benchmarks, or the named ones: `python -m tests.bench webhooks starts`.

`python -m tests.bench cluster --against <git revision>` compares that revision with this code, in alternation on one
cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from tests.bench import building, capacity, cluster, leader, records, reuse, web

BENCHMARKS: Mapping[str, Callable[[], None]] = {
    "build": building.against_bare,
    "repo2docker": building.with_environments,
    "reuse": reuse.on_other_nodes,
    "retry": reuse.after_a_failed_push,
    "webhooks": web.webhooks,
    "watched": web.watched,
    "starts": web.starts,
    "cold": web.cold,
    "memory": web.memory,
    "stored": records.stored,
    "plan": records.plans,
    "cluster": cluster.figures,
    "cluster-repo2docker": cluster.with_environments,
    "capacity": capacity.capacity,
}


def main(wanted: list[str]) -> None:
    if wanted[:2] == ["cluster", "--against"] and len(wanted) == 3:
        leader.compared(wanted[2])
        return
    unknown = {*wanted} - {*BENCHMARKS}
    if unknown:
        sys.exit(f"Unknown benchmark: {', '.join(sorted(unknown))}. Known: {', '.join(BENCHMARKS)}.")
    for name in wanted or BENCHMARKS:
        run = BENCHMARKS[name]
        print(f"{name}: {(run.__doc__ or '').splitlines()[0]}", flush=True)
        run()


if __name__ == "__main__":
    main(sys.argv[1:])
