from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.house import House, build_house


@pytest.fixture
def houses(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Return a factory of houses with other settings, each in its own folder."""
    with ExitStack() as stack:

        def make(**settings: Any) -> House:
            folder = tmp_path / f"house-{len(list(tmp_path.iterdir()))}"
            return stack.enter_context(closing(build_house(folder, **settings)))

        yield make


@pytest.fixture
def house(houses: Callable[..., House]) -> House:
    return houses()
