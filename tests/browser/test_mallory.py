"""A page of another user on the Hub's host, in a real browser with the session of the user who opens it.

It is of Kiln's own origin. It reads no list, log or form, and cancels nothing, by any means that an origin gives a
page.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import sign_in
from tests.parts.binderhub import spec_of
from tests.parts.hubservice import BASE, HubService
from tests.parts.kiln import until

SAID = "still here"
"""A line of the victim's log."""

ASK = """async ([path, options, way]) => {
    if (way === "moved") history.pushState(null, "", "/services/binder/");
    const shown = (/_xsrf=([^;]+)/.exec(document.cookie) || [])[1] || "none";
    const headers = { ...options.headers, ...(way === "moved" && { "X-Xsrftoken": shown }) };
    try {
        const ended = AbortSignal.timeout(5000);
        const answer = await fetch(path, { ...options, headers, signal: ended });
        return [answer.status, await answer.text()];
    } catch (error) {
        return [0, String(error)];
    }
}"""
SEND = """([path, target]) => {
    const form = Object.assign(document.createElement("form"), { method: "post", action: path, target });
    for (const [name, value] of [["form", "0".repeat(64)], ["_xsrf", "0".repeat(64)]]) {
        form.append(Object.assign(document.createElement("input"), { type: "hidden", name, value }));
    }
    document.body.append(form);
    form.submit();
}"""
FRAME = """([kind, path]) => new Promise((done) => {
    const frame = document.createElement(kind);
    frame[kind === "object" ? "data" : "src"] = path;
    const read = () => {
        try { return frame.contentDocument.documentElement.outerHTML; } catch (error) { return String(error); }
    };
    frame.onload = frame.onerror = () => done(read());
    setTimeout(() => done(read()), 3000);
    document.body.append(frame);
})"""
OPEN = """([path, blank]) => {
    window.opened = window.open(blank ? "" : path, "kiln");
    if (blank) window.opened.location = path;
}"""
PEEK = """() => {
    try { return opened.document.documentElement.outerHTML; } catch (error) { return String(error); }
}"""
REGISTER = """async (kind) => {
    const worker = `/user/mallory/worker.js?kind=${kind}`;
    const made = await navigator.serviceWorker.register(worker, { scope: "/services/binder/" });
    const one = made.installing || made.waiting || made.active;
    while (one.state !== "activated") await new Promise((done) => one.addEventListener("statechange", done));
    window.worker = one;
}"""
SEEN = """() => new Promise((done) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = (event) => done(event.data);
    worker.postMessage("seen", [channel.port2]);
})"""


@pytest.fixture(scope="module")
def victim(pair: HubService) -> Iterator[str]:
    """A build of ada's that runs and writes to its log, and still does after each test."""
    pair.sign_as("ada")
    name = pair.system.talking("ada/victim")
    yield name
    pair.sign_as("ada")
    pair.system.cancel(name)


@pytest.fixture(autouse=True)
def nothing_is_cancelled(pair: HubService, victim: str) -> Iterator[None]:
    yield
    pair.sign_as("ada")
    assert pair.system.one(victim)["state"] == "running"


@pytest.fixture
def own(pair: HubService, page: Page, victim: str) -> Page:
    """Kiln's own page, with ada signed in."""
    sign_in(page, pair, "ada", BASE[1:])
    expect(page.get_by_text("user:ada")).to_be_visible()
    page.goto(f"{pair.url}builds/{victim}")
    expect(page.get_by_role("button", name="Cancel this build")).to_be_visible()
    return page


@pytest.fixture
def page_of_mallory(pair: HubService, own: Page) -> Page:
    """Another tab of the same browser."""
    page = own.context.new_page()
    page.goto(f"{pair.hub.url}user/mallory/")
    return page


def session_secrets(own: Page, victim: str) -> list[str]:
    """Values that only the session's own pages may read."""
    shown = own.evaluate("document.querySelector('meta[name=xsrf]')?.content")
    forms: list[str] = own.evaluate("[...document.querySelectorAll('input[name=form]')].map((one) => one.value)")
    return [SAID, f"builds/{victim}/cancel", *forms, *([shown] if shown else [])]


def reads(pair: HubService, victim: str) -> list[str]:
    log = f"api/v1/builds/{victim}/log"
    spec = f"build/{spec_of(pair.system, 'ada/victim', 'main')}"
    paths = ("", f"builds/{victim}", "api/v1/builds", f"api/v1/builds/{victim}", log, spec, f"{spec}?build_only=true")
    return [f"{BASE}{path}" for path in paths]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("way", ["plain", "moved"])
def test_it_reads_nothing_by_fetch(pair: HubService, own: Page, page_of_mallory: Page, victim: str, way: str) -> None:
    hidden = session_secrets(own, victim)
    for path in reads(pair, victim):
        for accept in ("text/html", "application/json", "text/event-stream", "*/*"):
            options = {"headers": {"Accept": accept}}
            status, text = page_of_mallory.evaluate(ASK, [path, options, way])
            assert not [one for one in hidden if one in text], (path, accept)
            refused = status in (401, 403) or '"phase": "failed"' in text
            assert refused, (path, accept, status, text)


@pytest.mark.timeout(180)
def test_it_cancels_nothing_by_fetch(page_of_mallory: Page, victim: str) -> None:
    one, form = f"{BASE}api/v1/builds/{victim}", f"{BASE}builds/{victim}/cancel"
    typed = {"Content-Type": "application/x-www-form-urlencoded"}
    asks = [
        (one, {"method": "DELETE"}),
        (one, {"method": "POST", "headers": {"X-HTTP-Method-Override": "DELETE"}}),
        (form, {"method": "POST", "headers": typed, "body": "form=&_xsrf="}),
        (f"{form}?_xsrf=0", {"method": "POST", "keepalive": True}),
        (f"{BASE}logout", {"method": "POST", "headers": typed, "body": "form="}),
    ]
    for path, options in asks:
        for way in ("plain", "moved"):
            status, text = page_of_mallory.evaluate(ASK, [path, options, way])
            assert status in (403, 405), (path, options, text)
    assert page_of_mallory.evaluate("navigator.sendBeacon(location.origin + " + repr(form) + ", 'form=')")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("target", ["_self", "_blank"])
def test_it_cancels_nothing_by_a_form(page_of_mallory: Page, victim: str, target: str) -> None:
    path = f"{BASE}builds/{victim}/cancel"
    with page_of_mallory.context.expect_event("response", lambda answer: answer.url.endswith(path)) as answered:
        page_of_mallory.evaluate(SEND, [path, target])
    assert answered.value.status == 403


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["iframe", "object", "embed"])
def test_it_reads_nothing_in_a_frame(own: Page, page_of_mallory: Page, victim: str, kind: str) -> None:
    hidden = session_secrets(own, victim)
    for path in (BASE, f"{BASE}builds/{victim}", f"{BASE}api/v1/builds/{victim}/log"):
        text = page_of_mallory.evaluate(FRAME, [kind, path])
        assert not [one for one in hidden if one in text], path
        assert "Builds" not in text


@pytest.mark.timeout(180)
@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("path", ["", "builds/{victim}", "api/v1/builds"])
def test_it_reads_nothing_in_a_window(page_of_mallory: Page, victim: str, path: str, blank: bool) -> None:
    """The user sees the page in the window; the page that opened the window cannot read it."""
    url = f"{BASE}{path.format(victim=victim)}"
    with page_of_mallory.context.expect_page() as opened:
        page_of_mallory.evaluate(OPEN, [url, blank])
    window = opened.value
    window.wait_for_url(f"**{url}")
    expect(window.locator("body")).to_contain_text(victim if path else "ada/victim")
    assert "ada/victim" not in page_of_mallory.evaluate(PEEK)
    assert page_of_mallory.evaluate("opened.closed")
    assert window.evaluate("window.opener") is None


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["fetch", "again", "preload", "script", "style"])
def test_its_service_worker_reads_nothing(
    pair: HubService, own: Page, page_of_mallory: Page, victim: str, kind: str
) -> None:
    hidden = session_secrets(own, victim)
    page_of_mallory.evaluate(REGISTER, kind)
    tab = own.context.new_page()
    tab.goto(f"{pair.url}builds/{victim}", wait_until="load")
    until(lambda: page_of_mallory.evaluate(SEEN))
    tab.wait_for_load_state("networkidle")
    seen = "\n".join(page_of_mallory.evaluate(SEEN))
    assert "navigate" in seen, "it did stand between"
    assert "stolen" not in seen
    assert not [one for one in hidden if one in seen or quote(one) in seen]


@pytest.mark.timeout(180)
def test_its_service_worker_can_do_nothing_with_a_form_that_is_sent(
    own: Page, page_of_mallory: Page, victim: str
) -> None:
    """It can hold back the sign-out and read the form's token, but that token authorizes no other request."""
    page_of_mallory.evaluate(REGISTER, "form")
    own.get_by_role("button", name="Sign out").click()
    until(lambda: any("form=" in one for one in page_of_mallory.evaluate(SEEN)))
    (sent,) = [one for one in page_of_mallory.evaluate(SEEN) if one.startswith("form=")]
    shown = {"X-Xsrftoken": sent.removeprefix("form=")}
    typed = {"Content-Type": "application/x-www-form-urlencoded"}
    asks = [
        (f"{BASE}api/v1/builds", {"headers": shown}),
        (f"{BASE}api/v1/builds?_xsrf={shown['X-Xsrftoken']}", {}),
        (f"{BASE}api/v1/builds/{victim}", {"method": "DELETE", "headers": shown}),
        (f"{BASE}builds/{victim}/cancel", {"method": "POST", "headers": typed, "body": sent}),
    ]
    for path, options in asks:
        status, text = page_of_mallory.evaluate(ASK, [path, options, "plain"])
        assert status == 403, (path, options, text)
