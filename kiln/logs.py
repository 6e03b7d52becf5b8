"""Logs as JSON lines on standard error, in one format for web, controller, gunicorn and libraries.

`{"time", "level", "logger", "message"}` and the caller's `extra`: `event_id` and `build` if the line refers to one. A
logged object appears only by its `str`, and objects with secrets hide them there.
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
    """Send every logger's lines to standard error. `level` as in `KILN_LOG_LEVEL`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))
