"""The list of builds and the form in a real browser: updates without a reload, and a build requested by hand."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.conftest import Visit
from tests.handlers.harness import COMMIT
from tests.parts.site import Site

Visiting = Callable[..., Visit]
REPOSITORY = "https://github.com/octo/listed"


def focused(page: Page) -> str | None:
    href: str | None = page.evaluate("document.activeElement.getAttribute('href')")
    return href


def test_the_list_is_kept_fresh_and_leaves_the_reader_where_they_are(site: Site, visit: Visiting) -> None:
    older = site.harness.ask(repository=REPOSITORY, subdir="older")
    page = visit(site.page("?search=listed")).page
    page.evaluate("window.notReloaded = true")
    row = page.locator(f'#list tr[data-key="{older.name}"]')
    commit = row.get_by_role("link", name=COMMIT[:7], exact=True)
    commit.focus()
    link = focused(page)
    newer = site.harness.ask(repository=REPOSITORY, subdir="newer")
    expect(page.locator("#list tbody tr").first).to_have_attribute("data-key", newer.name)
    site.harness.run(older.name)
    expect(row.get_by_role("link", name="running: ")).to_be_visible()
    expect(page.locator("#announcement")).to_contain_text("octo/listed: running.")
    assert focused(page) == link
    site.harness.end(older.name)
    expect(row).to_have_attribute("data-state", "succeeded")
    assert page.evaluate("window.notReloaded"), "the page was not loaded again"
    assert focused(page) == link


def test_the_queue_comes_and_goes(site: Site, visit: Visiting) -> None:
    page = visit(site.page()).page
    waits = site.harness.ask(repository=REPOSITORY, subdir="waits")
    row = page.locator(f'#queue tr[data-key="queued-{waits.name}"]')
    expect(row).to_be_visible()
    site.harness.run(waits.name)
    expect(row).to_have_count(0)
    site.harness.end(waits.name)


def test_a_build_is_asked_for_by_the_form(site: Site, visit: Visiting) -> None:
    page = visit(site.page()).page
    page.get_by_role("link", name="New build").click()
    page.get_by_label("Repository").fill(REPOSITORY)
    page.get_by_label("Branch, tag or commit").fill(COMMIT)
    page.get_by_label("Folder").fill("asked/by/hand")
    page.get_by_role("button", name="Build").click()
    page.wait_for_url("**/builds/build-octo-listed-*")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    (build,) = [one for one in site.harness.builds() if one.request.subdir == "asked/by/hand"]
    assert build.causes[0].by == "token:ada"


def test_an_error_is_where_the_keyboard_is(site: Site, visit: Visiting) -> None:
    shown = visit(site.page("new"))
    page = shown.page
    page.get_by_label("Repository").fill("git@github.com:octo/listed.git")
    page.get_by_role("button", name="Build").click()
    field = page.get_by_label("Repository")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("alert")).to_contain_text(REPOSITORY)
    assert all("422" in error for error in shown.errors), shown.errors
    shown.errors.clear()
