"""Deliver events to sinks; no sink delays another.

One thread runs an event loop for all sends. A sink may hold a connection for ten seconds, and hundreds of sends may be
in flight: a pool of threads would be the shared bottleneck. Only this thread connects to sinks. It does not retry long
outages. It reports the outcome to the owner of the durable schedule (`eventing.sinks.pause`), so the loss of this
process loses no event.

Importing this module is cheap. The first `EventSender` imports the HTTP client (0.6 s), which web never needs. This
module also reads the injected sink from the environment, because its certificates are files.
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


class EventSender:
    """Send events. Construct it in the process that delivers; call `close()` at the end. Safe to call from any thread.

    Each send bridges a short outage with a few tries within about five seconds. At most 10 s pass from the first packet
    of a try, including its DNS query, to the end of the answer. It follows no redirect and stores no cookie.
    `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` select proxies. `spans` receives one span for each try.
    """

    def __init__(self, headers: Headers | None = None, spans: Spans | None = None) -> None:
        from eventing.transport import Transport  # noqa: PLC0415 - see above

        self._transport = Transport(headers or (lambda _: {}), spans)
        self.pulse = self._transport.pulse
        self._open = True
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._transport.run, name="sender", daemon=True)
        self._thread.start()

    def send(self, event: Event, sink: Sink | HostSink, done: Callable[[Outcome], None]) -> None:
        """Start the delivery of the event and return immediately.

        `done` is called exactly once, in the sender's thread (so it must be quick), or in this thread after `close()`.
        """
        with self._lock:
            if self._open:
                self._transport.submit(event, sink, done)
                return
        done(STOPPED)

    def close(self) -> None:
        """Abort pending sends within a second; each gets an outcome that is neither delivered nor final."""
        with self._lock:
            was_open, self._open = self._open, False
        if was_open:
            self._transport.stop()
            self._thread.join()


def reach(sink: Sink, headers: Headers, origin: str) -> int:
    """Return the status with which a sink answers an OPTIONS request from `origin` (a host's name), sent as events are.

    The webhook specification uses this request to ask a receiver for permission, without sending an event. Receivers
    that do not implement it answer too: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md
    §4.1. Raises SinkError without an answer.
    """
    from eventing.transport import options  # noqa: PLC0415 - see above

    outcome = options(sink, headers, origin)
    if outcome.status is None:
        raise SinkError(outcome.error or "no answer")
    return outcome.status


def reach_host(url: str, headers: Mapping[str, str], ca: str | None) -> int:
    """Return the status with which a Git host's API answers a GET, sent as statuses are. Raises SinkError without an
    answer.
    """
    from eventing.transport import get  # noqa: PLC0415 - see above

    outcome = get(url, headers, ca)
    if outcome.status is None:
        raise SinkError(outcome.error or "no answer")
    return outcome.status


class _Overrides(msgspec.Struct):
    """`K_CE_OVERRIDES`: Knative's `CloudEventOverrides`, which so far define extensions only."""

    extensions: dict[str, Scalar] | None = None


def sinks_from_environment(
    environment: Mapping[str, str],
    *,
    format: Format = "kiln",  # noqa: A002  (the sink's word)
    token: Path = Path("/oidc/token"),
    certificates: Path = Path("/knative-custom-certs"),
) -> list[Sink]:
    """Return the sink that a Knative SinkBinding injects (`K_SINK`, `K_CE_OVERRIDES`, `K_CA_CERTS`), named `k-sink`, or
    none.

    `token` is the path where Knative mounts the OIDC token, `certificates` the folder of additional authorities
    (`*.pem`). Raises SinkError.
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
