"""This version reads the records of every version that a release has written, and loses nothing in them.

`tests/data/records/<version>/` has them as they were stored: `<name>-configmap.json` on Kubernetes, `builds.sql` in the
local engine's file. `<name>.json` is their decoded content. In `full` every field has a value. These files never
change: a new version of the format gets a folder of its own.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builds.build import VERSION, Build
from builds.engines.kubernetes.records import build_of, summary_of
from builds.engines.local.store import Store

FOLDER = Path(__file__).parents[1] / "data" / "records"
RECORDS = sorted(path for path in FOLDER.glob("*/*.json") if not path.name.endswith("-configmap.json"))
each_record = pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parent.name}-{path.stem}")


def lost(stored: Any, kept: Any, where: str = "") -> list[str]:
    """Return the paths of values in `stored` that `kept` lacks or has otherwise."""
    if isinstance(stored, dict):
        return [
            found for key, value in stored.items() for found in lost(value, (kept or {}).get(key), f"{where}.{key}")
        ]
    if isinstance(stored, list) and isinstance(kept, list) and len(stored) == len(kept):
        pairs = enumerate(zip(stored, kept, strict=True))
        return [found for at, (one, other) in pairs for found in lost(one, other, f"{where}[{at}]")]
    return [] if stored == kept else [where]


def as_stored(build: Build) -> Any:
    return json.loads(msgspec.json.encode(build))


def current(record: Any) -> Any:
    """Return the record without the fields that describe its storage."""
    return {key: value for key, value in record.items() if key not in ("version", "revision")}


def test_the_version_that_is_written_has_samples() -> None:
    assert (FOLDER / str(VERSION) / "full.json") in RECORDS


@each_record
def test_a_record_in_sqlite_is_read(path: Path, tmp_path: Path) -> None:
    stored = json.loads(path.read_text())
    file = tmp_path / "builds.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(path.with_name("builds.sql").read_text())
    with closing(Store(file, max_queued=1, max_queued_per_user=1, now=lambda: datetime.now(UTC))) as store:
        assert lost(current(stored), as_stored(store.get(stored["name"]))) == []


@each_record
def test_a_record_in_a_config_map_is_read(path: Path) -> None:
    stored = json.loads(path.read_text())
    found = json.loads(path.with_name(f"{path.stem}-configmap.json").read_text())
    assert lost(current(stored), as_stored(build_of(found))) == []
    shown = as_stored(summary_of(found["metadata"]))
    assert lost(stored["request"], shown["request"]) == []
    assert lost(stored["causes"], shown["causes"]) == []
