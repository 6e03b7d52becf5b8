"""Prepares msgspec Structs for use by several threads.

msgspec builds a Struct's decoder at its first use, and other threads see the unfinished decoder meanwhile. If two
threads decode a type for the first time concurrently, the second one follows a null pointer, and the process crashes
(msgspec 0.22). So a process prepares its Structs before it starts threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

PACKAGES = ("builds", "eventing", "handlers")


def make_ready() -> None:
    """Prepares each imported Struct of our packages; call it again after further imports."""
    for struct in structs():
        msgspec.json.Decoder(struct)


def structs(base: type[msgspec.Struct] = msgspec.Struct) -> Iterator[type[msgspec.Struct]]:
    """All Structs of our packages that derive from `base`."""
    for struct in base.__subclasses__():
        if struct.__module__.partition(".")[0] in PACKAGES:
            yield struct
        yield from structs(struct)
