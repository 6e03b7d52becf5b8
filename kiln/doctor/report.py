"""Findings as a table, or as JSON: `{"state": the worst, "findings": [{"probe", "state", "found", "cure"}]}`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import msgspec

from kiln import tables
from kiln.doctor.findings import Finding, FindingState


def report(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Prints the findings, and returns the exit status."""
    found = list(findings)
    worst = max((one.state for one in found), key=list(FindingState).index, default=FindingState.OK)
    if as_json:
        text = msgspec.json.format(msgspec.json.encode({"state": worst, "findings": found}), indent=2)
        sys.stdout.write(f"{text.decode()}\n")
    else:
        tables.print_findings(found)
    return 1 if worst is FindingState.FAILED else 0
