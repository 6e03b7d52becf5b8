"""Blocks or ends a thread of a Kiln process that has this folder on its PYTHONPATH.

A file in the folder $STUCK_THREADS names the thread: `loop`, `lease`, `watch`, `sender`, or `own`, a thread that
exists only for this purpose. Its content is the fault: `block`, `raise` or `exit`. It is read once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

MODULES = {
    "loop": ("builds.controller", "Controller", ("reconcile",)),
    "sender": ("eventing.transport", "Transport", ("_beat",)),
    "lease": ("builds.engines.kubernetes.lease", "Lease", ("_turn",)),
    "watch": ("builds.engines.kubernetes.watch", "Watch", ("_apply", "_once")),
}
"""The methods that each thread calls in every round."""


def fate(word: str) -> Callable[..., None]:
    def meet(*_: object) -> None:
        while word == "block":
            time.sleep(3600)
        raise RuntimeError if word == "raise" else SystemExit

    return meet


def look(folder: Path) -> None:
    for name in ("own", *MODULES):
        try:
            word = (folder / name).read_text().strip()
            (folder / name).unlink()
        except FileNotFoundError:
            continue
        if name == "own":
            fate(word)()
        module, kind, methods = MODULES[name]
        for method in methods:
            setattr(getattr(sys.modules[module], kind), method, fate(word))


def run(folder: Path) -> None:
    while True:
        look(folder)
        time.sleep(0.1)


if "STUCK_THREADS" in os.environ:
    threading.Thread(target=run, args=(Path(os.environ["STUCK_THREADS"]),), name="stuck", daemon=True).start()
