"""The JupyterHub side of Kiln: forward the Hub's events to Kiln, and start servers from images that Kiln builds.

The module works when copied alone, because mounting a file is simpler than building a Hub's image. It therefore needs
only the standard library, from Python 3.9 on, and nothing of Kiln. In `jupyterhub_config.py`:

    from kiln_hub import KilnHandler, image_hook, profile_list

    kiln = "http://kiln/services/binder/", "<token>"    # its URL with the base path, and a valid token
    c.EventLogger.handlers = [KilnHandler(*kiln)]
    c.Spawner.pre_spawn_hook = image_hook(*kiln)
    c.KubeSpawner.profile_list = profile_list(*kiln)

A Hub is one event loop for all of its users, so every wait for Kiln happens in a thread. The Hub works without Kiln:
its servers then start from their default image, unless configured otherwise.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import http.client
import itertools
import json
import logging
import math
import queue
import re
import sys
import threading
import time
import urllib.request
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit

__all__ = ["KilnHandler", "image_hook", "profile_list"]

Build = Mapping[str, Any]
"""The format of Kiln's API."""
Profile = dict[str, Any]
"""The format of KubeSpawner."""
T = TypeVar("T")

log = logging.getLogger("kiln")

ENDED = ("succeeded", "failed", "cancelled")
RETRYABLE = frozenset({404, 408, 409, 429})
"""Retryable statuses below 500: a route during its deployment answers 404."""
FOR_THE_USER = frozenset({400, 403, 413, 422})
"""Statuses that concern the request. All others concern Kiln, or the configuration of this Hub."""
TIMEOUT = 20.0
"""Seconds to an answer. Kiln looks up a ref first."""
SILENCE = 30.0
"""Seconds of silence after which a stream counts as lost: Kiln sends a comment every ten."""


# Kiln over HTTP ------------------------------------------------------------------------------------------------------


class Away(Exception):
    """Kiln does not answer, or not usefully. The text gives the reason."""


class RequestRefused(Exception):
    """Kiln refuses the request. The text is for the user."""


class Answer(NamedTuple):
    status: int
    reason: str
    retry_after: float | None
    body: bytes

    @property
    def passing(self) -> bool:
        """Return whether a later answer may differ."""
        return self.status in RETRYABLE or self.status >= 500  # noqa: PLR2004

    @property
    def value(self) -> dict[str, Any]:
        """Return its JSON object; empty without one."""
        with suppress(ValueError):
            value = json.loads(self.body)
            return value if isinstance(value, dict) else {}
        return {}

    @property
    def build(self) -> Build:
        """Return the build. Raises Away without one: then the server is not Kiln."""
        if not {"name", "state"} <= self.value.keys():
            raise Away("the server there is not Kiln")
        return self.value

    @property
    def detail(self) -> str:
        """Return the sentence of the problem (RFC 9457), if any."""
        return str(self.value.get("detail") or "")

    def __str__(self) -> str:
        return f"it answered {self.status} {self.reason}" + (f": {self.detail}" if self.detail else "")


class KilnClient:
    """A Kiln at `url`, with its base path. All methods block, and raise Away."""

    def __init__(self, url: str, token: str | None) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"Kiln's address must be an http or https URL, and {url!r} is none")
        self._url = url.rstrip("/") + "/"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._opener = urllib.request.build_opener(_AsItIs)

    def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}, timeout: float = TIMEOUT
    ) -> Answer:
        """Send a GET, or with a body a POST."""
        try:
            with self._open(path, body, headers, timeout) as answer:
                return _answer(answer)
        except (OSError, http.client.HTTPException) as error:
            raise Away(f"it does not answer ({_why(error)})") from None

    def build(self, name: str) -> Build:
        answer = self.ask(f"api/v1/builds/{quote(name)}")
        if answer.status != http.client.OK:
            raise Away(str(answer))
        return answer.build

    def follow(self, name: str, last: str | None, stop: threading.Event) -> Iterator[Message]:
        """Yield the build's log and states, from the message with the id `last` to the end of the connection."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        try:
            with self._open(f"api/v1/builds/{quote(name)}/log", None, headers, SILENCE) as answer:
                if answer.status != http.client.OK:
                    raise Away(str(_answer(answer)))
                yield from messages(_until(stop, answer))
        except (OSError, http.client.HTTPException) as error:
            raise Away(f"the connection was lost ({_why(error)})") from None

    def _open(self, path: str, body: bytes | None, headers: Mapping[str, str], timeout: float) -> Any:
        request = urllib.request.Request(self._url + path, body, {**self._headers, **headers})  # noqa: S310 - checked
        return self._opener.open(request, timeout=timeout)


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Return every answer. Follow no redirect: the token is for one server."""

    def http_response(self, request: Any, response: Any) -> Any:  # noqa: ARG002
        return response

    https_response = http_response


class Message(NamedTuple):
    """One server-sent event: `log` with {"line", "phase"}, `state` with the build."""

    kind: str
    data: Mapping[str, Any]
    id: str | None


def messages(lines: Iterable[bytes]) -> Iterator[Message]:
    """Parse server-sent events from their lines; skip comments."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(":")
        if name or value:
            fields[name] = value.removeprefix(" ")
            continue
        with suppress(ValueError):
            yield Message(fields.get("event", "message"), json.loads(fields.get("data", "")), fields.get("id"))
        fields = {}


def _until(stop: threading.Event, lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        if stop.is_set():
            return
        yield line


def _answer(answer: Any) -> Answer:
    after = answer.headers.get("Retry-After", "")
    seconds = float(after) if re.fullmatch(r"[0-9]{1,6}", after) else None
    return Answer(answer.status, answer.reason, seconds, answer.read())


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(error).__name__


async def _in_thread(work: Callable[[], T]) -> T:
    """Return the result of `work`, or raise its error, in a separate thread.

    The event loop's executor has few threads, in which the Hub looks up names; servers that wait for their images would
    occupy them. The Hub can exit before the thread ends.
    """
    future: Future[T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised at the await
            future.set_exception(error)

    threading.Thread(target=run, name="kiln", daemon=True).start()
    return await asyncio.wrap_future(future)


# The Hub's events ----------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A CloudEvent in binary mode."""

    headers: Mapping[str, str]
    body: bytes
    at: float
    """When it happened (Unix time)."""


def cloud_event(record: logging.LogRecord, source: str) -> Sent | None:
    """Convert a record of the Hub's event log to an event; `None` unless a server started or stopped.

    The time is the log record's, because the Hub's `__timestamp__` has two offsets, which no parser accepts. The id is
    a digest of the content, so it is the same at each reading.
    """
    entry = record.msg
    if not isinstance(entry, Mapping) or not str(entry.get("__schema__", "")).endswith("/server-action"):
        return None
    data = {name: str(entry[name]) for name in ("action", "username", "servername")}
    subject = f"user/{data['username']}/{data['servername']}"
    when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="microseconds")
    schema = str(entry["__schema__"])
    context = {
        "specversion": "1.0",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, " ".join([source, data["action"], subject, when]))),
        "source": source,
        "type": f"org.jupyterhub.server.{data['action']}",
        "subject": subject,
        "time": when.replace("+00:00", "Z"),
        **({"dataschema": schema} if urlsplit(schema).scheme else {}),
    }
    headers = {f"ce-{name}": quote(value, safe=_PLAIN) for name, value in context.items()}
    return Sent({**headers, "Content-Type": "application/json"}, json.dumps(data).encode(), record.created)


_PLAIN = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
"""Characters without an escape in a header (CloudEvents' HTTP binding, §3.1.3.2)."""


def hub_url() -> str:
    """Return the URL of this Hub: its public URL if known, else the address of its proxy."""
    app = sys.modules["jupyterhub.app"].JupyterHub.instance()
    return str(getattr(app, "public_url", "") or app.bind_url)


class KilnHandler(logging.Handler):
    """Send the Hub's events: an element of `c.EventLogger.handlers`.

    `source` names this Hub in the events; the default is its URL. At most `size` events wait in memory, in order, for
    at most `period` seconds. Later ones are dropped, logged and counted (`dropped`). When the Hub stops, each remaining
    event is tried once more, for five seconds in all.
    """

    LONGEST_PAUSE = 60.0
    """Seconds between two tries, and between two log lines about dropped events."""
    LAST_WORDS = 5.0

    def __init__(
        self, url: str, token: str | None, *, source: str | None = None, size: int = 1000, period: float = 3600.0
    ) -> None:
        super().__init__()
        self.dropped = 0
        self._logged_at = -math.inf
        self._counting = threading.Lock()
        self._kiln = KilnClient(url, token)
        self._source, self._period = source, period
        self._queue: queue.Queue[Sent | None] = queue.Queue(size)
        self._closing = threading.Event()
        self._sender: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Runs in the Hub's event loop, so it never blocks; it never raises, because an error would fail the start."""
        try:
            event = cloud_event(record, self._source or hub_url())
            if event is not None:
                self._begin()
                self._queue.put_nowait(event)
        except queue.Full:
            self._drop("the queue is full")
        except Exception:  # noqa: BLE001
            self.handleError(record)

    def close(self) -> None:
        """Python's logging calls it when the Hub ends."""
        if self._sender is not None and not self._closing.is_set():
            self._closing.set()
            with suppress(queue.Full):
                self._queue.put_nowait(None)
            self._sender.join(self.LAST_WORDS)
            if self.dropped or self._queue.qsize():
                log.warning("%d events of this Hub did not reach Kiln.", self.dropped + self._queue.qsize())
        super().close()

    def _begin(self) -> None:
        """Start at the first event: a configuration may be read in a process that sends nothing."""
        if self._sender is None:
            self._sender = threading.Thread(target=self._run, name="kiln-events", daemon=True)
            self._sender.start()

    def _run(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            event = self._queue.get()
            if event is not None:
                self._deliver(event)

    def _deliver(self, event: Sent) -> None:
        """Retry until Kiln accepts it, refuses it permanently, or it is too old."""
        for tries in itertools.count():
            last = self._closing.is_set()
            try:
                answer = self._kiln.ask("events", event.body, event.headers)
                if answer.status // 100 == 2:  # noqa: PLR2004
                    return
                why, asked, final = str(answer), answer.retry_after or 0.0, not answer.passing
            except Away as away:
                why, asked, final = str(away), 0.0, False
            pause = min(max(2.0 ** min(tries, 10), asked), self.LONGEST_PAUSE)
            if final or last or time.time() + pause > event.at + self._period:
                self._drop(why)
                return
            self._closing.wait(pause)

    def _drop(self, why: str) -> None:
        with self._counting:
            self.dropped += 1
            if time.monotonic() > self._logged_at + self.LONGEST_PAUSE:
                self._logged_at = time.monotonic()
                log.warning("An event of this Hub did not reach Kiln: %s. That makes %d so far.", why, self.dropped)


# Images for its servers ----------------------------------------------------------------------------------------------

FALLBACKS = ("own", "last", "none")
NAMES = {"reference": "{repository}:{tag}@{digest}", "tag": "{repository}:{tag}"}

PROGRESS = {"fetch": 5, "build": 10, "push": 25}
"""Percent of the way to a server, by the phase of the build: the spawner has the rest."""
MOST_LINES = 1000
"""Lines of a log for late viewers of the page."""
NEWS_INTERVAL = 0.3
"""Seconds between two checks for news to show."""
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
"""The escape sequences that a line of the log may contain."""
POLL_INTERVAL = 2.0
"""Seconds after which an active build is checked again if its log has ended or is unavailable."""


class Choice(NamedTuple):
    """The choice of a user."""

    repository: str
    ref: str | None


def wanted_of(options: Mapping[str, Any] | None) -> Choice | None:
    """Return the repository and ref in `user_options`, as JSON or a form sends them; `None` without a repository."""
    repository, ref = (_text((options or {}).get(name)) for name in ("repository", "ref"))
    return Choice(repository, ref or None) if repository else None


def _text(value: Any) -> str:
    """A form's values are lists."""
    first = (value[0] if value else None) if isinstance(value, (list, tuple)) else value
    return "" if first is None else str(first).strip()


def image_of(build: Build, name: str = "reference") -> str:
    """Return the image of an ended build, with its digest, or by its tag alone. Raises RequestRefused."""
    if build["state"] == "succeeded":
        return NAMES[name].format_map(build["image"])
    how = "failed" if build["state"] == "failed" else "was cancelled"
    why = build.get("message") or f"Kiln says only: {build.get('reason')}."
    raise RequestRefused(f"The build of {build['repository']} {how}. {why} (build {build['name']})")


def image_hook(
    url: str,
    token: str | None,
    *,
    time_limit: float = 1800.0,
    patience: float = 15.0,
    fallback: str = "own",
    name: str = "reference",
) -> Callable[[Any], Awaitable[None]]:
    """Return a `pre_spawn_hook`: a server whose `user_options` name a `repository` (and a `ref`) starts from its image.

    The hook requests the image from Kiln, shows the build's log while the server starts, and sets `spawner.image`. A
    start without a repository is unchanged. If the build fails, or takes longer than `time_limit` seconds, the start
    fails with the reason; the build continues, and the next start joins it.

    `fallback` applies if Kiln has not answered for `patience` seconds. With `"own"`, the server starts from its default
    image. With `"last"`, it starts from the last image that this Hub received for the same repository and ref, if any.
    With `"none"` the start fails. `name="tag"` omits the digest, for spawners that cannot pull by it.
    """
    if fallback not in FALLBACKS or name not in NAMES:
        raise ValueError(f"fallback is one of {', '.join(FALLBACKS)}, name one of {', '.join(NAMES)}")
    kiln = KilnClient(url, token)
    known: dict[Choice, str] = {}

    async def pre_spawn_hook(spawner: Any) -> None:
        _unset(spawner)
        wanted = wanted_of(spawner.user_options)
        if wanted is None:
            return
        story, stop = Story(), threading.Event()
        _show(spawner, story)
        try:
            work = partial(_built, kiln, wanted, Patience(patience, stop), story)
            build = await asyncio.wait_for(_in_thread(work), time_limit)
            known[wanted] = image_of(build, name)
            _set(spawner, known[wanted])
        except Away as away:
            spawner.log.warning("Kiln is away: %s", away)
            if fallback == "none":
                raise _for_the_user(f"Kiln, which builds the images here, is away: {away}.") from None
            last = known.get(wanted) if fallback == "last" else None
            if last:
                _set(spawner, last)
            which = "the last known image" if last else "its default image"
            story.tell(f"Kiln is away ({away}), so the server starts from {which}.")
        except RequestRefused as refused:
            raise _for_the_user(str(refused)) from None
        except asyncio.TimeoutError:
            late = f"The image of {wanted.repository} is not ready after {time_limit:.0f} s."
            raise _for_the_user(f"{late} Its build goes on: try again later.") from None
        finally:
            stop.set()
            story.end()

    return pre_spawn_hook


def _built(kiln: KilnClient, wanted: Choice, patience: Patience, story: Story) -> Build:
    """Return the ended build. Raises Away, RequestRefused."""
    build = _asked(kiln, wanted, patience)
    story.tell(f"Kiln has the image of {wanted.repository} built, as {build['name']}.")
    last: str | None = None
    while build["state"] not in ENDED and not patience.stop.is_set():
        with suppress(Away):  # for display only: the code below checks the availability of Kiln and the result
            for message in kiln.follow(build["name"], last, patience.stop):
                patience.heard()
                last = message.id or last
                story.take(message)
        try:
            build = kiln.build(build["name"])
        except Away as away:
            patience.wait(1.0, str(away))
            continue
        patience.heard()
        if build["state"] not in ENDED:
            patience.stop.wait(POLL_INTERVAL)
    return build


def _asked(kiln: KilnClient, wanted: Choice, patience: Patience) -> Build:
    """Request the build; repeating the request has no effect. Raises Away, RequestRefused."""
    body = json.dumps(wanted._asdict()).encode()
    tries = 0
    while True:
        try:
            answer = kiln.ask("api/v1/builds", body, {"Content-Type": "application/json"})
        except Away as away:
            why, asked = str(away), 0.0
        else:
            if not answer.passing:
                return _accepted(answer, wanted)
            why, asked = str(answer), answer.retry_after or 0.0
        patience.wait(max(2.0**tries, asked), why)
        tries += 1


def _accepted(answer: Answer, wanted: Choice) -> Build:
    if answer.status in FOR_THE_USER:
        raise RequestRefused(f"No image of {wanted.repository}. {answer.detail}")
    if answer.status != http.client.ACCEPTED:
        raise Away(str(answer))
    return answer.build


class Patience:
    """How long a start waits for Kiln, and whether it still waits (`stop`)."""

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self.stop = stop
        self._seconds = seconds
        self._since = time.monotonic()

    def heard(self) -> None:
        self._since = time.monotonic()

    def wait(self, seconds: float, why: str) -> None:
        """Wait before the next try. Raises Away if no further try is allowed."""
        left = self._seconds - (time.monotonic() - self._since)
        if left <= 0 or self.stop.wait(min(seconds, left)):
            raise Away(why)


class Story:
    """The progress of a start. A thread writes it, and each open page reads it in the Hub's event loop."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=MOST_LINES)
        self._number = 0
        self._progress = 0
        self._waiting: str | None = None
        self._over = False
        self._lock = threading.Lock()

    def take(self, message: Message) -> None:
        """Add a line of the log, or a new reason why the build waits."""
        if message.kind == "log":
            self._progress = max(self._progress, PROGRESS.get(message.data.get("phase") or "", 0))
            self.tell(_COLOURS.sub("", str(message.data.get("line"))))
        elif message.kind == "state" and message.data.get("waiting") not in (None, self._waiting):
            self._waiting = message.data["waiting"]
            self.tell(str(self._waiting))

    def tell(self, text: str) -> None:
        with self._lock:
            self._events.append({"progress": self._progress, "message": text})
            self._number += 1

    def end(self) -> None:
        self._over = True

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the Hub's progress events from the beginning (or the kept part) to the end."""
        seen = 0
        while True:
            over = self._over
            with self._lock:
                number, seen = self._number - seen, self._number
                new = list(self._events)[-number:] if number else []
            for event in new:
                yield dict(event)
            if over:
                return
            await asyncio.sleep(NEWS_INTERVAL)


def _show(spawner: Any, story: Story) -> None:
    """Show the progress before that of the spawner itself.

    The Hub calls `spawner.progress()` for each open page. An attribute of the object takes precedence over the method
    of any class.
    """

    async def progress() -> AsyncIterator[dict[str, Any]]:
        async for event in story.progress():
            yield event
        rest = type(spawner).progress(spawner)
        try:
            async for event in rest:
                yield event
        finally:
            await rest.aclose()

    spawner.progress = progress


def _set(spawner: Any, image: str) -> None:
    vars(spawner)["_kiln_image"] = image, getattr(spawner, "image", None)
    spawner.image = image


def _unset(spawner: Any) -> None:
    """Remove the image of a failed start: the Hub keeps the spawner, and that image is not its default."""
    image, own = vars(spawner).pop("_kiln_image", (None, None))
    if image is not None and spawner.image == image:
        spawner.image = own


def _for_the_user(sentence: str) -> Exception:
    """Return the exception that makes the Hub show the sentence.

    It is tornado's, which every Hub has. Any other exception, or a status of 500 and above, would count as the Hub's
    own fault. After `consecutive_failure_limit` faults the Hub exits, which a user's repository must not cause.
    """
    error: Exception = import_module("tornado.web").HTTPError(424, "%s", sentence)
    error.jupyterhub_message = sentence  # type: ignore[attr-defined]
    return error


# Images to choose from -----------------------------------------------------------------------------------------------

OWN: Sequence[Profile] = ({"slug": "default", "display_name": "The image of this Hub", "default": True},)
OURS = "kiln-"
"""Prefix of the slugs of these profiles."""
MOST_PAGES = 5
"""Pages of the list of builds, two hundred each: older builds have no profile."""


def profile_list(
    url: str, token: str | None, *, own: Sequence[Profile] = OWN, only: Sequence[str] = ("*",), fresh: float = 60.0
) -> Callable[[Any], Awaitable[list[Profile]]]:
    """Return a `profile_list` for KubeSpawner: the profiles of `own`, then one for each repository with an image.

    A profile uses the newest image; `only` are patterns of repositories to offer. The list is refreshed once in `fresh`
    seconds. While Kiln is away the list stays unchanged. A start from a profile that is no longer listed, for example
    after a restart of the Hub, uses the spawner's default image.
    """
    catalogue = Catalogue(KilnClient(url, token), only, fresh)

    async def profiles(spawner: Any) -> list[Profile]:
        offered = [*own, *await catalogue.profiles()]
        chosen = _text((spawner.user_options or {}).get("profile"))
        lost = chosen.startswith(OURS) and chosen not in [profile.get("slug") for profile in offered]
        if lost and not catalogue.reached:
            offered.append({"slug": chosen, "display_name": "The image of this Hub, while Kiln is away"})
        return offered

    return profiles


def profiles_of(builds: Iterable[Build], only: Sequence[str]) -> list[Profile]:
    """Return a profile for each repository and subdir, of its newest image, by name."""
    newest: dict[tuple[str, str], Build] = {}
    for build in builds:
        key = build["repository"], build["subdir"] or ""
        if build["image"]["reference"] and any(fnmatchcase(key[0], pattern) for pattern in only):
            newest[key] = max(newest.get(key, build), build, key=lambda one: one["finished_at"] or "")
    return [_profile(newest[key]) for key in sorted(newest)]


def _profile(build: Build) -> Profile:
    """Its slug is the repository's, so that it is still there when a newer image is."""
    repository, subdir = build["repository"], build["subdir"] or ""
    name = re.sub(r"^[a-z]+://|\.git$", "", repository) + (f" ({subdir})" if subdir else "")
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    digest = hashlib.sha256(f"{repository}\n{subdir}".encode()).hexdigest()[:8]
    ref = re.sub(r"^refs/(heads|tags)/", "", build["ref"] or "HEAD")
    about = f"{ref} at {build['commit'][:12]}, built {(build['finished_at'] or '')[:10]}"
    return {
        "slug": f"{OURS}{words}-{digest}",
        "display_name": html.escape(name),
        "description": html.escape(about),
        "kubespawner_override": {"image": build["image"]["reference"]},
    }


class Catalogue:
    """The profiles; one refresh at a time, for any number of waiting users."""

    def __init__(self, kiln: KilnClient, only: Sequence[str], fresh: float) -> None:
        self.reached = False
        self._kiln, self._only, self._fresh = kiln, only, fresh
        self._found: list[Profile] = []
        self._good_until = 0.0
        self._look: asyncio.Task[None] | None = None

    async def profiles(self) -> list[Profile]:
        if self._look is None and time.monotonic() >= self._good_until:
            self._look = asyncio.ensure_future(self._look_again())
        if self._look is not None:
            await asyncio.wait([self._look])
        return self._found

    async def _look_again(self) -> None:
        try:
            builds = await _in_thread(self._builds)
            self._found, self.reached = profiles_of(builds, self._only), True
        except Away as away:
            self.reached = False
            log.warning("The images that Kiln has built are not offered, or not all: %s", away)
        finally:
            self._good_until = time.monotonic() + self._fresh
            self._look = None

    def _builds(self) -> list[Build]:
        """Return the successful builds, newest first. Raises Away."""
        found: list[Build] = []
        query = {"state": "succeeded", "limit": "200"}
        for _ in range(MOST_PAGES):
            answer = self._kiln.ask(f"api/v1/builds?{urlencode(query)}", timeout=5.0)
            if answer.status != http.client.OK:
                raise Away(str(answer))
            found += answer.value.get("items", [])
            if not answer.value.get("continue"):
                break
            query["continue"] = answer.value["continue"]
        return found
