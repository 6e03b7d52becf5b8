"""The API client against a real API server, directly and through a faulty network or a proxy that alters responses."""

from __future__ import annotations

import base64
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
import pytest
from kubernetes.client.configuration import Configuration
from kubernetes.config.incluster_config import InClusterConfigLoader

from builds.engines.kubernetes.api import (
    Absent,
    AccessDenied,
    AlreadyExists,
    Api,
    ApiError,
    Busy,
    Conflict409,
    Invalid,
)
from tests.cluster.conftest import Configured
from tests.cluster.plumbing.objects import config_map
from tests.parts.apiproxy import Answer, ApiProxy, Asked
from tests.parts.proxy import Proxy


def names(objects: Iterator[dict[str, Any]]) -> list[str]:
    return [each["metadata"]["name"] for each in objects]


def test_an_object_is_made_read_changed_and_deleted(api: Api) -> None:
    made = api.create("configmaps", config_map("a"))
    assert api.read("configmaps", "a") == made
    changed = api.patch("configmaps", "a", {"data": {"a": None, "b": "2"}})
    assert changed["data"] == {"b": "2"}
    api.delete("configmaps", "a", uid=made["metadata"]["uid"])
    with pytest.raises(Absent, match='configmaps "a" not found'):
        api.read("configmaps", "a")


def test_what_is_owned_goes_along(api: Api) -> None:
    owner = api.create("configmaps", config_map("owner"))
    owned = config_map("owned")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    owned["metadata"]["ownerReferences"] = [reference]
    api.create("configmaps", owned)
    with api.stream(api.path("configmaps"), {"watch": "true", "fieldSelector": "metadata.name=owned"}) as stream:
        api.delete("configmaps", "owner")
        assert any(b'"DELETED"' in line for line in stream.lines())


def test_only_metadata_can_be_asked_for(api: Api) -> None:
    api.create("configmaps", config_map("a", colour="red"))
    (listed,) = api.list("configmaps", labels="colour=red", metadata_only=True)
    for thing in (listed, api.read("configmaps", "a", metadata_only=True)):
        assert thing["metadata"]["name"] == "a"
        assert "data" not in thing


def test_a_list_is_read_in_pages(api: Api) -> None:
    for name in ("e", "c", "a", "d", "b"):
        api.create("configmaps", config_map(name, kind="vowel" if name in "ae" else "consonant"))
    wanted = {"fields": "metadata.name!=kube-root-ca.crt"}
    assert names(api.list("configmaps", limit=2, **wanted)) == ["a", "b", "c", "d", "e"]
    assert names(api.list("configmaps", labels="kind=vowel", limit=1, **wanted)) == ["a", "e"]
    versions = {page.metadata.version for page in api.pages("configmaps", limit=2, **wanted)}
    assert len(versions) == 1


def test_a_list_that_has_become_too_old_goes_on(api_proxy: ApiProxy, via_api_proxy: Api) -> None:
    """The test sends the 410 with the API server's own continue token, from which the list must go on."""
    for name in ("a", "b", "c"):
        via_api_proxy.create("configmaps", config_map(name, mine="yes"))

    def expired_once(asked: Asked) -> Answer | None:
        if not (token := parse_qs(urlsplit(asked.target).query).get("continue")) or expired:
            return None
        expired.append(asked)
        place = msgspec.json.decode(base64.urlsafe_b64decode(token[0] + "=="))
        later = (
            base64.urlsafe_b64encode(msgspec.json.encode({**place, "start": place["start"].lstrip("/"), "rv": -1}))
            .decode()
            .rstrip("=")
        )
        said = {"kind": "Status", "code": 410, "reason": "Expired", "message": "old", "metadata": {"continue": later}}
        return Answer(410, (msgspec.json.encode(said),))

    expired: list[Asked] = []
    api_proxy.rule = expired_once
    assert names(via_api_proxy.list("configmaps", labels="mine=yes", limit=1)) == ["a", "b", "c"]
    assert expired


def test_refusals_are_told_apart(api: Api) -> None:
    made = api.create("configmaps", config_map("a"))
    with pytest.raises(AlreadyExists, match="already exists"):
        api.create("configmaps", config_map("a"))
    api.patch("configmaps", "a", {"data": {"c": "3"}})
    with pytest.raises(Conflict409, match="has been modified"):
        api.patch("configmaps", "a", {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}})
    with pytest.raises(Conflict409):
        api.delete("configmaps", "a", resource_version=made["metadata"]["resourceVersion"])
    with pytest.raises(Conflict409):
        api.delete("configmaps", "a", uid="00000000-0000-0000-0000-000000000000")
    with pytest.raises(Invalid, match="a lowercase RFC 1123 subdomain"):
        api.create("configmaps", config_map("No Name"))
    with pytest.raises(Invalid):
        api.create("configmaps", {**config_map("big"), "data": {"a": "x" * (2 << 20)}})
    with pytest.raises(Absent):
        api.delete("jobs", "none")


# A service account. --------------------------------------------------------------------------------------------------


class Account:
    """A service account's folder in a pod, and a second account whose token can replace the first."""

    def __init__(self, everywhere: Api, namespace: str, folder: Path, authority: Path) -> None:
        self._everywhere = everywhere
        self._base = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self._token = folder / "token"
        where = urlsplit(everywhere.host)
        for name in ("first", "second"):
            everywhere.request("POST", self._base, body={"metadata": {"name": name}})
        self.turn("first")
        environment = {"KUBERNETES_SERVICE_HOST": where.hostname, "KUBERNETES_SERVICE_PORT": str(where.port)}
        self.loader = InClusterConfigLoader(str(self._token), str(authority), environ=environment)
        configuration = Configuration()
        self.loader.load_and_set(configuration)
        self.api = Api(configuration, namespace)

    def turn(self, name: str) -> None:
        answer = self._everywhere.request("POST", f"{self._base}/{name}/token", body={"spec": {}})
        self._token.write_text(msgspec.json.decode(answer)["status"]["token"])

    def a_minute_later(self) -> None:
        self.loader.token_expires_at -= timedelta(minutes=1)

    def who(self) -> str:
        answer = self.api.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body={})
        return str(msgspec.json.decode(answer)["status"]["userInfo"]["username"]).rpartition(":")[2]


@pytest.fixture
def account(everywhere: Api, configured: Configured, namespace: str, tmp_path: Path) -> Iterator[Account]:
    account = Account(everywhere, namespace, tmp_path, Path(configured().ssl_ca_cert or ""))
    yield account
    account.api.close()


def test_another_token_is_taken_up(account: Account) -> None:
    assert account.who() == "first"
    account.turn("second")
    account.a_minute_later()
    assert account.who() == "second"


def test_a_token_that_cannot_be_read_is_said(account: Account, tmp_path: Path) -> None:
    (tmp_path / "token").unlink()
    account.a_minute_later()
    with pytest.raises(Busy, match="The credentials for the Kubernetes API server cannot be read"):
        account.who()


def test_a_role_that_is_missing_is_told_in_the_api_servers_words(account: Account, namespace: str) -> None:
    sentence = f'User "system:serviceaccount:{namespace}:first" cannot list resource "configmaps" in API group ""'
    with pytest.raises(AccessDenied, match=sentence):
        list(account.api.list("configmaps"))


def test_a_token_that_is_none_is_not_accepted(account: Account, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("none")
    account.a_minute_later()
    with pytest.raises(AccessDenied, match="rejected the credentials"):
        account.who()


# The network. --------------------------------------------------------------------------------------------------------


def test_nothing_listens(configured: Configured) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        api = Api(configured(bound.getsockname()[1]), "default")
        with pytest.raises(Busy, match="cannot be reached: Connection refused"):
            api.read("configmaps", "a")


def test_a_certificate_that_is_not_trusted_is_said(everywhere: Api) -> None:
    api = Api(Configuration(host=everywhere.host), "default")
    with pytest.raises(Busy, match=r"cannot be trusted: .*issuer"):
        api.read("configmaps", "a")


def test_silence_has_its_limit(proxy: Proxy, proxied: Api) -> None:
    for ready in (True, False):  # first on an open connection, then on a new one
        if ready:
            list(proxied.list("configmaps"))
        else:
            proxied.close()
        proxy.drop = True
        began = time.monotonic()
        with pytest.raises(Busy, match="did not answer within 1 s"):
            proxied.request("POST", proxied.path("configmaps"), body=config_map("a"), timeout=1.0)
        assert 0.9 < time.monotonic() - began < 10, "the wire gives nothing, for ever"
        proxy.cut()
        proxy.drop = False


def test_an_answer_that_trickles_has_the_same_limit(api_proxy: ApiProxy, via_api_proxy: Api) -> None:
    api_proxy.rule = lambda _: Answer(200, (b" ",) * 100, pause=0.2)
    began = time.monotonic()
    with pytest.raises(Busy, match="within 1 s"):
        via_api_proxy.request("GET", "/", timeout=1.0)
    assert time.monotonic() - began < 10, "the whole answer takes twenty"


def test_a_connection_that_was_cut_is_made_anew(proxy: Proxy, proxied: Api) -> None:
    list(proxied.list("configmaps"))
    proxy.cut()
    list(proxied.list("configmaps"))
    assert proxy.connections == 2


@pytest.mark.parametrize(("method", "requests"), [("GET", 2), ("POST", 1), ("PATCH", 1), ("DELETE", 1)])
def test_only_what_can_be_done_twice_is_sent_twice(
    api_proxy: ApiProxy, via_api_proxy: Api, method: str, requests: int
) -> None:
    api_proxy.rule = lambda _: Answer(None)
    with pytest.raises(Busy, match="closed the connection before the end of its response"):
        via_api_proxy.request(method, via_api_proxy.path("configmaps"))
    assert len(api_proxy.requests) == requests


@pytest.mark.parametrize("answer", [Answer(503, (b"<h1>No</h1>",)), Answer(429), Answer(200, (b"Hello",))])
def test_what_is_not_the_api_server_is_asked_once_and_not_believed(
    api_proxy: ApiProxy, via_api_proxy: Api, answer: Answer
) -> None:
    api_proxy.rule = lambda _: answer
    with pytest.raises(Busy):
        via_api_proxy.read("configmaps", "a")
    assert len(api_proxy.requests) == 1


def test_no_redirect_is_followed(api_proxy: ApiProxy, via_api_proxy: Api) -> None:
    api_proxy.rule = lambda _: Answer(302, headers={"Location": f"{api_proxy.url}/elsewhere"})
    with pytest.raises(ApiError, match="answered 302"):
        via_api_proxy.read("configmaps", "a")
    assert len(api_proxy.requests) == 1


def test_many_threads_have_connections_of_their_own(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.create("configmaps", config_map("a"))
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(32) as threads:
        read = list(threads.map(lambda _: api.read("configmaps", "a")["metadata"]["name"], range(256)))
    assert read == ["a"] * 256
    assert caplog.records == []


# Streams. ------------------------------------------------------------------------------------------------------------


def test_a_log_is_followed_until_somebody_closes_it(configured: Configured) -> None:
    """The log is that of etcd, which runs in every cluster of the tests."""
    api = Api(configured(), "kube-system")
    (pod,) = names(api.list("pods", labels="component=etcd"))
    with api.stream(api.path("pods", pod, "log"), {"follow": "true", "tailLines": 2}) as stream:
        lines = stream.lines()
        assert all(msgspec.json.decode(next(lines))["level"] for _ in range(2))
        threading.Timer(0.1, stream.close).start()
        began = time.monotonic()
        for _ in lines:  # etcd may print more lines
            pass
        assert time.monotonic() - began < 10, "etcd may say nothing for minutes"


def test_a_line_is_whole_however_it_comes(api_proxy: ApiProxy, via_api_proxy: Api) -> None:
    api_proxy.rule = lambda _: Answer(200, (b"on", b"e\ntwo\nth", b"r", b"ee\n\nlast"), pause=0.01)
    with via_api_proxy.stream("/") as stream:
        assert list(stream.lines()) == [b"one", b"two", b"three", b"", b"last"]


def test_a_stream_that_cannot_be_had_says_why(api: Api) -> None:
    with pytest.raises(Absent, match='pods "none" not found'), api.stream(api.path("pods", "none", "log")):
        pass


def test_a_stream_that_breaks_is_no_end(proxy: Proxy, proxied: Api) -> None:
    with proxied.stream(proxied.path("configmaps"), {"watch": "true"}) as stream:
        lines = stream.lines()
        next(lines)
        proxy.cut()
        with pytest.raises(Busy, match="closed the connection"):
            list(lines)


def test_a_stream_that_stalls_is_noticed(proxy: Proxy, proxied: Api) -> None:
    with proxied.stream(proxied.path("configmaps"), {"watch": "true"}, silence=0.5) as stream:
        lines = stream.lines()
        next(lines)
        proxy.drop = True
        with pytest.raises(Busy, match=r"within 0\.5 s"):
            list(lines)


def test_a_stream_may_be_silent_for_longer_than_an_exchange(configured: Configured, namespace: str) -> None:
    api = Api(configured(), namespace, timeout=2.0)
    query = {"watch": "true", "timeoutSeconds": 3, "fieldSelector": "metadata.name=none"}
    with api.stream(api.path("configmaps"), query) as stream:
        assert list(stream.lines()) == []


def test_closing_twice_or_after_the_end_is_nothing(api: Api) -> None:
    with api.stream(api.path("configmaps"), {"watch": "true", "timeoutSeconds": 1}) as stream:
        list(stream.lines())
        stream.close()
        stream.close()
    assert list(stream.lines()) == []
    assert quote("a/b", safe="") in api.path("configmaps", "a/b")
