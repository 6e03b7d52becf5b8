"""A house as a WSGI application for a real server. `HOUSE` is its folder, `HOUSE_VIEWERS` its limit of viewers."""

from __future__ import annotations

import os
from pathlib import Path

from handlers import logs
from tests.handlers.house import build_house

logs.KEEPALIVE = 0.2
logs.IDLE = 0.2
house = build_house(
    Path(os.environ["HOUSE"]), max_body=100_000, max_viewers=int(os.environ["HOUSE_VIEWERS"]), auth=["none"]
)
application = house.app
