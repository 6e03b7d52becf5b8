"""The watch against a real API server, directly and through a faulty network or a proxy that alters responses."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from kubernetes.client.configuration import Configuration
from prometheus_client import REGISTRY

from builds.engines.kubernetes.api import Api, Busy
from builds.engines.kubernetes.watch import Watch
from tests.cluster.conftest import Configured
from tests.cluster.plumbing.objects import config_map
from tests.parts.apiproxy import Answer, ApiProxy, Asked
from tests.parts.kiln import until
from tests.parts.proxy import Proxy

LASTS = 20.0
"""Seconds. An uninterrupted watch lasts for minutes."""
EXPIRED = (
    b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",'
    b'"message":"The resourceVersion for the provided watch is too old.","reason":"Expired","code":410}}\n'
)
"""The API server's event after a compaction of etcd."""

Watching = Callable[..., Watch]


@pytest.fixture
def watching() -> Iterator[Watching]:
    """Return a factory that watches the namespace's ConfigMaps labelled `mine`; the fixture stops it after the test."""
    with ExitStack() as stack:

        def make(api: Api, **options: object) -> Watch:
            given = {"labels": "mine=yes", "changed": lambda: None, **options}
            watch = Watch(api, "configmaps", **given)  # type: ignore[arg-type]
            watch.start()
            stack.callback(watch.stop)
            return watch

        yield make


@pytest.fixture
def proxy(api_proxy: ApiProxy) -> Iterator[Proxy]:
    """A network that can fail, before a `api_proxy` that counts and alters responses, before the API server."""
    with Proxy(("127.0.0.1", api_proxy.port)) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: Proxy, namespace: str) -> Iterator[Api]:
    api = Api(Configuration(host=f"http://127.0.0.1:{proxy.port}"), namespace)
    yield api
    api.close()


def mine(name: str) -> dict[str, object]:
    return config_map(name, mine="yes")


def shows(watch: Watch, *names: str) -> bool:
    return {*watch.objects()} == {*names}


def test_it_shows_what_there_is_and_what_becomes_of_it(api: Api, watching: Watching) -> None:
    api.create("configmaps", mine("a"))
    api.create("configmaps", config_map("another"))
    changes = threading.Semaphore(0)
    watch = watching(api, changed=changes.release)
    assert watch.synced.wait(5)
    assert shows(watch, "a")
    assert changes.acquire(timeout=5)
    made = api.create("configmaps", mine("b"))
    assert changes.acquire(timeout=5)
    assert watch.objects()["b"] == made
    changed = api.patch("configmaps", "b", {"data": {"a": "2"}})
    assert changes.acquire(timeout=5)
    assert watch.objects()["b"] == changed
    assert watch.take_deleted() == []
    api.delete("configmaps", "b")
    assert changes.acquire(timeout=5)
    assert shows(watch, "a")
    (deleted,) = watch.take_deleted()
    assert deleted["metadata"]["uid"] == made["metadata"]["uid"]
    assert watch.take_deleted() == []
    assert watch.trouble is None
    assert watch.age == 0


def test_what_is_no_longer_selected_looks_deleted_and_is_not(api: Api, watching: Watching) -> None:
    api.create("configmaps", mine("a"))
    watch = watching(api)
    until(lambda: shows(watch, "a"))
    api.patch("configmaps", "a", {"metadata": {"labels": {"mine": "no"}}})
    until(lambda: shows(watch))
    assert [each["metadata"]["name"] for each in watch.take_deleted()] == ["a"]
    assert api.read("configmaps", "a")["metadata"]["labels"] == {"mine": "no"}


def test_one_object_can_be_watched(api: Api, watching: Watching) -> None:
    api.create("configmaps", mine("a"))
    api.create("configmaps", mine("b"))
    watch = watching(api, labels=None, fields="metadata.name=b")
    until(lambda: shows(watch, "b"))


def test_a_list_of_many_pages_is_one(api_proxy: ApiProxy, via_api_proxy: Api, watching: Watching) -> None:
    for number in range(5):
        via_api_proxy.create("configmaps", mine(f"a{number}"))
    api_proxy.rule = lambda asked: asked._replace(target=asked.target.replace("limit=500", "limit=2"))
    watch = watching(via_api_proxy)
    until(lambda: shows(watch, "a0", "a1", "a2", "a3", "a4"))
    assert sum(asked.lists for asked in api_proxy.requests) == 3


def test_a_connection_that_breaks_is_resumed_without_a_list(
    api_proxy: ApiProxy, proxy: Proxy, proxied: Api, api: Api, watching: Watching
) -> None:
    watch = watching(proxied)
    until(lambda: any(asked.watches for asked in api_proxy.requests))
    api.create("configmaps", mine("before"))
    until(lambda: shows(watch, "before"))
    proxy.cut()
    api.create("configmaps", mine("meanwhile"))
    api.delete("configmaps", "before")
    until(lambda: shows(watch, "meanwhile"))
    assert sum(asked.lists for asked in api_proxy.requests) == 1
    assert [each["metadata"]["name"] for each in watch.take_deleted()] == ["before"]
    until(lambda: watch.trouble is None)


def test_an_outage_is_told_and_made_good(
    proxy: Proxy, proxied: Api, api: Api, watching: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    restarts = REGISTRY.get_sample_value("kiln_watch_restarts_total", {"kind": "configmaps"}) or 0.0
    watch = watching(proxied)
    assert watch.synced.wait(5)
    proxy.refuse()
    until(lambda: "Connection refused" in (watch.trouble or ""))
    assert str(watch.trouble).startswith("Watch of configmaps failing since ")
    api.create("configmaps", mine("meanwhile"))
    until(lambda: watch.age > 3)
    proxy.accept()
    until(lambda: shows(watch, "meanwhile"))
    until(lambda: watch.trouble is None)
    told = [record.levelname for record in caplog.records if record.name == "builds.engines.kubernetes.watch"]
    assert told == ["WARNING", "INFO"]
    assert (REGISTRY.get_sample_value("kiln_watch_restarts_total", {"kind": "configmaps"}) or 0.0) > restarts


def test_it_starts_before_the_api_server_can_be_reached(proxy: Proxy, proxied: Api, watching: Watching) -> None:
    proxy.refuse()
    watch = watching(proxied)
    until(lambda: watch.trouble)
    assert not watch.synced.is_set()
    proxy.accept()
    assert watch.synced.wait(10)


def test_a_connection_that_stalls_is_noticed(proxy: Proxy, proxied: Api, api: Api, watching: Watching) -> None:
    watch = watching(proxied, silence=1.0)
    assert watch.synced.wait(5)
    proxy.drop = True
    api.create("configmaps", mine("meanwhile"))
    until(lambda: watch.trouble)
    proxy.cut()
    proxy.drop = False
    until(lambda: shows(watch, "meanwhile"))


def test_what_is_too_old_is_listed_anew_with_what_vanished(
    api_proxy: ApiProxy, via_api_proxy: Api, watching: Watching
) -> None:
    """The watch has missed every change since its list: one deletion, one replacement and one creation."""

    def out_of_step(asked: Asked) -> Answer | None:
        if not asked.watches:
            return None
        if sum(each.watches for each in api_proxy.requests) == 1:
            return Answer(200, hangs=True)
        return Answer(200, (EXPIRED,)) if sum(each.lists for each in api_proxy.requests) == 1 else None

    old = {name: via_api_proxy.create("configmaps", mine(name)) for name in ("gone", "again", "stays")}
    api_proxy.rule = out_of_step
    watch = watching(via_api_proxy, silence=1.0)
    until(lambda: shows(watch, *old))
    for name in ("gone", "again"):
        via_api_proxy.delete("configmaps", name)
    via_api_proxy.create("configmaps", mine("again"))
    via_api_proxy.create("configmaps", mine("new"))
    until(lambda: shows(watch, "again", "stays", "new"))
    deleted = {each["metadata"]["uid"] for each in watch.take_deleted()}
    assert deleted == {old["gone"]["metadata"]["uid"], old["again"]["metadata"]["uid"]}


@pytest.mark.parametrize(
    "answer",
    [Answer(200), Answer(None), Answer(500), Answer(200, (EXPIRED,)), Answer(200, (b'{"type":"ADDED","obj',))],
    ids=["closes", "resets", "fails", "expired", "half an event"],
)
def test_a_server_in_trouble_is_not_hammered(
    api_proxy: ApiProxy, via_api_proxy: Api, watching: Watching, answer: Answer
) -> None:
    api_proxy.rule = lambda asked: answer if asked.watches else None
    watching(via_api_proxy)
    until(lambda: any(asked.watches for asked in api_proxy.requests))
    began = api_proxy.requests[0].at
    until(lambda: time.monotonic() > began + 4)
    tries = sum(asked.watches for asked in api_proxy.requests)
    assert 2 <= tries <= 16  # the client sends a GET twice after a reset


def test_it_comes_back_when_it_was_told_to(api_proxy: ApiProxy, via_api_proxy: Api, watching: Watching) -> None:
    api_proxy.rule = lambda _: Answer(429, headers={"Retry-After": "2"}) if len(api_proxy.requests) == 1 else None
    watch = watching(via_api_proxy)
    assert watch.synced.wait(10)
    assert api_proxy.requests[1].at - api_proxy.requests[0].at >= 2


def test_fresh_sees_what_the_watch_has_not_told(api_proxy: ApiProxy, via_api_proxy: Api, watching: Watching) -> None:
    api_proxy.rule = lambda asked: Answer(200, hangs=True) if asked.watches else None
    watch = watching(via_api_proxy)
    assert watch.synced.wait(5)
    for name in ("a", "b", "c"):
        via_api_proxy.create("configmaps", mine(name))
        watch.fresh(5)
        assert name in watch.objects()
    assert not any("resourceVersion" in asked.target for asked in api_proxy.requests if asked.lists)


def test_a_watch_goes_on_after_fresh(api: Api, watching: Watching) -> None:
    watch = watching(api)
    for number in range(5):
        watch.fresh(5)
        api.create("configmaps", mine(f"a{number}"))
    until(lambda: len(watch.objects()) == 5)


def test_many_may_ask_for_fresh_at_once(api: Api, watching: Watching) -> None:
    watch = watching(api)
    threads = [threading.Thread(target=watch.fresh, args=(10,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()


def test_fresh_says_why_there_is_none(proxy: Proxy, proxied: Api, watching: Watching) -> None:
    watch = watching(proxied)
    assert watch.synced.wait(5)
    proxy.refuse()
    with pytest.raises(Busy, match=r"No fresh list of configmaps within 2 s: .*Connection refused"):
        watch.fresh(2)
    proxy.accept()
    watch.fresh(10)


@pytest.mark.parametrize("trouble", ["none", "refused", "stalled"])
def test_it_stops_at_once(api_proxy: ApiProxy, proxy: Proxy, proxied: Api, api: Api, trouble: str) -> None:
    watch = Watch(proxied, "configmaps", labels="mine=yes", changed=lambda: None)
    watch.start()
    until(lambda: any(asked.watches for asked in api_proxy.requests))
    api.create("configmaps", mine("a"))
    until(lambda: shows(watch, "a"))
    if trouble == "refused":
        proxy.refuse()
        until(lambda: watch.trouble)
    elif trouble == "stalled":
        proxy.drop = True
    began = time.monotonic()
    watch.stop()
    assert time.monotonic() - began < LASTS / 2


def test_what_nobody_asks_for_is_forgotten(api: Api, watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builds.engines.kubernetes.watch.REMEMBERED", 0.0)
    watch = watching(api)
    assert watch.synced.wait(5)
    for name in ("a", "b", "c"):
        api.create("configmaps", mine(name))
        until(lambda name=name: shows(watch, name))
        api.delete("configmaps", name)
        until(lambda: shows(watch))
    assert [each["metadata"]["name"] for each in watch.take_deleted()] == ["c"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watch_that_has_died_is_in_trouble(api: Api, watching: Watching) -> None:
    def fails() -> None:
        raise ValueError("a fault")

    watch = watching(api, changed=fails)
    until(lambda: "its thread ended" in (watch.trouble or ""))
    until(lambda: watch.age > 0)


def test_it_runs_over_tls_as_well(configured: Configured, everywhere: Api, api: Api, watching: Watching) -> None:
    where = urlsplit(everywhere.host)
    with Proxy((where.hostname or "", where.port or 443)) as proxy:
        proxied = Api(configured(proxy.port), api.namespace)
        watch = watching(proxied)
        assert watch.synced.wait(5)
        proxy.cut()
        api.create("configmaps", mine("a"))
        until(lambda: shows(watch, "a"))
        watch.fresh(5)
        began = time.monotonic()
        watch.stop()
        assert time.monotonic() - began < LASTS / 2
