"""Measure the load that one release carries: builds per hour, events in and out, memory, lists of records.

The memory is that of open builds. The builders are simulated (`leader`); the cluster is a real one. Rates depend on
the other load of the machine. The controller's processor time for a build does not, so it bounds the capacity of one
controller on any machine.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

from builds.engines.kubernetes.api import Api
from builds.engines.kubernetes.records import Release as Owner
from builds.engines.kubernetes.store import KubernetesRecords
from tests.bench import web
from tests.bench.leader import SECONDS, Node, Side, ended_record, site
from tests.parts.kiln import megabytes, until
from tests.parts.machine import ROOT

CARRIED = 600
"""Builds over which the rates are measured."""
OPEN = (200, 800)
"""The controller's memory is measured at both numbers of open builds. Their difference excludes its fixed memory."""
RECORDS = (1_000, 5_000, 10_000)
EVENTS = 3
"""Events that each build emits: queued, started, succeeded."""
LISTS = 5


def capacity() -> None:
    """Measure the load that one release carries, with simulated builders."""
    print(f"  {os.cpu_count()} x {_processor()}, load average {os.getloadavg()[0]:.0f}, {time.strftime('%Y-%m-%d')}")
    with site() as (cluster, api, folder), Side("new", ROOT, cluster, api, folder).running() as side:
        _memory(side)
    with site() as (cluster, api, folder), Side("new", ROOT, cluster, api, folder).running() as side:
        _rates(side, Node(api))
        _lists(side, api)


def _memory(side: Side) -> None:
    """Measure the controller's memory for each open build whose pod is pending."""
    make, grown = side.pushes(), []
    for before, number in zip((0, *OPEN), OPEN, strict=False):
        more = partial(web.poster, side.url, "/webhooks/github", _from(make, before))
        web.load(more, each=(number - before) // web.SENDERS)
        until(lambda number=number: side.metric("kiln_builds{") >= number, 300)  # type: ignore[misc]
        until(lambda number=number: side.metric("kiln_deliveries_total") >= number, 300)  # type: ignore[misc]
        grown.append(megabytes(side.controller.pid))
    few, many = OPEN
    _say("memory of the controller for each open build", (grown[1] - grown[0]) * 1024 / (many - few), "KB")


def _from(make: Callable[[int], web.Request], first: int) -> Callable[[int], web.Request]:
    return lambda number: make(first + number)


def _rates(side: Side, node: Node) -> None:
    """Measure the rates of short builds, each of which starts as soon as it is requested."""
    ended, told = side.metric("kiln_builds_ended_total"), side.metric("kiln_deliveries_total")
    spent = _processor_seconds(side.controller.pid)
    with node.building(side.release):
        began = time.monotonic()
        web.load(partial(web.poster, side.url, "/webhooks/github", side.pushes()), each=CARRIED // web.SENDERS)
        accepted = time.monotonic() - began
        until(lambda: side.metric("kiln_builds_ended_total") >= ended + CARRIED, 540)
        carried = time.monotonic() - began
        until(lambda: side.metric("kiln_deliveries_total") >= told + EVENTS * CARRIED, 120)
        delivered = time.monotonic() - began
    each = (_processor_seconds(side.controller.pid) - spent) / CARRIED
    _say("events in", CARRIED / accepted, "a second")
    _say(f"builds of {SECONDS:g} s", CARRIED / carried * 3600, "an hour")
    _say("events out", EVENTS * CARRIED / delivered, "a second")
    _say("processor time of the controller for each build", each * 1000, "ms")
    _say("builds for which one processor would be enough", 3600 / each, "an hour")


def _lists(side: Side, api: Api) -> None:
    """Time the first page of all builds for a new reader, since web shares lists for two seconds."""
    there = 0
    for number in RECORDS:
        with ThreadPoolExecutor(web.SENDERS) as hands:
            list(hands.map(lambda _: api.create("configmaps", ended_record(api, side)), range(number - there)))
        there = number
        _say(f"first page of a list of {number} records", median(_listed(side, api) for _ in range(LISTS)), "s")


def _listed(side: Side, api: Api) -> float:
    records = KubernetesRecords(api, Owner(name=side.release))
    began = time.monotonic()
    records.list(limit=50)
    took = time.monotonic() - began
    records.close()
    return took


def _processor_seconds(pid: int) -> float:
    """Return the processor time of a process (proc_pid_stat(5), `utime` and `stime`)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _processor() -> str:
    """Return the processor's model as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _say(what: str, value: float, unit: str) -> None:
    print(f"  {what:<50} {value:>10.1f} {unit}", flush=True)
