"""The page of a build in a real browser: its log as it grows, followed, searched, folded and linked, and its forms."""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Callable, Iterator
from threading import Thread

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from builds.build import Build, Reason, State
from tests.browser.conftest import Visit
from tests.handlers.harness import COMMIT
from tests.parts.kiln import until
from tests.parts.site import Site

Visiting = Callable[..., Visit]
NUMBERS = "log => [...log.querySelectorAll('.line')].map((line) => Number(line.dataset.n))"
SEEN = """(line) => {
    const at = line.getBoundingClientRect(), log = line.closest("#log").getBoundingClientRect();
    return at.top >= log.top && at.bottom <= log.bottom;
}"""
LAST = """() => {
    let part = document.getElementById("log");
    while (part && !part.matches(".line")) part = part.lastElementChild;
    return Number(part?.dataset.n ?? 0);
}"""
_names = iter(range(10_000))


def asked(site: Site) -> Build:
    return site.harness.ask(subdir=f"page-{next(_names)}")


def running(site: Site) -> Build:
    return site.harness.run(asked(site).name)


def log_of(page: Page) -> Locator:
    return page.locator("#log")


def line(page: Page, number: int) -> Locator:
    return page.locator(f"#log .line[data-n='{number}']")


def numbers(page: Page) -> list[int]:
    found: list[int] = log_of(page).evaluate(NUMBERS)
    return found


@pytest.fixture(scope="module")
def long(site: Site) -> Build:
    """A build that has ended: 100 lines of fetching, 2900 of building."""
    build = running(site)
    site.harness.say(build.name, *(f"object {number}" for number in range(1, 101)), phase="fetch")
    site.harness.say(build.name, *(f"step {number} needle{number % 1000}." for number in range(101, 3001)))
    return site.harness.end(build.name)


def test_a_log_streams_and_outlives_the_server(site: Site, visit: Visiting) -> None:
    build = running(site)
    site.harness.say(build.name, "Cloning", phase="fetch")
    shown = visit(site.page(f"builds/{build.name}"))
    page = shown.page
    expect(page.get_by_text("Following the log.")).to_be_visible()
    expect(page.locator("[aria-current=step]")).to_contain_text("fetch")
    site.harness.say(build.name, "\x1b[1;32mStep 1\x1b[0m", "Step 2")
    expect(line(page, 2).locator(".bold.fg-2")).to_have_text("Step 1")
    expect(page.locator("[aria-current=step]")).to_contain_text("build")
    site.stop()
    expect(page.get_by_text("The connection is lost.")).to_be_visible()
    site.harness.say(build.name, "while nobody served")
    site.start()
    expect(line(page, 4)).to_have_text("while nobody served")
    site.harness.say(build.name, "Layers", phase="push")
    site.harness.end(build.name)
    expect(page.get_by_text("The build has ended: succeeded.")).to_be_visible()
    assert numbers(page) == [1, 2, 3, 4, 5]
    expect(page.locator("#log summary")).to_have_text([re.compile(name) for name in ("fetch 1", "build 3", "push 1")])
    expect(page.locator("#facts .state.succeeded")).to_be_visible()
    expect(page.locator("#pull")).to_have_text(re.compile(f"docker pull registry.example/.*:{COMMIT}.*@sha256:"))
    assert all("ERR_CONNECTION_REFUSED" in error or "ERR_INCOMPLETE" in error for error in shown.errors), shown.errors
    shown.errors.clear()


def test_a_stream_that_was_refused_goes_on_where_it_was(site: Site, visit: Visiting) -> None:
    """This happens behind a proxy, which answers 503 while the server is away: a browser abandons such a stream."""
    build = running(site)
    site.harness.say(build.name, "one", "two")
    shown = visit(site.page(f"builds/{build.name}"))
    expect(line(shown.page, 2)).to_have_text("two")
    stream = f"**/builds/{build.name}/log**"
    shown.page.route(stream, lambda route: route.fulfill(status=503))
    site.stop()
    expect(shown.page.get_by_text("The connection is lost.")).to_be_visible()
    with shown.page.expect_console_message(lambda message: "503" in message.text):
        site.start()
        site.harness.say(build.name, "three")
    shown.page.unroute(stream)
    expect(line(shown.page, 3)).to_have_text("three")
    assert numbers(shown.page) == [1, 2, 3]
    site.harness.end(build.name)
    expect(shown.page.get_by_text("The build has ended")).to_be_visible()
    shown.errors.clear()


def test_it_is_followed_until_somebody_scrolls_up(site: Site, visit: Visiting) -> None:
    build = running(site)
    site.harness.say(build.name, *(f"line {number}" for number in range(1, 301)))
    page = visit(site.page(f"builds/{build.name}")).page
    follow = page.get_by_role("button", name="Follow")
    expect(follow).to_have_attribute("aria-pressed", "true")
    until(lambda: numbers(page)[-1:] == [300] and line(page, 300).evaluate(SEEN))
    log_of(page).hover()
    page.mouse.wheel(0, -3000)
    expect(follow).to_have_attribute("aria-pressed", "false")
    place = log_of(page).evaluate("log => log.scrollTop")
    site.harness.say(build.name, *(f"line {number}" for number in range(301, 401)))
    until(lambda: numbers(page)[-1] == 400)
    assert log_of(page).evaluate("log => log.scrollTop") == pytest.approx(place, abs=1)
    follow.click()
    until(lambda: line(page, 400).evaluate(SEEN))
    site.harness.say(build.name, "the last")
    until(lambda: numbers(page)[-1] == 401 and line(page, 401).evaluate(SEEN))


def test_search_finds_lines_also_where_they_are_folded(site: Site, visit: Visiting, long: Build) -> None:
    page = visit(site.page(f"builds/{long.name}")).page
    until(lambda: numbers(page)[-1:] == [3000])
    phase = page.locator("#log details", has_text="needle7.")
    phase.locator("summary").click()
    expect(line(page, 2007)).to_be_hidden()
    log_of(page).press("/")
    page.keyboard.type("NEEDLE7.")
    found = page.locator("#match-count")
    expect(found).to_have_text("1 of 2")
    expect(line(page, 1007)).to_have_class("line hit")
    assert line(page, 1007).evaluate(SEEN)
    page.keyboard.press("Enter")
    expect(found).to_have_text("2 of 2")
    assert line(page, 2007).evaluate(SEEN)
    page.keyboard.press("Enter")
    expect(found).to_have_text("1 of 2")
    page.keyboard.press("Shift+Enter")
    expect(found).to_have_text("2 of 2")
    page.get_by_role("button", name="Previous match").click()
    expect(found).to_have_text("1 of 2")
    page.get_by_label("Search in the log").fill("nothing like this")
    expect(found).to_have_text("no match")
    page.keyboard.press("Escape")
    expect(found).to_have_text("")
    wrap = page.get_by_role("button", name="Wrap")
    wrap.click()
    expect(wrap).to_have_attribute("aria-pressed", "false")
    expect(line(page, 2007)).to_have_css("white-space", "pre")


def test_a_link_leads_to_its_line(site: Site, visit: Visiting, long: Build) -> None:
    page = visit(site.page(f"builds/{long.name}?attempt=1#L1500")).page
    expect(line(page, 1500)).to_have_class(re.compile("target"))
    assert line(page, 1500).evaluate(SEEN)
    line(page, 1502).click(position={"x": 10, "y": 5})
    assert page.url.endswith(f"builds/{long.name}?attempt=1#L1502")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"{long.name}-1.log"
    assert download.value.path().read_text().splitlines()[1499] == "step 1500 needle500."


def hostile(count: int) -> Iterator[str]:
    for number in range(1, count + 1):
        yield (
            f"\x1b[3{number % 8}m{number}\x1b[0m 10%\r 55%\r\x1b[38;5;{number % 256}m100%\x1b[0m "
            f"<img src=x onerror='document.title=1'><script>document.title=2</script>\x1b]0;x\x07\x00\u202e &amp;"
        )


def tasks(trace: bytes) -> list[float]:
    """CPU time (ms) of each task of the page's main thread.

    Messages from the browser's own process do not count: they are how a test drives a page and traces it.
    """
    events = json.loads(trace)["traceEvents"]
    names = {(one["pid"], one["tid"]): one["args"]["name"] for one in events if one["name"] == "thread_name"}
    timed = [one for one in events if "tdur" in one and names.get((one["pid"], one["tid"])) == "CrRendererMain"]
    driven = sorted(one["ts"] for one in timed if one["name"] == "Receive mojo message")
    found = []
    for one in timed:
        message = bisect(driven, one["ts"])
        drives = message < len(driven) and driven[message] <= one["ts"] + one["dur"]
        if one["name"].endswith("RunTask") and not drives:
            found.append(one["tdur"] / 1000)
    return found


@pytest.mark.alone
@pytest.mark.timeout(240)  # 100,000 lines, on a machine that does other things too
def test_a_hundred_thousand_hostile_lines_do_not_hold_up_the_page(
    browser: Browser, site: Site, visit: Visiting
) -> None:
    """No task of the page takes more than 100 ms while the lines stream, so no key press waits longer for its answer.

    The test measures CPU time, which the load of other programs does not increase.
    """
    build = running(site)
    page = visit(site.page(f"builds/{build.name}")).page
    expect(page.get_by_text("Following the log.")).to_be_visible()
    lines = [*hostile(100_000)]
    speaker = Thread(target=lambda: site.harness.say(build.name, *lines))
    browser.start_tracing(page=page, categories=["toplevel"])
    speaker.start()
    search = page.locator("#search-text")  # by id: a search by label takes a second among so many elements
    while page.evaluate(LAST) < 100_000:
        search.press_sequentially("55%")
        search.fill("")
    spent = tasks(browser.stop_tracing())
    speaker.join()
    print(f"{sum(spent) / 1000:.1f} s of CPU for 100,000 lines, {max(spent):.0f} ms in the longest task")
    assert max(spent) <= 100
    assert numbers(page) == [*range(1, 100_001)]
    expect(line(page, 100_000)).to_have_text(
        "100% <img src=x onerror='document.title=1'><script>document.title=2</script> &amp;"
    )
    assert log_of(page).evaluate("log => log.querySelectorAll('img, script').length") == 0
    assert "·" in page.title()
    search.fill("100%")
    expect(page.locator("#match-count")).to_have_text("1 of 100000", timeout=90_000)
    site.harness.end(build.name)
    expect(page.get_by_text("The build has ended")).to_be_visible()


def test_a_build_is_cancelled_and_built_again(site: Site, visit: Visiting) -> None:
    build = running(site)
    page = visit(site.page(f"builds/{build.name}")).page
    page.get_by_role("button", name="Cancel this build").click()
    page.wait_for_load_state()
    assert site.harness.engine.get(build.name).cancel
    site.harness.end(build.name, state=State.CANCELLED, reason=Reason.REQUESTED)
    expect(page.get_by_text("Build again if you still need the image.")).to_be_visible()
    page.get_by_role("button", name="Build again").click()
    expect(page.locator("#facts .state.queued")).to_be_visible()
    assert site.harness.engine.get(build.name).state is State.QUEUED


def test_a_failure_is_explained(site: Site, visit: Visiting) -> None:
    build = running(site)
    said = "ERROR: No matching distribution found for nonesuch==1"
    site.harness.say(build.name, f"#9 1.2 {said}")
    page = visit(site.page(f"builds/{build.name}")).page
    site.harness.end(
        build.name,
        state=State.FAILED,
        reason=Reason.REPOSITORY,
        message=f"RUN pip install -r requirements.txt: exit code 1; it said: {said}",
        log_tail=f"#9 1.1 Collecting nonesuch\n#9 1.2 {said}\n",
    )
    explanation = page.locator(".explanation")
    expect(explanation).to_contain_text("RUN pip install -r requirements.txt: exit code 1")
    expect(explanation.locator("blockquote")).to_contain_text(said)
    expect(explanation).to_contain_text("Correct the repository")
    expect(page.locator(".steps .failed")).to_have_text(re.compile("build"))


def test_a_running_build_is_at_a_step_of_its_latest_attempt(site: Site, visit: Visiting) -> None:
    build = running(site)
    site.harness.say(build.name, "Layers", phase="push")
    site.harness.end(build.name, retry=True)
    site.harness.run(build.name)
    page = visit(site.page(f"builds/{build.name}")).page
    expect(page.get_by_text("Layers")).to_be_visible()
    expect(page.locator("[aria-current=step]")).to_contain_text("fetch")
    site.harness.say(build.name, "Step 1", attempt=2)
    expect(page.locator("[aria-current=step]")).to_contain_text("build")
    site.harness.end(build.name, attempt=2)


def test_the_page_is_whole_without_javascript(site: Site, visit: Visiting, long: Build) -> None:
    page = visit(site.page(f"builds/{long.name}#L2500"), java_script_enabled=False).page
    expect(line(page, 2500)).to_be_in_viewport()
    expect(page.locator("#pull")).to_be_visible()
    expect(page.get_by_role("button", name="Follow")).to_be_hidden()
    expect(page.get_by_role("link", name="Download")).to_be_visible()
