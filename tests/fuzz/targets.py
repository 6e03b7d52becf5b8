"""The table of fuzz targets. A new one is a function `bytes -> None` and a row, with seeds in `corpus/<name>/`.

A target raises nothing: it suppresses the errors that its package declares, and whatever else comes out is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fuzz.decode import decode_http
from tests.fuzz.filters import filters
from tests.fuzz.github import github_webhook

CORPUS = Path(__file__).parent / "corpus"

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "decode_http": decode_http,
    "filters": filters,
    "github_webhook": github_webhook,
}
