"""The exchanges of the sender's thread, on asyncio and aiohttp.

Each sink has a lane: its own connections, name look-ups and limit of concurrent sends. A sink therefore delays only
itself, and a thousand events for an unresponsive sink take `LANE_WIDTH` sockets. A Git host counts as one sink. Kiln
sends it one request at a time, as GitHub recommends, and none during a rate limit.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import functools
import logging
import math
import os
import re
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
import tenacity

from eventing.errors import SinkError
from eventing.event import Event
from eventing.http import encode
from eventing.pulse import Pulse
from eventing.sinks import STOPPED, Headers, Outcome, Sink, judge, seconds_until, unanswered
from eventing.spans import Spans
from eventing.statuses import HostRequest, HostResponse, HostSink, redirected
from eventing.statuses.exchange import MAX_REDIRECTS
from eventing.tracing import Trace, trace_of

log = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds for one whole exchange: look-up, connection, request and answer, at any transfer rate."""
LANE_WIDTH = 8
"""Concurrent sends to one sink."""
HOST_WIDTH = 1
"""Concurrent conversations with one Git host."""
ANSWER_READ = 64 * 1024
"""Bytes of an answer's body that Kiln reads and drops, so that it can reuse the connection."""
HOST_ANSWER_READ = 8 * 2**20
"""Bytes of a Git host's answer: a page of comments may be long."""
BEAT = 2.0
"""Seconds between two heartbeats."""
BURST_TRIES, BURST_SECONDS = 3, 5.0
"""Tries of one send, and seconds after the first within which each must begin."""

_TOKEN = re.compile(r"[\x21-\x7e]+")


class Transport:
    """The loop and its lanes. Other threads call `submit` and `stop`; the rest runs in the thread that calls `run`."""

    def __init__(self, headers: Headers, spans: Spans | None = None) -> None:
        self._headers = headers
        self._spans = spans
        self._loop = _Loop()
        self._lanes: dict[str, _Lane] = {}
        self._sends: set[asyncio.Task[Outcome]] = set()
        self.pulse = Pulse("sender")

    def run(self) -> None:
        """Run until `stop`."""
        self._beat()
        try:
            self._loop.run_forever()
            self.pulse.rest()
        finally:
            self._loop.close()

    def _beat(self) -> None:
        self.pulse.beat()
        self._loop.call_later(BEAT, self._beat)

    def submit(self, event: Event, sink: Sink | HostSink, done: Callable[[Outcome], None]) -> None:
        """Start a send. `done` always gets its outcome."""
        self._loop.call_soon_threadsafe(self._begin, event, sink, done)

    def stop(self) -> None:
        """Abort every send, then end the loop."""
        try:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _begin(self, event: Event, sink: Sink | HostSink, done: Callable[[Outcome], None]) -> None:
        def finished(task: asyncio.Task[Outcome]) -> None:
            self._sends.discard(task)
            done(_outcome_of(task))

        send = self._converse(event, sink) if isinstance(sink, HostSink) else self._send(event, sink)
        task = self._loop.create_task(send)
        self._sends.add(task)
        task.add_done_callback(finished)  # not in the coroutine: one that is cancelled before it began never runs

    async def _end(self) -> None:
        sends = tuple(self._sends)
        for task in sends:
            task.cancel()
        await asyncio.gather(*sends, return_exceptions=True)
        for lane in self._lanes.values():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5 / len(self._lanes)):
                    await lane.session.close()
        await self._loop.shutdown_default_executor()

    async def _send(self, event: Event, sink: Sink) -> Outcome:
        lane = self._lanes.get(sink.name) or self._lanes.setdefault(sink.name, _Lane())
        event = msgspec.structs.replace(event, extensions={**event.extensions, **sink.extensions})

        async def exchange(trace: Trace | None) -> Outcome:
            return await _exchange(lane.session, event, sink, self._headers, trace)

        async def once() -> Outcome:
            async with lane.places:  # released between tries: a pausing send delays no other
                return await self._traced(event, sink.name, exchange)

        return await _burst(once)

    async def _converse(self, event: Event, sink: HostSink) -> Outcome:
        lane = self._lanes.get(sink.lane) or self._lanes.setdefault(sink.lane, _Lane(HOST_WIDTH))

        async def once() -> Outcome:
            async with lane.places:
                return await self._traced(event, sink.name, lambda _: _conversation(lane, event, sink))

        return await _burst(once)

    async def _traced(
        self, event: Event, sink: str, exchange: Callable[[Trace | None], Coroutine[Any, Any, Outcome]]
    ) -> Outcome:
        """Make one try within its trace: the event's, or a span of it if spans are collected."""
        trace = trace_of(event.extensions)
        if self._spans is None:
            return await exchange(trace)
        span = self._spans.begin(f"send {event.type}", trace, kind="client")
        about: dict[str, str | int] = {"cloudevents.event_id": event.id, "cloudevents.event_source": event.source}
        about |= {"cloudevents.event_type": event.type, "kiln.sink": sink}
        error: str | None = "the send was aborted"
        try:
            outcome = await exchange(span.trace)
            error = outcome.error
            about |= {"http.response.status_code": outcome.status} if outcome.status else {}
        finally:
            span.end(about, error=error)
        return outcome


class _Lane:
    def __init__(self, width: int = LANE_WIDTH) -> None:
        self.places = asyncio.Semaphore(width)
        self.rests: dict[str, float] = {}
        """End of the host's rate limit for these credentials, by the loop's clock."""
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=width, resolver=aiohttp.ThreadedResolver()),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # `_exchange` has its own: this one rounds up to whole seconds
            auto_decompress=False,
            # The proxies alone: aiohttp would also send the credentials in ~/.netrc, which conflict with our token.
            trust_env=False,
        )


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that resolves each name in a separate thread.

    The default executor shares a few threads, which names with unresponsive servers would occupy. The interpreter waits
    for them at exit. aiohttp makes one query per name at a time, so a lane has one thread.
    """

    async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def look_up() -> None:
            try:
                answer.set_result(socket.getaddrinfo(*args, **kwargs))
            except (OSError, ValueError) as error:
                answer.set_exception(error)

        answer.set_running_or_notify_cancel()  # from here on no other thread can cancel it
        threading.Thread(target=look_up, name="look-up", daemon=True).start()
        return await asyncio.wrap_future(answer, loop=self)


async def _burst(once: Callable[[], Any]) -> Outcome:
    """Make a few tries, for a restart or a lost packet; pause for a short `Retry-After`."""

    def wait(state: tenacity.RetryCallState) -> float:
        return max(0.5 * 2.0 ** (state.attempt_number - 1), _last(state).retry_after or 0.0)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_result(lambda outcome: not outcome.final),
        wait=wait,
        stop=tenacity.stop_any(tenacity.stop_after_attempt(BURST_TRIES), tenacity.stop_before_delay(BURST_SECONDS)),
        retry_error_callback=_last,
    )
    outcome: Outcome = await retrying(once)
    return outcome


def _last(state: tenacity.RetryCallState) -> Outcome:
    assert state.outcome is not None  # noqa: S101 - tenacity calls this only after a try
    outcome: Outcome = state.outcome.result()
    return outcome


async def _exchange(
    session: aiohttp.ClientSession, event: Event, sink: Sink, headers: Headers, trace: Trace | None
) -> Outcome:
    ours, body = encode(event, sink.mode)
    try:
        sent = _merged(_token(sink), headers(sink.name), trace.carried if trace else {}, ours)
    except SinkError as error:
        return unanswered(str(error))
    return await _request(session, "POST", sink, sent, body)


async def _conversation(lane: _Lane, event: Event, sink: HostSink) -> Outcome:
    """Report an event to a Git host, unless its rate limit is in force."""
    now, trace = asyncio.get_running_loop().time, trace_of(event.extensions)
    headers = _merged(sink.headers, trace.carried if trace else {})
    who = headers.get("authorization", "")
    if (left := lane.rests.get(who, 0.0) - now()) > 0:
        return Outcome(delivered=False, final=False, error="its rate limit is in force", retry_after=left)
    talk = sink.talk(event)
    try:
        request = next(talk)
        while True:
            request = talk.send(await _asked(lane.session, request, headers, sink.ca))
    except StopIteration as end:
        outcome: Outcome = end.value
    except (aiohttp.ClientError, OSError) as error:
        outcome = unanswered(_why(error))
    if outcome.retry_after:
        lane.rests[who] = now() + outcome.retry_after
    return outcome


async def _asked(
    session: aiohttp.ClientSession, request: HostRequest, headers: Mapping[str, str], ca: str | None
) -> HostResponse:
    """Return the answer of a Git host after redirects within it. Raises OSError and aiohttp's errors."""
    for _ in range(MAX_REDIRECTS):
        answer = await _exchanged(session, request, headers, ca)
        moved = redirected(request, answer)
        if moved is None:
            break
        request = moved
    return answer


async def _exchanged(
    session: aiohttp.ClientSession, request: HostRequest, headers: Mapping[str, str], ca: str | None
) -> HostResponse:
    async with (
        asyncio.timeout(TIMEOUT),
        session.request(
            request.method,
            request.url,
            json=request.body,
            headers=_merged({"User-Agent": "kiln"}, headers),
            allow_redirects=False,
            ssl=_trust(ca),
            proxy=_proxy(request.url),
        ) as answer,
    ):
        body = await _read(answer, HOST_ANSWER_READ)
        named = {name.lower(): value for name, value in answer.headers.items()}
        return HostResponse(status=answer.status, headers=named, body=body, at=datetime.now(UTC))


async def _request(
    session: aiohttp.ClientSession, method: str, sink: Sink, headers: dict[str, str], body: bytes | None = None
) -> Outcome:
    try:
        async with (
            asyncio.timeout(TIMEOUT),
            session.request(
                method,
                sink.url,
                data=body,
                headers=_merged({"User-Agent": "kiln"}, headers),
                allow_redirects=False,
                ssl=_trust(sink.ca),
                proxy=_proxy(sink.url),
            ) as answer,
        ):
            await _read(answer, ANSWER_READ)
            return judge(answer.status, seconds_until(answer.headers.get("Retry-After"), datetime.now(UTC)))
    except (aiohttp.ClientError, OSError) as error:
        return unanswered(_why(error))


def options(sink: Sink, headers: Headers, origin: str) -> Outcome:
    """Return the sink's answer to OPTIONS; blocks."""

    async def ask() -> Outcome:
        lane = _Lane()
        async with lane.session:
            sent = _merged(_token(sink), headers(sink.name), {"WebHook-Request-Origin": origin})
            return await _request(lane.session, "OPTIONS", sink, sent)

    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(ask())


def get(url: str, headers: Mapping[str, str], ca: str | None) -> Outcome:
    """Return a Git host's answer to GET; blocks."""

    async def ask() -> Outcome:
        lane = _Lane(HOST_WIDTH)
        async with lane.session:
            try:
                return judge((await _exchanged(lane.session, HostRequest(method="GET", url=url), headers, ca)).status)
            except (aiohttp.ClientError, OSError) as error:
                return unanswered(_why(error))

    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(ask())


async def _read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """Read the body up to its end or its limit. A broken body changes nothing: the status has arrived."""
    read = bytearray()
    with suppress(aiohttp.ClientPayloadError):
        async for piece in answer.content.iter_any():
            read += piece
            if len(read) > most:
                answer.close()
                break
    return bytes(read[:most])


def _merged(*headers: Any) -> dict[str, str]:
    """Merge headers; later ones win, ignoring case."""
    return {name.lower(): value for some in headers for name, value in some.items()}


def _token(sink: Sink) -> dict[str, str]:
    """Return the current token in the sink's file; nothing without the file.

    Raises SinkError for an invalid token that may be replaced soon: the issuer of the tokens normally writes a new one
    before the old one expires.
    """
    if sink.token_file is None:
        return {}
    try:
        token = Path(sink.token_file).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SinkError(f"cannot read its token file: {_of_system(error)}") from None
    except ValueError:
        token = ""
    if not _TOKEN.fullmatch(token):
        raise SinkError("its token file is empty or malformed")
    if _expiry(token) <= time.time():
        raise SinkError("the token in its token file has expired")
    return {"Authorization": f"Bearer {token}"}


class _Expiring(msgspec.Struct):
    exp: float


def _expiry(token: str) -> float:
    """Return the expiry of a JWT (RFC 7519, §4.1.4) as Unix time; other tokens never expire."""
    try:
        payload = token.split(".")[1]
        return msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Expiring).exp
    except (IndexError, ValueError, RecursionError):
        return math.inf


def _proxy(url: str) -> str | None:
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


@functools.cache
def _trust(ca: str | None) -> ssl.SSLContext:
    """Trust the system's authorities and the sink's own; ignore REQUESTS_CA_BUNDLE, which would replace both."""
    context = ssl.create_default_context()
    if ca:
        context.load_verify_locations(cadata=ca)
    return context


def _why(error: Exception) -> str:
    """Explain a failed exchange without `str(error)`, which may contain the URL or the sink's text."""
    match error:
        case TimeoutError():
            why = f"no complete answer within {TIMEOUT:g} s"
        case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLCertVerificationError() as reason):
            why = f"its TLS certificate is not trusted: {reason.verify_message.rstrip('.')}"
        case aiohttp.ClientConnectorDNSError():
            why = "its host name cannot be resolved"
        case aiohttp.ClientHttpProxyError():
            why = f"the proxy answered {error.status}"
        case aiohttp.ClientProxyConnectionError():
            why = f"the proxy cannot be reached: {_of_system(error)}"
        case aiohttp.ClientConnectorError():
            why = f"it cannot be reached: {_of_system(error)}"
        case aiohttp.ClientConnectionError() | ConnectionError():
            why = "the connection closed before the answer"
        case aiohttp.ClientResponseError():
            why = "the answer is not HTTP"
        case _:
            why = f"it could not be sent ({type(error).__name__})"
    return why


def _of_system(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else type(error).__name__


def _outcome_of(task: asyncio.Task[Outcome]) -> Outcome:
    if task.cancelled():
        return STOPPED
    if error := task.exception():  # a failing headers callable, an event that cannot be encoded
        # The message may contain a header's value, so log only the kind and the place.
        log.error("Cannot send: %s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
        return unanswered(f"it could not be sent ({type(error).__name__})")
    return task.result()
