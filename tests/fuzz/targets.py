"""The table of fuzz targets. A new one is a function `bytes -> None` and a row, with seeds in `corpus/<name>/`.

A target raises nothing: it suppresses the errors that its package declares, and any other exception is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from eventing.hosts import DIALECTS
from tests.fuzz.builder import git_words, tool_output
from tests.fuzz.decode import decode_http
from tests.fuzz.filters import filters
from tests.fuzz.hosts import webhook
from tests.fuzz.request_inputs import binder_spec, build_request, pattern, repository_url, trigger_template
from tests.fuzz.server_answers import issuer_tokens, status_answers
from tests.fuzz.user_inputs import configuration, durations_and_sizes, saved_requests, server_sent_events

CORPUS = Path(__file__).parent / "corpus"

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "binder_spec": binder_spec,
    "build_request": build_request,
    "configuration": configuration,
    "decode_http": decode_http,
    "durations_and_sizes": durations_and_sizes,
    "filters": filters,
    "git_words": git_words,
    **{f"{word}_webhook": webhook(word) for word in DIALECTS},
    "issuer_tokens": issuer_tokens,
    "pattern": pattern,
    "repository_url": repository_url,
    "saved_requests": saved_requests,
    "server_sent_events": server_sent_events,
    "status_answers": status_answers,
    "tool_output": tool_output,
    "trigger_template": trigger_template,
}
