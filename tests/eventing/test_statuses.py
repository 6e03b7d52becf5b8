"""Requests to Git hosts and the meaning of their answers: for any text, any answer, any repository."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.event import Event
from eventing.sinks import LONGEST_RETRY_AFTER, Outcome
from eventing.statuses import APIS, HostRequest, HostResponse, HostSink, Login, redirected
from eventing.statuses.bitbucket import key_of
from eventing.statuses.comments import MARK, merged, number_of
from eventing.statuses.exchange import Conversation, limited, outcome_of
from eventing.statuses.words import code, plain, said, section

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
COMMIT, DIGEST = "c" * 40, f"sha256:{'d' * 64}"
WORDS = ("queued", "started", "retrying", "succeeded", "failed", "cancelled")
REPOSITORIES = {
    "github": "https://github.com/lab/sample",
    "gitlab": "https://gitlab.com/lab/sub/sample",
    "gitea": "https://git.example/tea/lab/sample",
    "forgejo": "https://codeberg.org/lab/sample",
    "bitbucket": "https://bitbucket.org/lab/sample",
    "bitbucket-server": "https://git.example/bb/scm/~ada/sample",
}
any_text = st.text(st.characters(codec="utf-8"), max_size=600) | st.text("`@[]()<>#*_!|~\n\r\t\u202ea", max_size=400)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True)


def event(word: str, *, repository: str = REPOSITORIES["github"], **changes: Any) -> Event:
    data = {
        "name": "build-x",
        "repository": repository,
        "commit": COMMIT,
        "reason": None,
        "message": None,
        "image": {"repository": "r.example/x", "reference": None, "digest": None},
        "causes": [{"trigger": "courses", "ref": "refs/heads/main"}],
        **changes,
    }
    extensions = {"repository": repository}
    return Event(id="1", source="/k", type=f"dev.kiln.build.{word}.v1", extensions=extensions, data=data)


def first(talk: Conversation) -> HostRequest:
    return next(talk)


def sink(kind: str, context: str = "kiln/courses", login: Login | None = None) -> HostSink:
    host = urlsplit(REPOSITORIES[kind]).netloc
    return HostSink(
        name=f"statuses/{host}/{context}",
        host=host,
        api=APIS[kind],
        context=context,
        page="https://kiln.example/builds/build-x",
        login=login or Login(secret="t"),
        discreet=False,
    )


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("github", f"https://api.github.com/repos/lab/sample/statuses/{COMMIT}"),
        ("gitlab", f"https://gitlab.com/api/v4/projects/lab%2Fsub%2Fsample/statuses/{COMMIT}"),
        ("gitea", f"https://git.example/tea/api/v1/repos/lab/sample/statuses/{COMMIT}"),
        ("forgejo", f"https://codeberg.org/api/v1/repos/lab/sample/statuses/{COMMIT}"),
        ("bitbucket", f"https://api.bitbucket.org/2.0/repositories/lab/sample/commit/{COMMIT}/statuses/build"),
        (
            "bitbucket-server",
            f"https://git.example/bb/rest/api/latest/projects/~ada/repos/sample/commits/{COMMIT}/builds",
        ),
    ],
)
def test_where_each_host_takes_statuses(kind: str, url: str) -> None:
    request = first(sink(kind).talk(event("queued", repository=REPOSITORIES[kind])))
    assert (request.method, request.url) == ("POST", url)


def test_a_commit_that_gitea_does_not_have_any_more_is_final() -> None:
    """Gitea 1.27 answers this with a 500. Any other 500 is retried."""
    for message, final in (("GetCommit[cc]: object does not exist [id: cc, rel_path: ]", True), ("database", False)):
        talk = sink("gitea").talk(event("queued", repository=REPOSITORIES["gitea"]))
        next(talk)
        with pytest.raises(StopIteration) as end:
            talk.send(HostResponse(status=500, body=f'{{"message": "{message}"}}'.encode(), at=NOW))
        assert (end.value.value.delivered, end.value.value.final) == (False, final)


def test_an_address_that_a_data_center_does_not_serve_is_final() -> None:
    talk = sink("bitbucket-server").talk(event("queued", repository="https://git.example/projects/A/repos/b"))
    with pytest.raises(StopIteration) as end:
        next(talk)
    assert end.value.value == Outcome(
        delivered=False, final=True, error="its API has no place for a repository with this address"
    )


@given(st.sampled_from(sorted(APIS)), st.sampled_from(WORDS), any_text, any_text, names)
def test_any_message_makes_a_status_within_the_hosts_limits(
    kind: str, word: str, message: str, reference: str, trigger: str
) -> None:
    image = {"repository": "r.example/x", "reference": reference or None, "digest": DIGEST}
    told = event(word, repository=REPOSITORIES[kind], message=message, reason="repository", image=image)
    body: Any = first(sink(kind, f"kiln/{trigger}").talk(told)).body
    description = body["description"]
    assert 0 < len(description) <= (140 if kind == "github" else 255)
    assert len(body.get("key", "")) <= (40 if kind == "bitbucket" else 255)
    if word == "failed":
        assert description.replace("\u200b", "").isprintable()
        assert "@" not in description.replace("@\u200b", "")
    if word == "succeeded":
        assert description in (reference, f"r.example/x@{DIGEST}", DIGEST)


@given(st.integers(1, 400))
def test_a_digest_is_whole_or_not_there(length: int) -> None:
    name = f"r.example/{'x' * length}"
    image = {"repository": name, "reference": f"{name}:{COMMIT}@{DIGEST}", "digest": DIGEST}
    told = said(event("succeeded", image=image), context="kiln", url="u", longest=140, discreet=False)
    assert told.description.endswith(DIGEST)


@given(any_text, st.integers(10, 300))
def test_plain_text_is_one_line_and_mentions_nobody(text: str, longest: int) -> None:
    made = plain(text, longest)
    assert len(made) <= longest
    assert "\n" not in made
    assert "@" not in made.replace("@\u200b", "")


@given(any_text)
def test_a_code_span_ends_where_it_should(text: str) -> None:
    """The closing fence is the first run of backticks as long as the opening one (CommonMark §6.1)."""
    made = code(text)
    fence = made[: len(made) - len(made.lstrip("`"))]
    inside = made[len(fence) : -len(fence)]
    assert made.endswith(fence)
    assert inside
    assert fence not in re.findall("`+", inside)
    assert "\n" not in made


@given(st.lists(names, min_size=2, max_size=2, unique=True))
def test_long_names_have_keys_of_their_own(triggers: list[str]) -> None:
    one, other = (key_of(f"kiln/{trigger}") for trigger in triggers)
    assert one != other
    assert max(len(one), len(other)) <= 40


@given(st.lists(st.tuples(names, any_text), min_size=1, max_size=6))
def test_each_section_of_a_comment_is_the_last_that_was_said(told: list[tuple[str, str]]) -> None:
    """No message of a build can end its section or begin another one."""
    text, last = "", {}
    for trigger, message in told:
        failed = event("failed", reason="repository", message=message)
        last[trigger] = section(failed, context=f"kiln/{trigger}", url="https://k.example/b", discreet=False)
        text = merged(text, f"kiln/{trigger}", last[trigger])
        assert merged(text, f"kiln/{trigger}", last[trigger]) == text
    assert text.split("\n").count(MARK) == 1
    assert all(one in text for one in last.values())
    assert text.count("[The build](<https://k.example/b>)") == len(last)


@pytest.mark.parametrize(
    ("ref", "number"),
    [
        ("refs/pull/12/head", "12"),
        ("refs/pull/12/merge", "12"),
        ("refs/merge-requests/3/head", "3"),
        ("refs/pull-requests/4/from", "4"),
        ("refs/heads/pull/12/head", None),
        ("refs/pull/12/head/x", None),
        ("refs/pull/0/head", None),
        ("refs/pull/\u0661/head", None),
        (None, None),
    ],
)
def test_which_request_a_ref_is_of(ref: str | None, number: str | None) -> None:
    assert number_of(ref) == number


# Answers -------------------------------------------------------------------------------------------------------------

HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "ratelimit-reset", "x-ratelimit-reset", "x-ratelimit-remaining"]),
    st.sampled_from(["0", "1", "30", str(int(NOW.timestamp()) + 600), "9" * 12, "9" * 40, "soon", "-1", "²"])
    | st.text(max_size=10),
)


@given(st.integers(200, 599), HEADERS, st.binary(max_size=60) | st.just(b"You hit a secondary rate limit"))
def test_any_answer_has_an_outcome(status: int, headers: dict[str, str], body: bytes) -> None:
    answer = HostResponse(status=status, headers=headers, body=body, at=NOW)
    outcome = outcome_of(answer, "git.example")
    assert outcome.delivered == (status // 100 == 2)
    assert outcome.final == (not limited(answer) and not (status in (408, 409) or status >= 500))
    assert outcome.retry_after is None or 0 <= outcome.retry_after <= LONGEST_RETRY_AFTER
    assert limited(answer) <= bool(outcome.retry_after)
    assert (outcome.error is None) == outcome.delivered


@pytest.mark.parametrize(
    ("status", "headers", "body", "pause"),
    [
        (403, {"retry-after": "120"}, b"", 120),
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW.timestamp()) + 600)}, b"", 600),
        (403, {"x-ratelimit-remaining": "17", "x-ratelimit-reset": "9999999999"}, b"secondary rate limit", 60),
        (403, {}, b"You have triggered an abuse detection mechanism", 60),
        (429, {"ratelimit-reset": str(int(NOW.timestamp()) + 30)}, b"Retry later", 30),
        (429, {"ratelimit-reset": "45"}, b"", 45),
        (429, {}, b"", 60),
        (429, {"retry-after": "999999"}, b"", 3600),
        (429, {"retry-after": "Sun, 29 Nov 2026 12:01:00 GMT"}, b"", 60),
    ],
)
def test_how_long_a_host_is_left_alone(status: int, headers: dict[str, str], body: bytes, pause: float) -> None:
    outcome = outcome_of(HostResponse(status=status, headers=headers, body=body, at=NOW), "git.example")
    assert (outcome.final, outcome.retry_after) == (False, pause)


@pytest.mark.parametrize(
    ("location", "followed"),
    [
        ("/repositories/1/statuses/x", True),
        ("https://api.example/other", True),
        ("http://api.example/other", False),
        ("https://api.example:8443/other", False),
        ("https://evil.example/other", False),
        ("https://user@api.example/other", False),
        ("//evil.example/other", False),
        ("https://api.example\\@evil.example/", False),
        ("https://[bad", False),
        ("", False),
    ],
)
def test_a_token_stays_at_its_host(location: str, followed: bool) -> None:
    request = HostRequest(method="POST", url="https://api.example/repos/a/b", body={"a": 1})
    moved = redirected(request, HostResponse(status=307, headers={"location": location}, at=NOW))
    assert (moved is not None) == followed
    if moved is not None:
        assert (moved.method, moved.body) == ("POST", {"a": 1})
        assert urlsplit(moved.url).netloc == "api.example"


def test_who_lets_in_and_how() -> None:
    token, user = Login(secret="canary"), Login(user="ada@example.edu", secret="canary")
    git = Login(user="x-token-auth", secret="canary")
    assert {APIS[kind].headers(token)["Authorization"] for kind in APIS} == {"Bearer canary"}
    basic = {kind for kind in APIS if APIS[kind].headers(user)["Authorization"].startswith("Basic ")}
    assert basic == {"bitbucket", "bitbucket-server"}
    assert {APIS[kind].headers(git)["Authorization"] for kind in APIS} == {"Bearer canary"}
    assert "canary" not in repr([token, user, sink("github", login=token)])
