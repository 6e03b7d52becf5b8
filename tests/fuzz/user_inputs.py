"""`kiln`: files and values from users (YAML, durations, saved requests), and streams from a server."""

from __future__ import annotations

from contextlib import suppress

import requests

from eventing import saved
from eventing.errors import SavedError
from eventing.hosts import DIALECTS
from kiln import config, quantities
from kiln.client import messages
from kiln.errors import ConfigError


def configuration(content: bytes) -> None:
    with suppress(ConfigError):
        config.parse(content)


def durations_and_sizes(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    for read in (quantities.duration, quantities.size):
        with suppress(ValueError):
            read(text)


def saved_requests(content: bytes) -> None:
    for host in (None, *DIALECTS):
        with suppress(SavedError):
            found = saved.parse(content, host)
            requests.Request("POST", "http://127.0.0.1/", headers=found.sent, data=found.body).prepare()


def server_sent_events(content: bytes) -> None:
    for _ in messages(content.split(b"\n")):
        pass
