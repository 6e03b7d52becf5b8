"""Probes of the last webhook of each Git host, by the records of builds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from urllib.parse import urljoin

from builds.build import Build, Cause
from builds.engines import Records
from eventing.hosts import DIALECTS
from kiln import wiring
from kiln.doctor import cures
from kiln.doctor.findings import Probe, Symptom
from kiln.wiring import Kiln

PAGES, PAGE = 5, 200
"""That many of the newest builds are read."""


def probes(kiln: Kiln) -> Iterator[Probe]:
    words = [word for word in DIALECTS if kiln.secrets.webhooks(word)]
    for word in words:
        yield Probe(f"webhooks of {word}", partial(_last, kiln, word))


def _last(kiln: Kiln, word: str) -> str:
    last = max(_causes(kiln, word), key=lambda cause: cause.at, default=None)
    if last is None:
        address = urljoin(kiln.settings.public_url or "http://HOST/", f"{kiln.settings.base_path}webhooks/{word}")
        raise Symptom(cures.NO_WEBHOOK, "No build has been asked for by a webhook of this host.", address=address)
    minutes = (datetime.now(UTC) - last.at).total_seconds() / 60
    ago = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"  # noqa: PLR2004
    return f"the last one came {ago} ago ({last.at:%Y-%m-%d %H:%M} UTC), for {last.ref or last.type} of {last.source}"


def _causes(kiln: Kiln, word: str) -> Iterator[Cause]:
    for build in _newest(kiln):
        yield from (cause for cause in build.causes if cause.by == f"webhook:{word}")


def _newest(kiln: Kiln) -> Iterator[Build]:
    """Yields the latest builds; nothing without a database, which a probe must not create."""
    if kiln.settings.engine == "kubernetes" or (kiln.settings.state_dir / "kiln.db").exists():
        yield from _pages(wiring.records(kiln))


def _pages(records: Records) -> Iterator[Build]:
    cursor: str | None = None
    for _ in range(PAGES):
        page = records.list(limit=PAGE, cursor=cursor)
        yield from page.builds
        cursor = page.cursor
        if cursor is None:
            return
