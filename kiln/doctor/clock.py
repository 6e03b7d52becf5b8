"""Compare this machine's clock with the `Date` header of the hosts that Kiln talks to (RFC 9110, §6.6.1).

A clock that is minutes off makes valid tokens and certificates invalid, and webhooks too old.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import urlsplit

import requests

from builds.clients.git import credentials
from builds.clients.registry import origin as registry_origin
from builds.clients.responses import no_netrc
from kiln.doctor import cures
from kiln.doctor.findings import Probe, Symptom
from kiln.wiring import Kiln

DRIFT, OFF = 60.0, 300.0
"""Seconds. Standard Webhooks and most issuers of tokens allow five minutes, so from there on requests are refused."""
TIMEOUT = 5.0
MOST = 8
"""Hosts whose clocks are compared."""


def probes(kiln: Kiln) -> Iterator[Probe]:
    yield probe(sorted({*origins(kiln)})[:MOST])


def probe(urls: list[str]) -> Probe:
    return Probe("clock", partial(compared, urls))


def origins(kiln: Kiln) -> Iterator[str]:
    """Yields the origins of the configured registries, Git hosts, JupyterHub and issuers, and of the API server."""
    for prefix in kiln.images.pushed_prefixes:
        yield registry_origin(prefix, kiln.config.insecure_registries)
    hub = kiln.settings.hub
    urls = [listed.url for listed in kiln.config.repositories]
    urls += [credential.origin for credential in credentials(kiln.secrets.git_credentials)]
    urls += [hub.api_url] if hub else []
    urls += kiln.settings.oidc_issuers
    urls += [_api_server(kiln)] if kiln.settings.engine == "kubernetes" else []
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            yield f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _api_server(kiln: Kiln) -> str:
    from builds.engines import EngineError  # noqa: PLC0415
    from builds.engines.kubernetes import connect  # noqa: PLC0415

    try:
        return connect(kiln.settings.namespace).host
    except EngineError:
        return ""


def compared(urls: list[str]) -> str:
    """Returns the difference to the host whose clock is nearest. Raises Symptom if the clocks differ by `DRIFT`."""
    with warnings.catch_warnings(), ThreadPoolExecutor(MOST) as pool:
        warnings.filterwarnings("ignore", "Unverified HTTPS request")
        seen = {
            url: offset for url, offset in zip(urls, pool.map(offset_from, urls), strict=True) if offset is not None
        }
    if not seen:
        return "no host sent a Date, so the clock could not be compared"
    url = min(seen, key=lambda one: abs(seen[one]))
    worst = max(seen, key=lambda one: abs(seen[one]))
    if abs(seen[url]) >= DRIFT:
        cure = cures.CLOCK_OFF if abs(seen[url]) >= OFF else cures.CLOCK_DRIFTS
        raise Symptom(cure, f"This machine's clock is {_by(seen[url])} that of {url}.")
    if abs(seen[worst]) >= DRIFT:
        raise Symptom(cures.CLOCKS_OF_HOSTS, f"This machine's clock is {_by(seen[worst])} that of {worst}.")
    return f"within {max(2, round(abs(seen[url]))):g} s of {url}"


def _by(seconds: float) -> str:
    size = f"{abs(seconds):.0f} s" if abs(seconds) < OFF else f"{abs(seconds) / 60:.0f} min"
    return f"{size} {'ahead of' if seconds > 0 else 'behind'}"


def offset_from(url: str) -> float | None:
    """Returns the seconds by which this clock is ahead of the host's; `None` if its response has no Date."""
    began = time.time()
    text = _headers(url).get("Date")
    ended = time.time()
    try:
        there = parsedate_to_datetime(text or "").timestamp() + 0.5  # a Date has whole seconds
    except ValueError:
        return None
    return (began + ended) / 2 - there


def _headers(url: str) -> Mapping[str, str]:
    """Returns the headers of any response. No certificate is verified, because a wrong clock makes all of them invalid.
    The request contains no secret, and follows no redirect: another host has another clock.
    """
    try:
        with requests.Session() as session:
            session.auth = no_netrc
            answer = session.head(
                url, timeout=TIMEOUT, allow_redirects=False, verify=False, headers={"User-Agent": "kiln"}
            )
            return answer.headers
    except requests.RequestException:
        return {}
