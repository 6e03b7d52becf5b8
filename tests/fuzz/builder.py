"""The output of a build and the files of a repository, as the builder reads them."""

from __future__ import annotations

import io
from contextlib import suppress

from builds.builder.log import Log
from builds.builder.outcome import AttemptStage, Evidence, failure
from builds.builder.redact import Redactor
from builds.builder.source import resolved
from builds.builder.tool import ToolProgress, tool_line
from builds.clients.git import diagnosis
from builds.errors import RepositoryRefused

SECRET = "canary-\u00e9/+ 7f3a"


def tool_output(data: bytes) -> None:
    """The tool's output, line by line: parsed, logged without the secret, and classified as a failure."""
    out = io.BytesIO()
    log = Log(out)
    log.redact = Redactor([SECRET], {"NAME": "1"})
    progress = ToolProgress(AttemptStage.FETCH, 0.0)
    for raw in [*data.splitlines(), SECRET.encode()]:
        for text in progress.take(tool_line(raw), 1.0):
            log.say(text)
    log.close()
    assert SECRET.encode() not in out.getvalue()
    assert failure(progress.account(), Evidence()).message


def git_words(data: bytes) -> None:
    """Error messages of Git, and the relative address of a submodule."""
    text = data.decode(errors="replace")
    assert str(diagnosis(text))
    with suppress(RepositoryRefused):
        resolved("https://git.example/owner/name", text)
