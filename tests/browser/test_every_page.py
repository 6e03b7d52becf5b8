"""Every page as a picture, narrow and wide, light and dark: nothing serious for axe-core, nothing scrolls sideways.

The pictures are in `.cache/pages`, and among the artefacts of CI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, StorageState

from builds.build import Reason, State
from tests.browser.conftest import Visit
from tests.handlers.harness import REPOSITORY
from tests.parts.machine import CACHE
from tests.parts.site import Site

PICTURES = CACHE / "pages"
SIZES = {"narrow": (360, 800), "wide": (1440, 1000)}
SCHEMES = ("light", "dark")
CHECKED = ("narrow-dark", "wide-light")
"""The runs of axe-core, which cover each size and each scheme once."""
SAID = "ERROR: No matching distribution found for scikit-lern==1.4"
COLOURS = " ".join(f"\x1b[{code}m{code}\x1b[0m" for code in (*range(30, 38), *range(90, 98)))
BACKGROUNDS = " ".join(f"\x1b[{code}m {code} \x1b[0m" for code in (*range(40, 47), *range(100, 107), "30;47", "30;107"))


@cache
def axe(packages: Path) -> str:
    return (packages / "node_modules/axe-core/axe.min.js").read_text()


@pytest.fixture(scope="module")
def pages(site: Site) -> Mapping[str, str]:
    """Paths by name. Each state has a build."""
    harness = site.harness
    site.harness.ask(subdir="waits", ref="refs/heads/main")
    paths = {"builds": "", "nothing-found": "?search=nothing-of-that-name", "missing": "builds/none"}
    paths |= {"new": "new", "triggers": "triggers", "nodes": "nodes"}
    paths["repository"] = f"repository?repository={quote(REPOSITORY, safe='')}"
    running = harness.run(harness.ask(subdir="course/week-1").name)
    harness.say(running.name, "Cloning into '/tmp/source'...", "HEAD is now at 0123456 Week 1", phase="fetch")
    harness.say(running.name, "#1 [internal] load build definition", COLOURS, BACKGROUNDS, "long " * 60, "10%\r90%")
    failed = harness.run(harness.ask(subdir="broken").name)
    harness.say(failed.name, "#9 1.1 Collecting numpy", f"#9 1.2 \x1b[31m{SAID}\x1b[0m")
    message = f"RUN pip install -r requirements.txt: exit code 1; it said: {SAID}"
    tail = f"#9 1.1 Collecting numpy\n#9 1.2 {SAID}\n"
    harness.end(failed.name, state=State.FAILED, reason=Reason.REPOSITORY, message=message, log_tail=tail)
    done = harness.run(harness.ask(subdir="done", tags=["course-main"]).name)
    harness.say(done.name, *(f"#{number} step {number}" for number in range(1, 300)))
    harness.end(done.name, retry=True)
    harness.run(done.name)
    harness.say(done.name, "Layer pushed", attempt=2, phase="push")
    harness.end(done.name, attempt=2)
    cancelled = harness.run(harness.ask(subdir="stopped").name)
    harness.end(cancelled.name, state=State.CANCELLED, reason=Reason.REQUESTED)
    ends = {"running": running, "failed": failed, "succeeded": done, "cancelled": cancelled}
    return {**paths, **{name: f"builds/{build.name}" for name, build in ends.items()}}


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in SCHEMES], ids="-".join)
def look(
    request: pytest.FixtureRequest, browser: Browser, signed_in: StorageState
) -> Iterator[tuple[str, BrowserContext]]:
    size, scheme = request.param
    width, height = SIZES[size]
    viewport = {"width": width, "height": height}
    with browser.new_context(storage_state=signed_in, viewport=viewport, color_scheme=scheme) as context:  # type: ignore[arg-type]
        yield f"{size}-{scheme}", context


def serious(visit: Visit, source: str) -> list[str]:
    """The findings of axe-core: the rule, and the elements that break it."""
    visit.page.evaluate(source)
    found: dict[str, Any] = visit.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    worse = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in worse for node in one["nodes"][:3]]


@pytest.mark.timeout(240)  # a dozen pages, and axe-core on each
def test_every_page(look: tuple[str, BrowserContext], site: Site, pages: Mapping[str, str], packages: Path) -> None:
    how, context = look
    PICTURES.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    for name, path in pages.items():
        visit = Visit(context.new_page())
        visit.page.goto(site.page(path))
        if path.startswith("builds/") and name != "missing":
            visit.page.locator("#log[data-begun]").scroll_into_view_if_needed()
        visit.page.screenshot(path=PICTURES / f"{name}-{how}.png", full_page=True)
        wide = visit.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if how in CHECKED:
            wrong += [f"{name}: {error}" for error in serious(visit, axe(packages))]
        wrong += [f"{name}: scrolls sideways by {wide} px"] * (wide > 0)
        wrong += [f"{name}: {error}" for error in visit.errors if name != "missing"]
        visit.page.close()
    assert wrong == []


def test_signing_in(browser: Browser, site: Site, packages: Path) -> None:
    with browser.new_context(viewport={"width": 360, "height": 640}) as context:
        visit = Visit(context.new_page())
        visit.page.goto(site.page())
        visit.page.screenshot(path=PICTURES / "login-narrow-light.png")
        assert serious(visit, axe(packages)) == []
