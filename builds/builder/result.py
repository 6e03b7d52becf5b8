"""The result of an attempt as a file of at most 4096 bytes, the limit of Kubernetes for termination messages."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from builds.build import Result

MAX_BYTES = 4096
MAX_MESSAGE = 1024
"""Bytes of UTF-8."""
MAX_MOVED = 400
"""Of these, the bytes that redirects may take from the rest of the message."""


def fitted(result: Result) -> bytes:
    """The result as JSON, shortened until it fits: first the log's tail, from its beginning, then the message, then the
    tags (refused ones first)."""
    message = None if result.message is None else _first_bytes(result.message, MAX_MESSAGE)
    result = msgspec.structs.replace(result, message=message)
    while len(encoded := msgspec.json.encode(result)) > MAX_BYTES:
        result = _shorter(result)
    return encoded


def message_of(said: str, moved: str) -> str | None:
    """The attempt's message, and then the followed redirects; each has a share of the length."""
    if said:
        moved = _first_bytes(moved, MAX_MOVED)
        said = _first_bytes(said, MAX_MESSAGE - len(f" {moved}".encode(errors="replace")) if moved else MAX_MESSAGE)
    return " ".join(filter(None, (said, moved))) or None


def write(path: Path, result: Result) -> None:
    """Writes atomically by rename; in place if the path is a mount, as in a pod."""
    content = fitted(result)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with beside.open("xb") as file:
            file.write(content)
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        path.write_bytes(content)


def _shorter(result: Result) -> Result:
    if result.log_tail:
        return msgspec.structs.replace(result, log_tail=result.log_tail[len(result.log_tail) // 4 + 1 :])
    if result.message:
        return msgspec.structs.replace(result, message=result.message[: len(result.message) * 3 // 4])
    image = result.image
    if image is None:
        return result
    if image.refused_tags:
        fewer = image.refused_tags[: len(image.refused_tags) // 2]
        return msgspec.structs.replace(result, image=msgspec.structs.replace(image, refused_tags=fewer))
    return msgspec.structs.replace(
        result, image=msgspec.structs.replace(image, tags=image.tags[: len(image.tags) // 2])
    )


def _first_bytes(text: str, most: int) -> str:
    """The beginning of a text; invalid UTF-8 becomes question marks."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= most:
        return encoded.decode()
    return encoded[: most - 3].decode(errors="ignore") + "…"
