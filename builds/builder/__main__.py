"""`python -m builds.builder SPEC RESULT`: the program in the pod, and the local engine's child.

The log goes to stdout, the result to RESULT, and the exit status summarises the result. In every case, all child
processes have ended and all temporary files are deleted before the result is written. Heavy modules are imported only
after the signal handlers are installed: process 1 without a handler would ignore SIGTERM.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from builds.builder import processes
from builds.faults import Fault, crash_if_armed


def main(spec: str, target: str) -> int:
    """Returns the exit status (`builds.builder.outcome.exit_status`)."""
    if not processes.own_session():
        sys.exit(
            "The builder ends all processes of its session, so it needs its own. Start it by setsid --wait COMMAND"
        )
    processes.listen()
    with _locked(os.environ.get("KILN_ATTEMPT_DIR")) as folder, _in_use(os.environ.get("KILN_IN_USE")):
        crash_if_armed(Fault.BUILDER_LOCKED)
        from builds.builder.attempt import attempted  # noqa: PLC0415
        from builds.builder.log import Log  # noqa: PLC0415
        from builds.builder.outcome import exit_status  # noqa: PLC0415
        from builds.builder.result import write  # noqa: PLC0415

        log = Log(os.fdopen(1, "wb", closefd=False))  # not sys.stdout, whose errors would change the exit status
        result = attempted(Path(spec), log, folder)
        write(Path(target), result)
        crash_if_armed(Fault.BUILDER_RESULT_WRITTEN)
        return exit_status(result)


@contextmanager
def _locked(folder: str | None) -> Iterator[str | None]:
    """Takes the builder's own lock, records the session, and makes the attempt's lock standard input.

    repo2docker closes all other descriptors for its children, and each of them must hold the lock.
    """
    if folder is None:
        yield None
        return
    with (Path(folder) / "builder.lock").open("wb") as own:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (Path(folder) / "group").write_text(f"{os.getsid(0)}\n")
        shared = Path(folder) / "lock"
        for entry in Path("/proc/self/fd").iterdir():
            if _is(int(entry.name), shared):
                os.dup2(int(entry.name), 0)
        yield folder


@contextmanager
def _in_use(path: str | None) -> Iterator[None]:
    """Holds a shared lock on a file beside the daemon's socket: a stopping daemon waits for running builds.

    An exclusive lock is only ever held for an instant. If the file does not exist yet, the build runs without a lock.
    """
    if path is None:
        yield
        return
    with ExitStack() as held:
        with suppress(OSError):
            file = held.enter_context(Path(path).open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


if __name__ == "__main__":
    if len(sys.argv) != 3:  # noqa: PLR2004
        sys.exit("usage: python -m builds.builder SPEC RESULT")
    sys.exit(main(*sys.argv[1:]))
