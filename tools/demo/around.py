"""The container that `make cluster` starts beside the cluster: a Git host, and a sink that prints its events.

python -m tools.demo.around ROOT     # the bare repositories
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from eventing.event import Event
from eventing.http import encode
from tests.parts.githost import GitHost
from tests.parts.sink import EventSink, Received

EVERYWHERE = "0.0.0.0"
GIT_PORT, SINK_PORT = 8080, 8081


def main(root: str) -> None:
    with GitHost(Path(root), EVERYWHERE, GIT_PORT), EventSink(address=EVERYWHERE, port=SINK_PORT) as sink:
        for event in events(sink):
            _, body = encode(event, "structured")
            print(json.dumps(json.loads(body), indent=2), flush=True)


def events(sink: EventSink) -> Iterator[Event]:
    """Each as it comes, for ever."""
    shown: list[Received] = []
    while True:
        with suppress(AssertionError):  # nothing came, all day
            sink.wait_for(lambda received: len(received) > len(shown), timeout=86400)
        for request in sink.received[len(shown) :]:
            shown.append(request)
            yield from request.events


if __name__ == "__main__":
    main(*sys.argv[1:])
