"""`EventSource` in a real browser, which reconnects by itself whenever a stream ends: the messages that a page gets."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import sign_in
from tests.parts.binderhub import Message, check_order, check_there, spec_of
from tests.parts.hubservice import BASE, HubService
from tests.parts.installation import BROKEN, SMALL
from tests.parts.kiln import Process, until
from tests.parts.registry import free_port

FOLLOW = """([url, options]) => {
    const connections = window.connections = [];
    const source = window.source = new EventSource(url, options);
    source.onopen = () => connections.push([]);
    source.onmessage = (event) => connections.at(-1).push(JSON.parse(event.data));
}"""


class Follower:
    """A page with an `EventSource` that stays open: the messages that it received, by connection."""

    def __init__(self, page: Page, url: str, **options: bool) -> None:
        self.page = page
        page.evaluate(FOLLOW, [url, options])

    @property
    def connections(self) -> list[list[Message]]:
        told: list[list[Message]] = self.page.evaluate("connections")
        return told

    def told(self, number: int = 1) -> list[list[Message]]:
        """Its first `number` connections, once that many have ended."""

        def ends() -> int:
            return sum(bool(one) and one[-1]["phase"] in ("ready", "failed") for one in self.connections)

        until(lambda: ends() >= number, 50)
        return self.connections[:number]


def xsrf(page: Page) -> str:
    """The token that an `EventSource` of Kiln's own pages sends."""
    (value,) = [one["value"] for one in page.context.cookies() if (one["name"], one["path"]) == ("_xsrf", BASE)]
    return value


def signed_in(page: Page, pair: HubService, path: str, user: str = "ada") -> Follower:
    """A page of Kiln's own, behind the Hub, that follows the build of a repository's branch `main`."""
    sign_in(page, pair, user, BASE[1:])
    pair.sign_as(user)
    return Follower(page, f"{BASE}build/{spec_of(pair.system, path, 'main')}?build_only=true&_xsrf={xsrf(page)}")


@pytest.fixture
def open_web(pair: HubService) -> Iterator[Process]:
    """Another web, which admits requests without authentication."""
    web = pair.system.start("web", KILN_AUTH="none", PORT=str(free_port()))
    pair.system.web.remove(web)
    yield web
    web.stop()


@pytest.mark.timeout(180)
def test_a_page_follows_a_build_to_its_image_and_asks_once(pair: HubService, page: Page) -> None:
    commit = pair.system.commit("ada/followed", {"Dockerfile": SMALL})
    first, *again = signed_in(page, pair, "ada/followed").told(3)
    check_order(first)
    check_there(pair.system, first[-1])
    assert {"fetching", "building"} <= {message["phase"] for message in first}
    assert again == [first[-1:]] * 2, "the browser reconnects by itself and receives the end"
    (build,) = pair.builds(commit)
    assert build["attempt"] == 1
    assert [cause["by"] for cause in build["causes"]] == ["user:ada"]


@pytest.mark.timeout(180)
def test_a_failing_repository_fails_once(pair: HubService, page: Page) -> None:
    commit = pair.system.commit("ada/fails", {"Dockerfile": BROKEN})
    first, *again = signed_in(page, pair, "ada/fails").told(3)
    check_order(first)
    assert first[-1]["phase"] == "failed"
    assert "nothing-of-that-name" in first[-1]["message"]
    assert again == [first[-1:]] * 2
    (build,) = pair.builds(commit)
    assert (build["attempt"], len(build["causes"])) == (1, 1)


@pytest.mark.timeout(180)
def test_a_page_of_another_site_asks_only_where_anybody_may(pair: HubService, page: Page, open_web: Process) -> None:
    """The session's cookie goes to every port of its host, but opens nothing there."""
    commit = pair.system.commit("ada/elsewhere", {"Dockerfile": SMALL})
    sign_in(page, pair, "ada", BASE[1:])
    pair.sign_as("ada")
    page.goto(f"{pair.hub.url}hub/home")
    spec = f"build/{spec_of(pair.system, 'ada/elsewhere', 'main')}?build_only=true"
    asked = f"{pair.system.url}{spec}"
    ((end,),) = Follower(page, asked).told()
    assert (end["phase"], end["status_code"]) == ("failed", 401)
    assert "token" in end["message"]
    follower = Follower(page, asked, withCredentials=True)
    until(lambda: page.evaluate("source.readyState === EventSource.CLOSED"))
    assert follower.connections == []
    until(lambda: any(line.get("refused", "").startswith("403") for line in pair.system.web[-1].lines))
    assert pair.builds(commit) == []
    (first,) = Follower(page, f"{open_web.url}{spec}").told()
    check_order(first)
    check_there(pair.system, first[-1])


@pytest.mark.timeout(180)
def test_a_page_outlives_the_web_that_tells_it(pair: HubService, page: Page, open_web: Process) -> None:
    """The browser continues with the next web process, and misses no message."""
    system = pair.system
    pair.sign_as("ada")
    commit, seconds = system.running("ada/restarted", 6)
    page.goto(str(open_web.url))
    follower = Follower(page, f"{open_web.url}build/{spec_of(system, 'ada/restarted', 'main')}?build_only=true")
    until(lambda: any(seconds in message["message"] for one in follower.connections for message in one), 50)
    open_web.stop()
    port = str(urlsplit(str(open_web.url)).port)
    system.web.remove(system.start("web", KILN_AUTH="none", PORT=port))
    left, came_back = follower.told(2)
    assert (left[-1]["phase"], left[-1]["status_code"]) == ("failed", 503)
    check_there(system, came_back[-1])
    (build,) = pair.builds(commit)
    assert (build["attempt"], len(build["causes"])) == (1, 1)
    told = [one["message"] for one in (*left, *came_back) if one["phase"] in ("fetching", "building", "pushing")]
    assert "".join(told) == system.log(build["name"])
