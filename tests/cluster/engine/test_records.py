"""What every engine promises of its records, put to the one whose records are ConfigMaps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from builds.engines.kubernetes import KubernetesEngine
from builds.engines.kubernetes.api import Api
from tests.builds.engine_contract import RecordsContract
from tests.cluster.engine.conftest import Engines


class TestContract(RecordsContract):
    @pytest.fixture
    def records(self, api: Api, engines: Engines) -> Iterator[KubernetesEngine]:
        """The contract's names are short and always the same, so each test begins with none of them."""
        yield engines(max_queued=5, max_queued_per_user=2)
        for record in list(api.list("configmaps", labels="app.kubernetes.io/component=build", metadata_only=True)):
            api.delete("configmaps", record["metadata"]["name"])
