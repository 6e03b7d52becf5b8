"""What this tier needs of the machine: without Docker, every test here is skipped, and says why."""

from __future__ import annotations

import pytest

from tests.parts import machine


@pytest.fixture(autouse=True, scope="session")
def docker() -> None:
    reason = machine.problem()
    if reason:
        pytest.skip(reason)
