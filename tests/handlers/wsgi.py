"""A WSGI application for a real server over the harness in the folder `HARNESS`, for `HARNESS_VIEWERS` viewers."""

from __future__ import annotations

import os
from pathlib import Path

from handlers import logs
from tests.handlers.harness import create_harness

logs.KEEPALIVE = 0.2
logs.CHANGE_TIMEOUT = 0.2
harness = create_harness(
    Path(os.environ["HARNESS"]), max_body=100_000, max_viewers=int(os.environ["HARNESS_VIEWERS"]), auth=["none"]
)
application = harness.app
