"""msgspec's Structs, made ready for threads.

msgspec works out how a Struct is decoded when that is first asked for, and what it has so far is visible to all threads
meanwhile: the second of two threads that decode a type for the first time at the same time follows a null pointer, and
the process ends (msgspec 0.22). So whatever starts threads does that work before.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

PACKAGES = ("builds", "eventing", "handlers")


def make_ready() -> None:
    """For each Struct of our packages that has been imported; again for those imported since."""
    for struct in structs():
        msgspec.json.Decoder(struct)


def structs(base: type[msgspec.Struct] = msgspec.Struct) -> Iterator[type[msgspec.Struct]]:
    """All that there are."""
    for struct in base.__subclasses__():
        if struct.__module__.partition(".")[0] in PACKAGES:
            yield struct
        yield from structs(struct)
