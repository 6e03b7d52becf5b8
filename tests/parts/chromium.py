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
"""It asks nobody but the pages' own hosts."""


def problem() -> str | None:
    """Why there is none here, in a sentence; `None` where there is."""
    return None if shutil.which("chromium") else "there is no chromium command: install the package chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    """One without a window. As root it cannot have a sandbox."""
    arguments = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()
