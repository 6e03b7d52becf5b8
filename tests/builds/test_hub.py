"""Token lookups at a Hub: the meaning and lifetime of answers, and the limits on waiting callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from builds.clients import jupyterhub as module
from builds.clients.jupyterhub import Holder, HubAway, HubClient
from tests.parts.hubapi import HubApi
from tests.parts.kiln import until


@pytest.fixture
def api() -> Iterator[HubApi]:
    with HubApi() as api:
        yield api


def test_a_token_is_somebodys_or_nobodys(api: HubApi) -> None:
    api.add("canary", admin=True, groups=["staff"])
    hub = HubClient(api.url)
    scopes = frozenset({"access:services!service=binder"})
    assert hub.holder("canary") == Holder(kind="user", name="ada", admin=True, groups=("staff",), scopes=scopes)
    assert hub.holder("another") is None


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX: y", "é", "x" * 1025])
def test_what_can_be_no_token_is_not_sent(api: HubApi, token: str) -> None:
    assert HubClient(api.url).holder(token) is None
    assert api.asked == []


def test_what_it_said_holds_for_a_while_and_no_longer(api: HubApi) -> None:
    api.add("canary")
    hub = HubClient(api.url, kept=0.3)
    assert all(hub.holder(token) is None or token == "canary" for token in ("canary", "wrong") * 5)
    assert api.asked == ["canary", "wrong"]
    api.tokens.clear()
    until(lambda: hub.holder("canary") is None)
    assert module.CACHE_TTL <= 60


def test_no_more_is_kept_than_there_is_room_for(api: HubApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CACHED", 3)
    hub = HubClient(api.url)
    for token in "abcda":
        hub.holder(token)
    assert api.asked == ["a", "b", "c", "d", "a"]
    hub.holder("d")
    assert len(api.asked) == 5


def test_nothing_that_is_kept_is_a_token(api: HubApi) -> None:
    hub = HubClient(api.url)
    hub.holder(api.add("canary"))
    assert "canary" not in repr(vars(hub))


def test_many_who_ask_at_once_are_one_question(api: HubApi) -> None:
    api.add("canary")
    api.stall = 0.3
    hub = HubClient(api.url)
    with ThreadPoolExecutor(30) as many:
        holders = list(many.map(hub.holder, ["canary"] * 30))
    assert all(holder and holder.name == "ada" for holder in holders)
    assert api.asked == ["canary"]


def test_no_more_wait_than_may(api: HubApi) -> None:
    for number in range(20):
        api.add(f"canary-{number}")
    api.stall = 0.5
    hub = HubClient(api.url, max_waiting=4)

    def ask(number: int) -> bool:
        try:
            return hub.holder(f"canary-{number}") is not None
        except HubAway:
            return False

    with ThreadPoolExecutor(20) as many:
        assert sum(many.map(ask, range(20))) == 4
    api.stall = 0
    assert ask(0), "a place is free again"


@pytest.mark.parametrize("trickle", [False, True])
def test_a_slow_one_is_waited_for_no_longer_than_the_limit(api: HubApi, trickle: bool) -> None:
    api.add("canary")
    api.stall, api.trickle = (0.0, True) if trickle else (5.0, False)
    hub = HubClient(api.url, limit=1.0)
    began = time.monotonic()
    with pytest.raises(HubAway):
        hub.holder("canary")
    assert time.monotonic() - began < 4, "its answer takes five seconds or more"
    asked = len(api.asked)
    with pytest.raises(HubAway):
        hub.holder("canary")
    assert len(api.asked) == asked, "no caller waits after a failure"
    api.stall, api.trickle = 0.0, False

    def answers() -> bool:
        try:
            return hub.holder("canary") is not None
        except HubAway:
            return False

    until(answers)


@pytest.mark.parametrize("status", [302, 404, 429, 500, 502, 503])
def test_what_is_no_answer_lets_nobody_in(api: HubApi, status: int) -> None:
    api.add("canary")
    api.says = (status, b"{}")
    with pytest.raises(HubAway):
        HubClient(api.url).holder("canary")
    assert len(api.asked) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b'{"kind": "user"}', b"[" * 10**5, b" " * (5 << 20)])
def test_what_is_no_hub_lets_nobody_in(api: HubApi, body: bytes) -> None:
    api.says = (200, body)
    with pytest.raises(HubAway):
        HubClient(api.url).holder("canary")


def test_nobody_there() -> None:
    with pytest.raises(HubAway) as caught:
        HubClient("http://127.0.0.1:9/hub/api").holder("canary")
    assert caught.value.status == 503


def test_neither_proxy_nor_netrc_has_a_part_in_it(api: HubApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert HubClient(api.url).holder(api.add("canary")) is not None


def test_a_code_is_good_once(api: HubApi) -> None:
    api.codes["code"] = "canary"
    hub = HubClient(api.url)
    given = {"client_id": "service-binder", "secret": "own", "redirect_uri": "/oauth_callback"}
    assert hub.access_token("code", **given) == "canary"
    assert hub.access_token("code", **given) is None
    form = {"grant_type": "authorization_code", "code": "code", "redirect_uri": "/oauth_callback"}
    assert api.forms[0] == {**form, "client_id": "service-binder", "client_secret": "own"}


def test_its_threads_are_as_many_as_wait_at_once() -> None:
    with HubApi() as api:
        hub = HubClient(api.url, max_waiting=4)
        before = {*threading.enumerate()}
        for number in range(20):
            hub.holder(f"one-by-one-{number}")
        api.stall = 0.5
        with ThreadPoolExecutor(40) as many:
            asked = [many.submit(hub.holder, f"at-once-{number}") for number in range(40)]
            refused = [one for one in asked if isinstance(one.exception(), HubAway)]
        assert refused
        assert 0 < len(_of_the_hub(before)) <= 4


def _of_the_hub(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in {*threading.enumerate()} - before if thread.name.startswith("hub")}


def test_a_good_token_does_not_wait_behind_a_hundred_bad_ones() -> None:
    with HubApi() as api:
        api.add("ada's")
        hub = HubClient(api.url, max_waiting=116)
        hub.holder("warm")
        api.stall = 1.0
        with ThreadPoolExecutor(100) as strangers:
            asked = [strangers.submit(hub.holder, f"bogus-{number}") for number in range(100)]
            until(lambda: len(api.asked) > 90)
            began = time.monotonic()
            assert hub.holder("ada's") is not None
            took = time.monotonic() - began
            assert {each.result() for each in asked} == {None}
        assert took < 2 * api.stall, "one answer of the Hub, and no queue before it"
