"""The progress of a build, as `kiln build` shows it: plain lines, and on a terminal a last line with the current phase.

A log contains text from any repository. Control characters and escape sequences are removed, because they could change
the terminal.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from eventing import terminal
from kiln.client import Message


class Progress:
    """A context; `show` prints a message of the build."""

    def __init__(self, out: TextIO) -> None:
        self._lines: _Lines = _Terminal(out) if out.isatty() else _Plain(out)
        self._state = ""
        self._phase: str | None = None

    def __enter__(self) -> Self:
        self._lines.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.end()

    def show(self, message: Message) -> None:
        if message.kind == "log":
            self._log(message.data)
        elif message.kind == "state":
            self._change(message.data)

    def _log(self, line: dict[str, Any]) -> None:
        phase = line.get("phase")
        if phase and phase != self._phase:
            self._phase = str(phase)
            self._lines.status(self._phase)
        self._lines.line(printable(str(line.get("line") or "")))

    def _change(self, build: dict[str, Any]) -> None:
        state, waiting = str(build.get("state")), build.get("waiting")
        said = printable(f"{state}: {waiting}" if state == "queued" and waiting else state)
        if said == self._state:
            return
        self._state, self._phase = said, None
        if build.get("finished_at") and (took := _took(build.get("durations") or {})):
            self._lines.line(f"[{took}]")
        self._lines.line(f"[{said}]")
        self._lines.status(said)


def _took(durations: dict[str, float | None]) -> str:
    """The duration of each phase that was reached."""
    phases = ((name, durations.get(name)) for name in ("fetch", "build", "push"))
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases if seconds is not None)


class _Lines(Protocol):
    """An output for lines. All text is printable."""

    def begin(self) -> None: ...

    def line(self, text: str) -> None: ...

    def status(self, text: str) -> None:
        """Shows the current phase or state."""

    def end(self) -> None: ...


class _Plain:
    """A file or pipe."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def begin(self) -> None: ...

    def line(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()

    def status(self, text: str) -> None: ...

    def end(self) -> None: ...


class _Terminal:
    """A terminal. A line below the log shows the current phase and the time since the command started."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress as Bars  # noqa: PLC0415
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (SpinnerColumn("line"), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        self._bars = Bars(*columns, console=Console(file=out), transient=True)
        self._task = self._bars.add_task("", total=None)

    def begin(self) -> None:
        self._bars.start()

    def line(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def status(self, text: str) -> None:
        self._bars.update(self._task, description=text)

    def end(self) -> None:
        self._bars.stop()


def printable(text: str) -> str:
    """The text without escape sequences and control characters."""
    return terminal.plain(re.sub(r"[\r\n]", "", text))
