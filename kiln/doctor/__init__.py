"""`kiln doctor` finds what is wrong with this machine, or with a release, and says what to do about it.

A probe is a small function with a name. It returns what it found, or raises Symptom with a cure. To add one, write the
function, add its cure to `cures`, and yield it from the `probes` of its module; a test then asks for a row in
docs/troubleshooting.md.

    findings    runs probes side by side
    cures       has every cure, in one table
    setup       probes configuration, secrets and the state folder

    machine     git, Docker or Podman, disks
    outside     registries, Git hosts, sinks, JupyterHub, OIDC issuers
    clock       this machine's clock and those of other hosts

    cluster     the Kubernetes API, permissions, daemons
    webhooks    the time of each Git host's last webhook
    server      a server elsewhere, through its HTTP API
    report      findings as a table or JSON
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from kiln import wiring
from kiln.doctor import clock, cluster, machine, outside, setup, webhooks
from kiln.doctor.findings import Finding, FindingState, Probe, examine
from kiln.errors import KilnError

if TYPE_CHECKING:
    from kiln.wiring import Kiln

__all__ = ["Finding", "FindingState", "Probe", "examine", "installation", "probes"]


def installation(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Examines the installation that these variables configure; only the machine if they are invalid."""
    try:
        kiln = wiring.load(environ)
    except KilnError as error:
        yield from setup.invalid(error)
        yield from examine([setup.version(), *machine.unconfigured(environ), *setup.unconfigured(environ)])
    else:
        yield from examine([setup.version(), setup.valid(kiln), *probes(kiln)])


def probes(kiln: Kiln) -> Iterator[Probe]:
    """Yields all probes of the machine and of the services that Kiln uses."""
    for module in (machine, setup, outside, cluster, clock, webhooks):
        yield from module.probes(kiln)
