"""Settings for all tiers: the load of the machine must not decide what a test finds, and no long file comes last."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("kiln", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kiln")

LONGEST = (
    *("test_run.py", "test_house.py", "test_vitals.py", "test_cli.py"),
    *("test_embedded.py", "test_docs.py", "test_sync.py", "test_buildcommands.py", "test_wheel.py", "test_json.py"),
    *("test_failures.py", "test_placement.py", "test_crashes.py", "test_faults.py", "test_bad_objects.py"),
    *("test_releases.py", "test_logs.py", "test_buildpacks.py", "test_history.py"),
    *("test_repositories.py", "test_blame.py", "test_daemon.py", "test_killed.py", "test_podman.py"),
    "test_user_server.py",
)
"""Files that take long for their tier, by name. They begin first: a worker takes the next file when it is done with
one, and the others are not to wait for one of these in the end."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
