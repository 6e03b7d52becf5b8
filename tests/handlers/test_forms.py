"""The forms: a request for a build, with each error beside its field, and a dry run of events against the triggers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from bs4 import BeautifulSoup
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from builds.errors import UnknownRef, Unreachable
from builds.triggers import BuildTemplate, PushRule, TriggerRule
from handlers.auth import Gate
from tests.handlers.harness import COMMIT, REPOSITORY, Harness, Named, event, push, signed
from tests.handlers.markup import HTML, check_structure, soup, text
from tests.handlers.test_pages import sign_in

GIVEN = {"repository": REPOSITORY, "ref": COMMIT}


def hidden(page: BeautifulSoup, action: str) -> dict[str, str]:
    """Return the hidden fields of the form that posts to `action`."""
    form = page.select_one(f'form[action="{action}"][method=post]')
    assert form is not None
    return {str(field["name"]): str(field["value"]) for field in form.select("input[type=hidden]")}


def sent(client: FlaskClient, path: str, **given: str) -> TestResponse:
    return client.post(path, data={**hidden(soup(client, path), path), **given}, headers=HTML)


def wrong(answer: TestResponse, status: int) -> dict[str, str]:
    """Return the error messages by the names of their fields; the message at the top has the empty name."""
    assert (answer.status_code, answer.mimetype) == (status, "text/html"), answer.text
    page = BeautifulSoup(answer.text, "html.parser")
    check_structure(page)
    said = {}
    for field in page.select("[aria-invalid=true]"):
        names = str(field["aria-describedby"]).split()
        (beside,) = [page.find(id=name) for name in names if name.endswith("-error")]
        said[str(field["name"])] = text(beside)
    alerts = page.select("[role=alert]")
    assert len(alerts) == 1
    return said or {"": text(alerts[0])}


# A new build ---------------------------------------------------------------------------------------------------------


def test_a_build_is_asked_for_and_shown(harness: Harness) -> None:
    options = {"subdir": "course", "tags": "one two", "build_args": "A=1\n\nB = x=y ", "force": "yes"}
    answer = sent(harness.client, "/new", **GIVEN, **options)
    (build,) = harness.builds()
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/builds/{build.name}")
    assert build.request.subdir == "course"
    assert build.request.build_args == {"A": "1", "B": "x=y"}
    (cause,) = build.causes
    assert (cause.tags, cause.force, cause.type) == (("one", "two"), True, "dev.kiln.build.requested.v1")


def test_a_form_that_is_sent_twice_asks_once(harness: Harness) -> None:
    client = harness.client
    page = soup(client, "/new")
    for _ in range(2):
        assert client.post("/new", data={**hidden(page, "/new"), **GIVEN}, headers=HTML).status_code == 303
    (build,) = harness.builds()
    assert len(build.causes) == 1
    sent(client, "/new", **GIVEN)
    assert len(harness.builds()[0].causes) == 2


def test_the_address_fills_in_the_form(harness: Harness) -> None:
    page = soup(harness.client, f"/new?repository={REPOSITORY}&ref=main%22%3E%3Cscript%3E")
    assert page.select_one("#repository")["value"] == REPOSITORY  # type: ignore[index]
    assert page.select_one("#ref")["value"] == 'main"><script>'  # type: ignore[index]
    check_structure(page)


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("repository", "", 400),
        ("repository", "git@github.com:octo/stats.git", 422),
        ("repository", "https://10.0.0.1/octo/stats", 422),
        ("ref", "--upload-pack=x", 400),
        ("subdir", "../elsewhere", 400),
        ("image", "evil.example/x", 403),
        ("tags", COMMIT[:39] + "f", 400),
        ("build_args", "no value", 400),
        ("build_args", "HTTP_PROXY=x", 400),
    ],
)
def test_an_error_is_beside_its_field(harness: Harness, field: str, value: str, status: int) -> None:
    given = {**GIVEN, **({"tags": "kept"} if field != "tags" else {}), field: value}
    answer = sent(harness.client, "/new", **given)
    said = wrong(answer, status)
    assert [*said] == [field]
    assert said[field].endswith((".", ")"))
    page = BeautifulSoup(answer.text, "html.parser")
    for name, kept in given.items():
        shown = page.find(id=name)
        assert shown is not None
        assert (shown.get("value") if shown.name == "input" else shown.get_text()) == kept
    assert harness.builds() == ()


class Answering:
    """A resolver that raises the same error for every lookup."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def resolve(self, *_: object) -> NoReturn:
        raise self.error

    commit = changed = resolve


@pytest.mark.parametrize(
    ("error", "ref", "field", "status"),
    [
        (UnknownRef("The repository has no such ref."), "nowhere", "ref", 422),
        (UnknownRef("The repository has no HEAD."), "", "repository", 422),
        (Unreachable("The Git host does not answer."), "main", "", 503),
    ],
)
def test_what_the_git_host_says_is_told(harness: Harness, error: Exception, ref: str, field: str, status: int) -> None:
    object.__setattr__(harness.services, "intake", harness.services.intake.with_resolver(Answering(error)))
    answer = sent(harness.client, "/new", repository=REPOSITORY, ref=ref)
    assert wrong(answer, status) == {field: str(error)}
    assert ("Retry-After" in answer.headers) is (status == 503)


def test_a_full_queue_is_told(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(max_queued=0)
    assert "KILN_MAX_QUEUED" in wrong(sent(harness.client, "/new", **GIVEN), 503)[""]


def test_who_may_not_choose_is_not_asked_to(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth_gate=Gate((Named("user:kim"),)))
    page = soup(harness.client, "/new")
    assert [field["name"] for field in page.select(".field input, .field textarea")] == ["repository", "ref", "subdir"]
    assert "image" in wrong(sent(harness.client, "/new", **GIVEN, image="registry.example/kiln/x"), 403)[""]
    assert sent(harness.client, "/new", **GIVEN).status_code == 303
    assert harness.builds()[0].causes[0].by == "user:kim"


@pytest.mark.parametrize("path", ["/new", "/triggers"])
def test_only_our_own_page_sends_the_form(harnesses: Callable[..., Harness], path: str) -> None:
    harness = harnesses(auth=["token"])
    assert harness.client.get(path, headers=HTML).status_code == 401
    client = harness.client
    sign_in(client)
    for form in ("", "0" * 64, hidden(soup(client, "/new"), "/logout")["form"]):
        data = {**GIVEN, "event": json.dumps(event()), "form": form}
        assert client.post(path, data=data, headers=HTML).status_code == 403
    right = {**GIVEN, "event": json.dumps(event()), **hidden(soup(client, path), path)}
    assert client.post(path, data=right, headers={**HTML, "Origin": "https://evil.example"}).status_code == 403
    assert harness.builds() == ()
    assert client.post(path, data=right, headers=HTML).status_code in (200, 303)


# Triggers ------------------------------------------------------------------------------------------------------------

RULES = [
    TriggerRule(name="ours", filters=({"prefix": {"source": "https://github.com/our-org/"}},)),
    TriggerRule(name="main", push=PushRule(branches=("main",))),
    TriggerRule(
        name="elsewhere", push=PushRule(branches=("main",)), build=BuildTemplate(subdir="x", tags=("{ref_name}-x",))
    ),
]


def tried(client: FlaskClient, value: Any, host: str = "github") -> BeautifulSoup:
    pasted = value if isinstance(value, str) else json.dumps(value)
    answer = sent(client, "/triggers", event=pasted, host=host)
    assert answer.status_code == 200, answer.text
    page = BeautifulSoup(answer.text, "html.parser")
    check_structure(page)
    assert page.select_one("#event").get_text() == pasted  # type: ignore[union-attr]
    return page


def test_each_trigger_says_whether_it_matches_and_why_not(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(triggers=RULES)
    page = tried(harness.client, push())
    verdicts = {text(part.find("code")): text(part) for part in page.select(".verdict")}
    assert [*verdicts] == ["ours", "main", "elsewhere"]
    assert 'must begin with "https://github.com/our-org/"' in verdicts["ours"]
    assert "push holds" in verdicts["main"]
    planned = [text(part) for part in page.select(".planned")]
    assert [each.split()[4] for each in planned] == ["main", "elsewhere"]
    assert harness.builds() == ()
    made = harness.client.post("/webhooks/github", **signed(push())).json["builds"]
    assert [one["name"] in plan for one, plan in zip(made, planned, strict=True)] == [True, True]
    assert "main-x" in planned[1]


@pytest.mark.parametrize(
    ("pasted", "host", "status"),
    [("", "", 400), ("{}", "", 400), ("[]", "github", 400), ("{}", "nohost", 400), (json.dumps(event(id="")), "", 400)],
)
def test_what_is_no_event_is_told_beside_it(harness: Harness, pasted: str, host: str, status: int) -> None:
    answer = sent(harness.client, "/triggers", event=pasted, host=host)
    if host == "nohost":
        assert answer.status_code == status
    else:
        assert [*wrong(answer, status)] == ["event"]


def test_a_webhook_of_another_hosts_repository_is_told(harness: Harness) -> None:
    elsewhere = json.loads(json.dumps(push()).replace("github.com", "git.example"))
    answer = sent(harness.client, "/triggers", event=json.dumps(elsewhere), host="github")
    assert "github host" in wrong(answer, 403)["event"]


def test_what_is_pasted_stays_text(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(triggers=RULES)
    hostile = "<script>alert(1)</script>"
    page = tried(harness.client, push(ref=f"refs/heads/{hostile}"))
    assert not page.select("#outcome script")
    assert hostile in text(page.select_one("#outcome"))


def test_a_large_push_can_be_pasted(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(triggers=RULES)
    files = [f"folder/file-{number}.py" for number in range(30_000)]
    large = push(commits=[{"id": COMMIT, "added": files, "modified": [], "removed": []}])
    assert len(json.dumps(large)) > 600_000
    assert tried(harness.client, large).select(".planned")


@pytest.mark.parametrize(("admin", "status"), [(True, 200), (False, 403)])
def test_triggers_are_for_admins(harnesses: Callable[..., Harness], admin: bool, status: int) -> None:
    harness = harnesses(auth_gate=Gate((Named("user:kim", admin=admin),)), triggers=RULES)
    page = soup(harness.client, "/triggers", status)
    links = {text(link) for link in soup(harness.client, "/").select("nav[aria-label=Main] a")}
    assert ("Triggers" in links) is admin
    assert ("ours" in text(page)) is admin
    form = hidden(soup(harness.client, "/new"), "/new")
    assert harness.client.post("/triggers", data={**form, "event": "{}"}, headers=HTML).status_code in (400, 403)
