"""BuildKit's reports about a build, as `docker buildx build --progress=rawjson` prints them: one JSON object each.

In this format a step's output is a separate field, so a step cannot imitate a report. The log shows the reports as
`--progress=plain` does.

Source: `SolveStatus` in BuildKit's `client/graph.go`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

import msgspec

from builds.builder.daemons import Findings
from builds.builder.log import clean
from builds.builder.outcome import FailedCommand
from builds.builder.output import Output
from builds.builder.pushing import Layers

_LAYER = "pushing layer "
_IMPORTS_CACHE = "importing cache manifest from "
"""Such a vertex may fail, and the build continues without those layers."""
_CANCELED = re.compile(r"(^|: )context canceled$", re.IGNORECASE)
_EXIT = re.compile(
    r"(?:^process \".*\" did not complete successfully|^executor failed running \[.*\]): (.*)$", re.DOTALL
)
_SOURCE = re.compile(
    r"\[internal\] load metadata for |resolve image config for |\[[^\]]*\] FROM |https?://|git://|git@"
)

_FROM = re.compile(r"\[[^\]]*\] FROM ([^\s@]+)")


class VertexReport(msgspec.Struct, frozen=True):
    """A vertex of the build graph: a step, or another task of BuildKit."""

    digest: str
    name: str = ""
    started: datetime | None = None
    completed: datetime | None = None
    cached: bool = False
    error: str = ""


class OutputReport(msgspec.Struct, frozen=True):
    vertex: str
    timestamp: datetime
    data: bytes = b""


class StatusReport(msgspec.Struct, frozen=True):
    """A part of a vertex's work, such as a layer that it pushes. `current` is in bytes."""

    vertex: str
    id: str = ""
    current: int = 0
    timestamp: datetime | None = None
    completed: datetime | None = None


class SolveReport(msgspec.Struct, frozen=True):
    vertexes: tuple[VertexReport, ...] | None = None
    logs: tuple[OutputReport, ...] | None = None
    statuses: tuple[StatusReport, ...] | None = None


class Reports:
    """Assembles reports from lines: buildx 0.13 indents them, so that each takes several lines."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def take(self, line: str) -> SolveReport | str | None:
        """A report, or `line` itself if it belongs to no report; `None` while a report is incomplete."""
        text = line.rstrip("\r\n")
        if not self._lines and not text.startswith("{"):
            return text
        self._lines.append(text)
        if text == "}" or (len(self._lines) == 1 and text.endswith("}")):
            whole = "".join(self._lines)
            self._lines.clear()
            return _decoded(whole)
        return None


def _decoded(text: str) -> SolveReport | str:
    try:
        return msgspec.json.decode(text, type=SolveReport)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return text


class Vertex:
    """The state of one vertex. `number` is that of its lines in the log."""

    def __init__(self, number: int, name: str) -> None:
        self.number, self.name = number, name
        self.error = ""
        self.completed = False
        self.output = Output()
        self._started: datetime | None = None
        self._partial = b""
        self._seen: set[str] = set()
        self._layers = Layers()

    @property
    def exit(self) -> str | None:
        """The end of a step's command, such as `exit code: 1`; `None` if no command failed."""
        found = _EXIT.search(self.error)
        return found[1] if found else None

    @property
    def is_source(self) -> bool:
        """Whether it fetches an image or its metadata, a URL, or a Git repository."""
        return _SOURCE.match(self.name) is not None

    def take(self, report: VertexReport) -> Iterator[str]:
        """The report's lines for the log."""
        if report.started and not self._started:
            self._started = report.started
            yield f"#{self.number} {self.name}"
        if report.completed and report.started and not (self.completed and not report.error):
            yield from self._flush(report.completed)
            self.completed, self.error = True, report.error
            if (pushed := self._layers.summary()) and not report.error:
                yield f"#{self.number} {pushed}"
            spent = (report.completed - report.started).total_seconds()
            state = f"ERROR: {report.error}" if report.error else "CACHED" if report.cached else f"DONE {spent:.1f}s"
            yield f"#{self.number} {state}"

    def take_output(self, report: OutputReport) -> Iterator[str]:
        *lines, self._partial = (self._partial + report.data).split(b"\n")
        for line in lines:
            yield self._said(line, report.timestamp)

    def take_status(self, report: StatusReport) -> Iterator[str]:
        if report.id.startswith(_LAYER) and report.timestamp:
            done, now = report.completed is not None, report.timestamp.timestamp()
            if line := self._layers.take(report.id, now, sent=report.current, done=done):
                yield f"#{self.number} {line}"
        elif report.id not in self._seen:
            self._seen.add(report.id)
            yield f"#{self.number} {report.id}"

    def _flush(self, at: datetime) -> Iterator[str]:
        if self._partial:
            partial, self._partial = self._partial, b""
            yield self._said(partial, at)

    def _said(self, line: bytes, at: datetime) -> str:
        text = line.decode(errors="replace").removesuffix("\r")
        self.output.append(text)
        since = (at - self._started).total_seconds() if self._started else 0.0
        return f"#{self.number} {since:.3f} {text}"


class Graph:
    """All vertices of one build."""

    def __init__(self) -> None:
        self._vertices: dict[str, Vertex] = {}

    def __iter__(self) -> Iterator[Vertex]:
        return iter(self._vertices.values())

    def take(self, report: SolveReport) -> Iterator[str]:
        """The report's lines for the log."""
        for vertex in report.vertexes or ():
            if vertex.started or vertex.digest in self._vertices:
                yield from self._vertex(vertex.digest, vertex.name).take(vertex)
        for status in report.statuses or ():
            yield from self._vertex(status.vertex).take_status(status)
        for output in report.logs or ():
            yield from self._vertex(output.vertex).take_output(output)

    def failed(self, final: str) -> Vertex | None:
        """The vertex that failed: its error is in BuildKit's final error, and it was not merely cancelled."""
        real = (vertex for vertex in self if not vertex.name.startswith(_IMPORTS_CACHE))
        failed = [vertex for vertex in real if vertex.error and not _CANCELED.search(vertex.error)]
        named = [vertex for vertex in failed if vertex.error in final]
        return next(reversed(named or failed), None)

    def _vertex(self, digest: str, name: str = "") -> Vertex:
        return self._vertices.setdefault(digest, Vertex(len(self._vertices) + 1, name))


class BuildKit:
    """The parser for `docker buildx build --progress=rawjson`."""

    def __init__(self) -> None:
        self.pushing = False
        self._reports = Reports()
        self._graph = Graph()
        self._error = ""

    def take(self, message: str) -> Iterator[str]:
        taken = self._reports.take(message)
        if isinstance(taken, SolveReport):
            yield from self._graph.take(taken)
            self.pushing |= any(vertex.name.startswith("pushing ") for vertex in taken.vertexes or ())
        elif taken is not None:
            if taken.startswith(("ERROR: ", "error: ")):
                self._error = clean(taken).partition(": ")[2]
            yield taken

    def findings(self) -> Findings:
        vertices = list(self._graph)
        failed = self._graph.failed(self._error)
        return Findings(
            error=self._error,
            step=_step(failed),
            source=failed.name if failed and failed.is_source else "",
            began=bool(vertices),
            interrupted=failed is None and (is_cancelled(self._error) or (bool(vertices) and not self._error)),
            base=next((found[1] for vertex in vertices if (found := _FROM.match(vertex.name))), ""),
        )


def _step(failed: Vertex | None) -> FailedCommand | None:
    if failed is None or failed.exit is None:
        return None
    return FailedCommand(failed.name, failed.exit, tuple(clean(line) for line in failed.output))


def is_cancelled(final: str) -> bool:
    """Whether the final error means that the client went away."""
    return _CANCELED.search(final) is not None
