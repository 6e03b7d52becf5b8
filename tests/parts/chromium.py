"""The machine's own Chromium, driven by Playwright: a page of it is a browser as people have it.

with chromium() as browser:
    page = browser.new_page()
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
"""Options with which Chromium sends requests to the pages' own hosts only."""


def problem() -> str | None:
    """Why Chromium cannot run here, in a sentence; `None` where it can."""
    return None if shutil.which("chromium") else "there is no chromium command: install the package chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts Chromium without a window. As root it cannot have a sandbox."""
    arguments = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()
