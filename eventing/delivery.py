"""Gives events to sinks, none of them ever late because of another.

One thread with an event loop does all of it, because a sink may hold a connection for the whole ten seconds and there
may be hundreds of such sends: as threads they would be the shared bottleneck. It is the only place that speaks to
sinks. What lasts longer than a blip is not retried here: the outcome goes back to whoever keeps the durable schedule
(`eventing.sinks.pause`), so nothing is lost with this process.

Importing this module is cheap. The HTTP client (0.6 s) comes with the first `Courier`, for web never has one. The sink
that the environment brings is read here too: its certificates are files.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from eventing.errors import SinkError
from eventing.event import Event, Format, Scalar
from eventing.sinks import STOPPED, Headers, Outcome, Sink
from eventing.spans import Spans
from eventing.statuses import HostSink


class Courier:
    """Sends events. Construct it where events are delivered, `close()` it at the end; safe to call from any thread.

    Within one send a blip is bridged by a few tries over some five seconds. At most 10 s pass from a try's first packet
    (its DNS query included) to the end of the answer. No redirect is followed, no cookie kept. Proxies are used as
    `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say. `spans` are told of each try.
    """

    def __init__(self, headers: Headers | None = None, spans: Spans | None = None) -> None:
        from eventing.transport import Transport  # noqa: PLC0415 - see above

        self._transport = Transport(headers or (lambda _: {}), spans)
        self.pulse = self._transport.pulse
        self._open = True
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._transport.run, name="courier", daemon=True)
        self._thread.start()

    def send(self, event: Event, sink: Sink | HostSink, done: Callable[[Outcome], None]) -> None:
        """Sends the event to the sink, or tells the Git host of it, and returns at once.

        `done` is called exactly once, in the courier's thread (so it must be quick), or in this one after `close()`.
        """
        with self._lock:
            if self._open:
                self._transport.submit(event, sink, done)
                return
        done(STOPPED)

    def close(self) -> None:
        """Gives up what is under way, each with an outcome that is neither delivered nor final, within a second."""
        with self._lock:
            was_open, self._open = self._open, False
        if was_open:
            self._transport.stop()
            self._thread.join()


def reach(sink: Sink, headers: Headers, origin: str) -> int:
    """The status that a sink answers an OPTIONS request with, sent as events are, from `origin` (a host's name).

    That is what the webhook specification asks a receiver by whether it wants events, and no event. One that does not
    know it answers as well: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md §4.1.
    Raises SinkError where there is no answer.
    """
    from eventing.transport import options  # noqa: PLC0415 - see above

    outcome = options(sink, headers, origin)
    if outcome.status is None:
        raise SinkError(outcome.error or "no answer")
    return outcome.status


def reach_host(url: str, headers: Mapping[str, str], ca: str | None) -> int:
    """The status that the API of a Git host answers a GET with, sent as statuses are. Raises SinkError without one."""
    from eventing.transport import get  # noqa: PLC0415 - see above

    outcome = get(url, headers, ca)
    if outcome.status is None:
        raise SinkError(outcome.error or "no answer")
    return outcome.status


class _Overrides(msgspec.Struct):
    """`K_CE_OVERRIDES`: Knative's `CloudEventOverrides`, of which there are only extensions so far."""

    extensions: dict[str, Scalar] | None = None


def sinks_from_environment(
    environment: Mapping[str, str],
    *,
    format: Format = "kiln",  # noqa: A002  (the sink's word)
    token: Path = Path("/oidc/token"),
    certificates: Path = Path("/knative-custom-certs"),
) -> list[Sink]:
    """The sink that a Knative SinkBinding injects (`K_SINK`, `K_CE_OVERRIDES`, `K_CA_CERTS`), named `k-sink`, or none.

    `token` is where Knative mounts the OIDC token for it, `certificates` the folder of further authorities (`*.pem`).
    Raises SinkError.
    """
    if not (url := environment.get("K_SINK", "").strip()):
        return []
    try:
        overrides = msgspec.json.decode(environment.get("K_CE_OVERRIDES", "").strip() or "{}", type=_Overrides)
    except msgspec.DecodeError as error:
        raise SinkError(f'K_CE_OVERRIDES must be JSON like {{"extensions": {{"name": "value"}}}}: {error}') from None
    ca = _certificates(environment.get("K_CA_CERTS", ""), certificates)
    try:
        return [
            Sink(
                name="k-sink",
                url=url,
                format=format,
                ca=ca or None,
                token_file=str(token),
                extensions=overrides.extensions or {},
            )
        ]
    except ValueError as error:
        raise SinkError(f"K_SINK or K_CE_OVERRIDES: {error}") from None


def _certificates(injected: str, folder: Path) -> str:
    try:
        texts = [injected.encode(), *(file.read_bytes() for file in sorted(folder.rglob("*.pem")))]
        pem = b"\n".join(texts).decode("ascii", "ignore").strip()  # bundles name their authorities in any script
        if any(text.strip() for text in texts):
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (OSError, ValueError) as error:
        raise SinkError(
            f"K_CA_CERTS and {folder}/**/*.pem must be certificates in PEM form ({type(error).__name__})"
        ) from None
    return pem
