"""The contract of every engine's records, applied to records in ConfigMaps."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from builds.engines.kubernetes import KubernetesEngine
from builds.engines.kubernetes.api import Api
from tests.builds.engine_contract import RecordsContract
from tests.builds.engine_factories import new_submission
from tests.cluster.engine.conftest import Engines


class TestContract(RecordsContract):
    @pytest.fixture
    def records(self, api: Api, engines: Engines) -> Iterator[KubernetesEngine]:
        """The contract's names are short and constant, so each test begins without records."""
        yield engines(max_queued=5, max_queued_per_user=2)
        for record in list(api.list("configmaps", labels="app.kubernetes.io/component=build", metadata_only=True)):
            api.delete("configmaps", record["metadata"]["name"])


@pytest.fixture
def asked(api: Api, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the methods of all later requests for ConfigMaps, in order."""
    methods: list[str] = []
    request = api.request

    def counted(method: str, path: str, **more: Any) -> bytes:
        if "/configmaps" in path:
            methods.append(method)
        return request(method, path, **more)

    monkeypatch.setattr(api, "request", counted)
    return methods


def test_who_joins_what_this_process_wrote_a_moment_ago_costs_one_write(engines: Engines, asked: list[str]) -> None:
    engine, name = engines(), f"b-{secrets.token_hex(4)}"
    (first,) = engine.accept([new_submission(name, "1")])
    asked.clear()
    (second,) = engine.accept([new_submission(name, "2")])
    assert asked == ["PATCH"]
    assert ([one.id for one in second.causes], second.uid) == (["1", "2"], first.uid)


def test_who_joins_what_another_has_written_since_loses_nothing_of_it(engines: Engines, asked: list[str]) -> None:
    engine, name = engines(), f"b-{secrets.token_hex(4)}"
    (first,) = engine.accept([new_submission(name, "1")])
    engine._put(replace(first, status=replace(first.status, waiting="For a slot.")))
    engine._last_written.put(name, first)
    asked.clear()
    (joined,) = engine.accept([new_submission(name, "2")])
    assert asked == ["PATCH", "GET", "PATCH"]
    assert ([one.id for one in joined.causes], joined.status.waiting) == (["1", "2"], "For a slot.")


def test_who_joins_what_has_been_deleted_since_makes_it_anew(engines: Engines, api: Api, asked: list[str]) -> None:
    engine, name = engines(), f"b-{secrets.token_hex(4)}"
    (first,) = engine.accept([new_submission(name, "1")])
    api.delete("configmaps", name)
    asked.clear()
    (made,) = engine.accept([new_submission(name, "2")])
    assert asked == ["PATCH", "GET", "POST"]
    assert (made.uid != first.uid, [one.id for one in made.causes]) == (True, ["2"])
