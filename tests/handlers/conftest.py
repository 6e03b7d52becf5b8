from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.harness import Harness, create_harness


@pytest.fixture
def harnesses(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """Return a factory of harnesses with other settings, each in its own folder."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Harness:
            folder = tmp_path / f"harness-{len(list(tmp_path.iterdir()))}"
            return stack.enter_context(closing(create_harness(folder, **settings)))

        yield make


@pytest.fixture
def harness(harnesses: Callable[..., Harness]) -> Harness:
    return harnesses()
