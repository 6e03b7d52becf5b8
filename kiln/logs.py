"""Logs as JSON lines on standard error, one shape for web, controller, gunicorn and libraries.

`{"time", "level", "logger", "message"}` and whatever the caller gave as `extra`: `event_id` and `build` where a line is
about one. A logged object is only ever shown by its `str`, and nothing here that holds a secret shows it there.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec

from eventing.event import timestamp

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_QUIET = ("asyncio", "urllib3")


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": timestamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _OWN and value is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def configure(level: str) -> None:
    """Sends every logger's lines to standard error from now on. `level` as in `KILN_LOG_LEVEL`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))
