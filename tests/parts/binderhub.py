"""Requests of clients of BinderHub's API, and the properties of the answer on which these clients rely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from tests.parts.system import System

Message = dict[str, Any]


def spec_of(system: System, path: str, ref: str) -> str:
    return f"git/{quote(system.host.url(path), safe='')}/{ref}"


def check_order(said: Sequence[Message]) -> None:
    """Checks that phases come in order, that each message brings its own newline, and that only the last ends the
    stream."""
    order = ["waiting", "fetching", "building", "pushing", "ready", "failed"]
    phases = [message["phase"] for message in said]
    assert phases == sorted(phases, key=order.index)
    assert sum(phase in ("ready", "failed") for phase in phases) == 1
    assert all(message["message"].endswith("\n") for message in said)


def check_there(system: System, end: Message) -> None:
    assert end["phase"] == "ready"
    image, _, tag = end["imageName"].rpartition(":")
    assert system.digest(image, tag) == end["imageDigest"]
