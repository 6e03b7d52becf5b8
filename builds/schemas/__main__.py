"""Writes the schemas of `builds.report` to this folder."""

from __future__ import annotations

import json
from pathlib import Path

from builds.report import schemas

for name, schema in schemas().items():
    Path(__file__).with_name(name).write_text(json.dumps(schema, indent=2) + "\n")
