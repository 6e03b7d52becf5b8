"""`kiln sync`: poll listed repositories once and report the requested builds, and those refused.

It writes records as web does, so it runs on the machine of the local engine, or in a pod of the release.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from builds.builder.log import clean
from builds.engines import EngineError, Submission
from builds.errors import RepositoryError, RequestError
from builds.repository import canonical
from builds.sync.missing import Listed
from builds.sync.reconciler import SyncReport
from kiln import wiring
from kiln.errors import CommandError
from kiln.wiring import Kiln

Say = Callable[[str], object]


def run(environ: Mapping[str, str], urls: Sequence[str], *, dry: bool, as_json: bool, say: Say, complain: Say) -> int:
    """Poll the listed repositories, or the given ones. Returns the exit status. Raises KilnError."""
    entries: list[dict[str, Any]] = []
    kiln = wiring.load(environ)
    chosen = _chosen(kiln, urls)
    if not chosen:
        raise CommandError("No repositories. List `repositories` in the YAML file, or name one.")
    try:
        records = wiring.records(kiln)
        try:
            look = wiring.sync(kiln, records)
            whole = True
            for listed in chosen:
                try:
                    compared = look.compare(listed)
                    looked = SyncReport(comparison=compared) if dry else look.submit(compared)
                except RequestError as error:
                    complain(f"kiln: error: {listed.url}: {error}")
                    entries.append(_failed(listed, error))
                    whole = False
                else:
                    entries.append(_shape(listed, looked, dry=dry))
                    whole = _tell(listed, looked, _nothing if as_json else say, complain, dry=dry) and whole
        finally:
            records.close()
    except EngineError as error:
        raise CommandError(str(error)) from error
    if as_json:
        say(json.dumps(entries, indent=2))
    return 0 if whole else 1


def _chosen(kiln: Kiln, urls: Sequence[str]) -> list[Listed]:
    """Return the given repositories, in their listed spelling if listed: filters may depend on it."""
    if not urls:
        return list(kiln.config.repositories)
    listed = {canonical(one.url, kiln.config.hosts).url: one for one in kiln.config.repositories}
    chosen: dict[str, Listed] = {}
    for url in urls:
        try:
            identity = canonical(url, kiln.config.hosts).url
        except RepositoryError:
            identity = url  # polling reports the fault
        chosen.setdefault(identity, listed.get(identity) or Listed(url=url))
    return list(chosen.values())


def _tell(listed: Listed, looked: SyncReport, say: Say, complain: Say, *, dry: bool) -> bool:
    """Return whether all builds were requested."""
    compared = looked.comparison
    now = compared.missing if dry else looked.asked
    what = f"{len(now)} would be requested" if dry else f"{len(now)} requested"
    say(f"{listed.url}: {what}, {compared.known} known already")
    for ask in now:
        say(f"  {_line(ask)}")
    for sentence in compared.refused:
        say(f"  not built: {sentence}")
    for sentence in compared.unanswered:
        complain(f"kiln: error: {listed.url}: {sentence}")
    if looked.left:
        complain(
            f"kiln: error: {listed.url}: {looked.left} skipped, because too many builds wait already, or too many "
            "events of one. Retry later."
        )
    return dry or looked.complete


def _shape(listed: Listed, looked: SyncReport, *, dry: bool) -> dict[str, Any]:
    """The result for one repository; `asked` are the names of the builds that were requested, or would be."""
    compared = looked.comparison
    asked = compared.missing if dry else looked.asked
    return {
        "repository": listed.url,
        "asked": [ask.name for ask in asked],
        "known": compared.known,
        "refused": [*compared.refused],
        "unanswered": [*compared.unanswered],
        "left": looked.left,
        "error": None,
    }


def _failed(listed: Listed, error: RequestError) -> dict[str, Any]:
    """The same members for a repository that could not be polled."""
    nothing: list[str] = []
    members = {"asked": nothing, "known": 0, "refused": nothing, "unanswered": nothing, "left": 0}
    return {"repository": listed.url, **members, "error": str(error)}


def _nothing(_: str) -> None:
    """Discard a line."""


def _line(ask: Submission) -> str:
    """Escape the text for a terminal, against control sequences in names."""
    return clean(" ".join(filter(None, (ask.name, ask.cause.ref, ask.request.commit[:12], ask.request.subdir))))
