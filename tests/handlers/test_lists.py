"""The pages that list builds: rows, searches and queue positions. A page shows no more than the API."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bs4 import BeautifulSoup
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Build, Kind
from builds.engines import Submission
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.private import Private, PrivateRule
from builds.repository import Policy
from builds.transitions import change
from builds.triggers import from_event_data
from handlers import badges
from handlers.auth import Gate, Identity
from handlers.times import age, duration
from tests.handlers.harness import PREFIX, REPOSITORY, Harness, create_harness
from tests.handlers.markup import HTML, check_structure, soup, text

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def rows(page: BeautifulSoup, section: str = "list") -> list[dict[str, str]]:
    """Return each row of a section's tables, by the names of its columns."""
    found = []
    for table in page.select(f"#{section} table"):
        names = [text(name) for name in table.select("thead th[scope=col]")]
        for row in table.select("tbody tr"):
            cells = row.find_all("td")
            assert [cell["data-label"] for cell in cells] == names
            found.append(dict(zip(names, map(text, cells), strict=True)))
    return found


def asked(
    harness: Harness, repository: str, name: str, *, by: str | None = None, ref: str = "main", **more: Any
) -> Build:
    """Accept a build that `by` requests, of a commit of its own."""
    wants = from_event_data(
        {"repository": repository, "ref": f"refs/heads/{ref}", "commit": name.rjust(40, "0"), **more}
    )
    ask = harness.services.intake.submission(
        wants, source="/tests", id=name, type="t", by=by, chooses=True, kind=Kind.PERSON, now=harness.services.now()
    )
    (build,) = harness.engine.accept([ask])
    return build


# The list ------------------------------------------------------------------------------------------------------------


def test_a_row_says_what_people_look_for(harness: Harness) -> None:
    build = asked(harness, REPOSITORY, "1", by="user:ada", subdir="course/week")
    harness.run(build.name)
    page = soup(harness.client, "/")
    (row,) = rows(page)
    assert row["State"] == "running"
    assert row["Repository"] == "octo/stats github.com folder course/week"
    assert (row["Ref"], row["Commit"], row["Node"], row["Requested by"]) == ("main", "0000000", "local", "ada")
    assert row["Duration"].endswith(" s")
    assert row["Requested"] == "just now"
    time = page.select_one("#list tbody time")
    assert time is not None
    assert datetime.fromisoformat(str(time["datetime"])) == build.created_at
    assert f"{build.created_at:%Y-%m-%d %H:%M:%S} UTC" == time["title"]
    links = {str(link["href"]) for link in page.select("#list tbody a[href]")}
    assert links == {f"/builds/{build.name}", f"/repository?repository={REPOSITORY}"}


def test_an_empty_list_says_how_to_begin_where_this_kiln_is(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(base_path="/services/binder/", public_url="https://hub.example/services/binder")
    examples = " ".join(map(text, soup(harness.client, "/services/binder/").select(".empty pre")))
    for address in (
        "KILN_SERVER=https://hub.example/services/binder/",
        "binder/api/v1/builds",
        "binder/webhooks/github",
    ):
        assert address in examples
    nothing = soup(harness.client, "/services/binder/?search=nothing")
    assert "No build matches" in text(nothing.select_one("#list"))
    assert not nothing.select(".empty pre")


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("octo", {"1", "2"}),
        ("OCTO Develop", {"2"}),
        ("ada", {"1"}),
        ("course", {"3"}),
        ("0000000", {"1", "2", "3"}),
        ("github.com grace", {"2"}),
        ("queued", {"1", "2", "3"}),
        ("%", set()),
        ("", {"1", "2", "3"}),
    ],
)
def test_words_are_searched(harness: Harness, search: str, found: set[str]) -> None:
    builds = {
        "1": asked(harness, REPOSITORY, "1", by="user:ada"),
        "2": asked(harness, REPOSITORY, "2", by="user:grace", ref="develop"),
        "3": asked(harness, "https://gitlab.com/org/course", "3", by="token:ci"),
    }
    names = {builds[each].name for each in found}
    answer = harness.client.get("/api/v1/builds", query_string={"search": search})
    assert {item["name"] for item in answer.json["items"]} == names
    page = BeautifulSoup(harness.client.get("/", query_string={"search": search}, headers=HTML).text, "html.parser")
    assert {str(row["data-key"]) for row in page.select("#list tr[data-key]")} == names
    assert page.select_one("input[name=search]")["value"] == search  # type: ignore[index]
    develop = harness.client.get("/api/v1/builds?ref=develop").json
    assert [item["name"] for item in develop["items"]] == [builds["2"].name]


def test_a_search_is_bounded_and_goes_on(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    assert harness.client.get("/api/v1/builds", query_string={"search": "x" * 201}).status_code == 400
    wanted = asked(harness, REPOSITORY, "1", ref="wanted")
    for number in range(2, 8):
        asked(harness, REPOSITORY, str(number))
    monkeypatch.setattr("handlers.builds.MAX_EXAMINED", 1)
    monkeypatch.setattr("handlers.builds.BATCH", 1)
    page = harness.client.get("/api/v1/builds?search=wanted&limit=1").json
    assert page["items"] == []
    while not page["items"]:
        page = harness.client.get(
            "/api/v1/builds", query_string={"search": "wanted", "continue": page["continue"]}
        ).json
    assert [item["name"] for item in page["items"]] == [wanted.name]
    looked = soup(harness.client, "/?search=wanted&limit=1")
    assert "Search older builds" in text(looked.select_one("#list"))
    place = harness.client.get("/api/v1/builds?search=wanted&limit=1").json["continue"]
    assert harness.client.get("/api/v1/builds", query_string={"search": "other", "continue": place}).status_code == 400


def test_the_queue_is_in_the_plans_order(harness: Harness) -> None:
    """People come before pushes, and each user's first build before any user's second."""
    for name, by in (("1", "user:ada"), ("2", "user:ada"), ("3", "user:grace")):
        asked(harness, REPOSITORY if name != "3" else "https://github.com/octo/other", name, by=by)
    page = soup(harness.client, "/")
    queue = rows(page, "queue")
    assert [row["Position"] for row in queue] == ["1", "2", "3"]
    assert [row["Requested by"] for row in queue] == ["ada", "grace", "ada"]
    assert page.select_one("#queue caption")
    assert not soup(harness.client, "/?search=octo").select("#queue"), "positions are of all that wait"


def test_builds_are_grouped_by_repository(harness: Harness) -> None:
    for number in range(1, 6):
        asked(harness, REPOSITORY, str(number))
    asked(harness, "https://gitlab.com/org/course", "9")
    page = soup(harness.client, "/?group=repository")
    groups = page.select("#list section.group")
    assert [text(group.find("h3")) for group in groups] == ["org/course gitlab.com", "octo/stats github.com"]
    assert [len(group.select("tbody tr")) for group in groups] == [1, 3]
    assert groups[1].select_one(f'p a[href="/repository?repository={REPOSITORY}"]')
    assert page.select_one(".choice a[aria-current=true]").get_text() == "By repository"  # type: ignore[union-attr]


def test_the_newest_page_is_kept_fresh_and_older_ones_stay(harness: Harness) -> None:
    for number in range(3):
        asked(harness, REPOSITORY, str(number + 1))
    first = soup(harness.client, "/?limit=2&search=octo")
    assert first.select("#live[data-live]")
    assert first.select("#announcement[role=status]")
    older = first.select_one("a[rel=next]")
    assert older is not None
    page = soup(harness.client, str(older["href"]))
    assert not page.select("#live[data-live]")
    assert len(rows(page)) == 1
    assert [text(link) for link in page.select("nav[aria-label=Pages] a")] == ["Newest"]


@pytest.mark.parametrize("path", ["/", "/?group=repository", f"/repository?repository={REPOSITORY}"])
def test_every_page_is_for_keyboard_and_screen_reader(harness: Harness, path: str) -> None:
    build = asked(harness, REPOSITORY, "1", by="user:ada")
    harness.run(build.name)
    harness.end(build.name)
    asked(harness, REPOSITORY, "2")
    check_structure(soup(harness.client, path))


# One repository ------------------------------------------------------------------------------------------------------


def test_a_repository_has_its_history_and_images(harness: Harness) -> None:
    first = asked(harness, REPOSITORY, "1")
    harness.run(first.name)
    harness.end(first.name)
    asked(harness, REPOSITORY, "2", ref="develop")
    asked(harness, "https://github.com/octo/other", "3")
    page = soup(harness.client, "/repository?repository=https://github.com/OCTO/stats.git")
    assert text(page.find("h1")) == "octo/stats"
    assert [row["State"] for row in rows(page)] == ["queued", "succeeded"]
    (image,) = rows(page, "images")
    assert image["Ref"] == "main"
    assert f"{first.request.image}:{'1'.rjust(40, '0')}@sha256:" in image["Image"]
    develop = soup(harness.client, f"/repository?repository={REPOSITORY}&ref=develop")
    assert [row["Ref"] for row in rows(develop)] == ["develop"]
    assert not develop.select("#images")
    markdown = text(page.find(id="badge"))
    assert markdown.startswith(f"[![Image](http://localhost/badge.svg?repository={REPOSITORY})]")


def test_what_is_no_repository_is_told(harness: Harness) -> None:
    assert "Name the repository" in text(soup(harness.client, "/repository", 400))
    soup(harness.client, "/repository?repository=git@github.com:octo/stats", 422)
    nothing = soup(harness.client, "/repository?repository=https://github.com/octo/nothing")
    assert "This repository has no builds" in text(nothing)
    assert not nothing.select("#badge")


# Visibility ----------------------------------------------------------------------------------------------------------

PEOPLE = {
    "ada": Identity(by="user:ada", groups=frozenset({"staff"})),
    "kim": Identity(by="user:kim"),
    "root": Identity(by="user:root", admin=True),
    "ci": Identity(by="token:ci", admin=True),
}
NAMED, STORED, PUBLIC = (f"https://git.example/org/{name}" for name in ("named", "stored", "public"))


class Said:
    """An authenticator that trusts the name in `Authorization`."""

    takes = "a name"

    def identify(self, request: Any) -> Identity | None:
        return PEOPLE.get(request.headers.get("Authorization", ""))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """A Kiln with a repository that `private` names, one with a stored credential, and a public one."""
    private = Private(
        [PrivateRule(match=NAMED, use_by=("webhooks", "group:staff"))], stored=lambda found: found.url != PUBLIC
    )
    policy = Policy(allowed=["https://git.example/**"])
    intake = Intake(
        instance="test",
        policy=policy,
        hosts={},
        images=ImagePolicy(PREFIX),
        resolver=None,
        private=private,  # type: ignore[arg-type]
    )
    gate = Gate((Said(),))
    with closing(
        create_harness(
            tmp_path_factory.mktemp("guarded"), auth_gate=gate, events_auth=("none",), intake=intake, private=private
        )
    ) as harness:
        for number, url in enumerate((NAMED, STORED, PUBLIC)):
            wants = from_event_data({"repository": url, "ref": "refs/heads/secret-ref", "commit": f"{number + 1}" * 40})
            ask = intake.submission(
                wants, source="/hook", id=url, type="p", by="webhook:github", chooses=True, kind=Kind.PUSH, now=NOW
            )
            default = change(ask.cause, default=True)
            (build,) = harness.engine.accept([Submission(name=ask.name, request=ask.request, cause=default)])
            harness.run(build.name)
            harness.end(build.name)
            later = change(ask.request, commit="f" * 40)
            harness.engine.accept([Submission(name=f"{ask.name}-2", request=later, cause=default)])
        yield harness


SEES = {"ada": {NAMED, PUBLIC}, "kim": {PUBLIC}, "root": {STORED, PUBLIC}, "ci": {STORED, PUBLIC}}


@pytest.mark.parametrize("who", PEOPLE)
@pytest.mark.parametrize("path", ["/", "/?group=repository", "/?search=org", "/?ref=secret-ref", "/?state=queued"])
def test_lists_show_what_the_api_shows(guarded: Harness, who: str, path: str) -> None:
    client = guarded.client
    client.environ_base["HTTP_AUTHORIZATION"] = who
    page = client.get(path, headers=HTML).text
    items = client.get("/api/v1/builds", query_string=path.partition("?")[2]).json["items"]
    assert {item["repository"] for item in items} == SEES[who]
    for url in (NAMED, STORED, PUBLIC):
        assert (url.rpartition("/")[2] in page) == (url in SEES[who]), url
    found = BeautifulSoup(page, "html.parser")
    positions = [cell.get_text() for cell in found.select("#queue .position")]
    assert positions == (
        [str(place + 1) for place in range(len(SEES[who]))] if path in ("/", "/?group=repository") else []
    )


@pytest.mark.parametrize("who", PEOPLE)
@pytest.mark.parametrize("url", [NAMED, STORED, PUBLIC])
def test_a_repositorys_page_tells_nothing_of_what_one_may_not_see(guarded: Harness, who: str, url: str) -> None:
    client = guarded.client
    client.environ_base["HTTP_AUTHORIZATION"] = who
    page = soup(client, f"/repository?repository={url}")
    assert bool(rows(page)) is (url in SEES[who])
    assert bool(page.select("#images")) is (url in SEES[who])
    assert bool(page.select("#badge")) is (url == PUBLIC)
    if url not in SEES[who]:
        never = soup(client, f"/repository?repository={url}-never")
        assert text(page).replace(url, "").replace(url.partition("git.example/")[2], "") == text(never).replace(
            f"{url}-never", ""
        ).replace(f"{url.partition('git.example/')[2]}-never", "")


# Badges --------------------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def badge(client: FlaskClient, **query: str) -> str:
    answer = client.get("/badge.svg", query_string=query)
    assert (answer.status_code, answer.mimetype) == (200, "image/svg+xml"), answer.text
    words = [part.text for part in ET.fromstring(answer.text).iter(f"{SVG}text")]
    assert words[0] == "image"
    return str(words[1])


def test_a_badge_is_for_everybody_and_only_of_what_everybody_may_see(guarded: Harness) -> None:
    client = guarded.client
    assert badge(client, repository=PUBLIC) == "succeeded"
    for url in (NAMED, STORED, f"{PUBLIC}-never", "git@git.example:org/public", ""):
        for more in ({}, {"ref": "secret-ref"}):
            assert badge(client, repository=url, **more) == "unknown"
    hidden, never = (client.get("/badge.svg", query_string={"repository": url}) for url in (NAMED, f"{NAMED}-never"))
    assert hidden.data == never.data
    assert [*hidden.headers] == [*never.headers]
    assert (
        client.get(f"/badge.svg?repository={PUBLIC}", headers={"Authorization": "ada"}).data
        == client.get(f"/badge.svg?repository={PUBLIC}").data
    )


def test_a_badge_may_be_kept_and_shown_anywhere(harness: Harness) -> None:
    answer = harness.client.get(f"/badge.svg?repository={REPOSITORY}")
    assert answer.headers["Cache-Control"] == "public, max-age=60"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    again = harness.client.get(f"/badge.svg?repository={REPOSITORY}", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    build = asked(harness, REPOSITORY, "1")
    changed = harness.client.get(
        f"/badge.svg?repository={REPOSITORY}", headers={"If-None-Match": answer.headers["ETag"]}
    )
    assert changed.status_code == 200
    assert badge(harness.client, repository=REPOSITORY, ref="main") == "queued"
    harness.run(build.name)
    assert badge(harness.client, repository=REPOSITORY, ref="refs/heads/main") == "running"
    assert badge(harness.client, repository=REPOSITORY, ref="other") == "unknown"


@given(st.text(max_size=60), st.text(max_size=60))
def test_nothing_of_the_query_is_in_a_badge(repository: str, ref: str) -> None:
    harness = KEPT[0]
    answer = harness.client.get("/badge.svg", query_string={"repository": repository, "ref": ref})
    assert answer.data == harness.client.get("/badge.svg").data


KEPT: list[Harness] = []


@pytest.fixture(autouse=True, scope="module")
def kept(guarded: Harness) -> None:
    KEPT.append(guarded)


def test_who_asks_for_too_many_badges_at_once_is_told_to_come_back(harness: Harness) -> None:
    taken = [badges._readers.acquire(blocking=False) for _ in range(badges.MAX_READERS)]
    try:
        answer = harness.client.get(f"/badge.svg?repository={REPOSITORY}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    finally:
        for _ in taken:
            badges._readers.release()
    assert badge(harness.client, repository=REPOSITORY) == "unknown"


# Times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-30, "just now"),
        (59, "just now"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (86399, "23 h ago"),
        (86400, "1 d ago"),
        (30 * 86400 - 1, "29 d ago"),
        (30 * 86400, "2026-01-30"),
    ],
)
def test_ages(seconds: int, said: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(-1, "0 s"), (0.4, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (7384, "2 h 3 min")]
)
def test_lengths(seconds: float, said: str) -> None:
    assert duration(seconds) == said
