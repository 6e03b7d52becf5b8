"""Two threads never decode a Struct for the first time at the same time: that would crash the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = {
    "web": """
from tests.handlers.harness import create_harness
create_harness(folder)
""",
    "the local engine": """
from builds.builder.spec import Surroundings
from builds.engines.local import LocalEngine
LocalEngine(folder, surroundings=Surroundings())
""",
    "a client of the Kubernetes API": """
from kubernetes.client.configuration import Configuration
from builds.engines.kubernetes.api import Api
import builds.engines.kubernetes
Api(Configuration(), "default")
""",
    "a controller": """
import builds.clients.registry, builds.clients.githubapi
from builds.controller import Controller
Controller(*[None], limits=None, sinks=(), sender=None, confirmer=None, inspector=None, events=None)
""",
}
PROGRAM = """
import sys, tempfile
from pathlib import Path
import msgspec
folder = Path(tempfile.mkdtemp(dir={folder!r}))
{begin}
from builds.structs import structs
known = list(structs())
assert len(known) > 10
for struct in known:
    struct.__annotations__ = {{"field": "what is no type"}}
for struct in known:
    msgspec.json.Decoder(struct)  # not worked out any more
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", BEGIN)
def test_all_are_ready_before_threads_begin(part: str, tmp_path: object) -> None:
    program = PROGRAM.format(folder=str(tmp_path), begin=BEGIN[part])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
