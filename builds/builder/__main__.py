"""`python -m builds.builder SPEC RESULT`: the program in the pod, and the local engine's child.

The log goes to stdout, the result to RESULT, and the exit status says the same in one number. Whatever happens, all
that was started has ended and all temporary files are gone before the result is written. The heavy modules are imported
only once signals are heard: a process 1 without a handler would not notice SIGTERM at all.
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
    """The exit status (`builds.builder.outcome.exit_status`)."""
    if not processes.own_session():
        sys.exit("The builder ends whatever is in its session, so it needs one of its own: setsid --wait COMMAND")
    processes.listen()
    with _locked(os.environ.get("KILN_ATTEMPT_DIR")) as folder, _in_use(os.environ.get("KILN_IN_USE")):
        crash_if_armed(Fault.BUILDER_LOCKED)
        from builds.builder.attempt import attempted  # noqa: PLC0415
        from builds.builder.log import Log  # noqa: PLC0415
        from builds.builder.outcome import exit_status  # noqa: PLC0415
        from builds.builder.result import write  # noqa: PLC0415

        log = Log(os.fdopen(1, "wb", closefd=False))  # not Python's own, whose state would be in the exit status
        result = attempted(Path(spec), log, folder)
        write(Path(target), result)
        crash_if_armed(Fault.BUILDER_RESULT_WRITTEN)
        return exit_status(result)


@contextmanager
def _locked(folder: str | None) -> Iterator[str | None]:
    """Takes the builder's own lock, says which session this is, and makes the attempt's lock standard input.

    repo2docker closes all other descriptors for its children, and the lock has to be held while one of them lives.
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
    """Holds a shared lock on a file beside the daemon's socket: a daemon that is to stop waits for those who build.

    Whoever takes it for itself has it for an instant only. That the file is not there yet is no reason not to try.
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
