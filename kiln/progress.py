"""What `kiln build` shows while it waits: plain lines in a file, and on a terminal a last line that says how it stands.

A log is text from a stranger's repository: on its way to a terminal it loses everything that could steer one.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from eventing import terminal
from kiln.client import Message


class Progress:
    """Use as a context; `show` each message as it comes."""

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
            self._lines.stands(self._phase)
        self._lines.say(printable(str(line.get("line") or "")))

    def _change(self, build: dict[str, Any]) -> None:
        state, waiting = str(build.get("state")), build.get("waiting")
        said = printable(f"{state}: {waiting}" if state == "queued" and waiting else state)
        if said == self._state:
            return
        self._state, self._phase = said, None
        if build.get("finished_at") and (took := _took(build.get("durations") or {})):
            self._lines.say(f"[{took}]")
        self._lines.say(f"[{said}]")
        self._lines.stands(said)


def _took(durations: dict[str, float | None]) -> str:
    """How long each phase took; empty where none was reached."""
    phases = ((name, durations.get(name)) for name in ("fetch", "build", "push"))
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases if seconds is not None)


class _Lines(Protocol):
    """Where lines go. All text is printable."""

    def begin(self) -> None: ...

    def say(self, text: str) -> None: ...

    def stands(self, text: str) -> None:
        """What is being done, in a word."""

    def end(self) -> None: ...


class _Plain:
    """A file or pipe."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def begin(self) -> None: ...

    def say(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()

    def stands(self, text: str) -> None: ...

    def end(self) -> None: ...


class _Terminal:
    """A terminal: below the lines stands what is being done, and for how long the build has been followed."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress as Bars  # noqa: PLC0415
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (SpinnerColumn("line"), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        self._bars = Bars(*columns, console=Console(file=out), transient=True)
        self._task = self._bars.add_task("", total=None)

    def begin(self) -> None:
        self._bars.start()

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def stands(self, text: str) -> None:
        self._bars.update(self._task, description=text)

    def end(self) -> None:
        self._bars.stop()


def printable(text: str) -> str:
    """The text without escape sequences and control characters."""
    return terminal.plain(re.sub(r"[\r\n]", "", text))
